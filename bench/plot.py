"""Line plots as SVG: panels side by side, axes from zero or logarithmic, one legend. Nothing is needed to make or to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

PLOTS = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "plots"

# Okabe and Ito's colours: told apart by everybody, in grey too where the marks help.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS = ("circle", "square", "diamond", "triangle")
_WIDTH, _HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 30, 44
_LEGEND = 20
_COLUMNS = 2
_FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
_TICKS = 5
# A line of more points is drawn without marks.
_MARKED = 30


@dataclass(frozen=True, slots=True)
class Line:
    """Points in order of x; ``is_dashed`` for what is an estimate, a limit or a goal."""

    name: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. A logarithmic axis spans its values, another one begins at zero; ``y_end`` cuts what is above it."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    x_names: Sequence[tuple[float, str]] = ()
    y_end: float | None = None


def write_plot(name: str, panels: Sequence[Panel]) -> Path:
    """Write ``docs/explanation/plots/NAME.svg``, two panels beside each other; lines of the same name look the same in all."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    columns = min(len(panels), _COLUMNS)
    width, bottom = _WIDTH * columns, _HEIGHT * -(-len(panels) // columns)
    legend = _legend_rows(names, width)
    size = f"width='{width}' viewBox='0 0 {width} {bottom + _LEGEND * len(legend) + 6}'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size} {_FONT} font-size='11'>",
        "<rect width='100%' height='100%' fill='#ffffff'/>",
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        parts += [f"<g transform='translate({column * _WIDTH} {row * _HEIGHT})'>", *_panel(panel, names), "</g>"]
    for number, entries in enumerate(legend):
        x = _LEFT
        for entry in entries:
            y = bottom + _LEGEND * number + 10
            style = names.index(entry)
            dashed = any(line.is_dashed for panel in panels for line in panel.lines if line.name == entry)
            parts.append(_path([(x, y), (x + 22, y)], style, dashed=dashed) + _mark(x + 11, y, style))
            parts.append(f"<text x='{x + 28}' y='{y + 4}'>{escape(entry)}</text>")
            x += _entry_width(entry)
    parts.append("</svg>\n")
    PLOTS.mkdir(parents=True, exist_ok=True)
    path = PLOTS / f"{name}.svg"
    path.write_text("\n".join(parts))
    return path


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    is_log: bool
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.is_log else (self.low, self.high)
        position = math.log10(value) if self.is_log else value
        return float(self.start + (position - low) / (high - low) * (self.end - self.start))


def _axis(
    values: Sequence[float], start: float, end: float, *, is_log: bool, names: Sequence[tuple[float, str]]
) -> _Axis:
    if is_log:
        low, high = min(values), max(values)
        if not names:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.0001))
        else:
            low, high = low / 1.2, high * 1.2
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [(10.0**power, _number(10.0**power)) for power in decades]
    else:
        step = _step(max(values) * 1.05 / _TICKS)
        high = step * math.ceil(max(values) * 1.05 / step)
        low = 0.0
        ticks = [(step * number, _number(step * number)) for number in range(round(high / step) + 1)]
    return _Axis(low, high, is_log, start, end, [tick for tick in names or ticks if low <= tick[0] <= high])


def _panel(panel: Panel, names: Sequence[str]) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    points = [point for line in panel.lines for point in line.points]
    x = _axis([x for x, _ in points], _LEFT, right, is_log=panel.log_x, names=panel.x_names)
    y_end = math.inf if panel.y_end is None else panel.y_end / 1.05
    y = _axis([min(y, y_end) for _, y in points], bottom, _TOP, is_log=panel.log_y, names=())
    parts = [f"<text x='{_LEFT}' y='16' font-size='12' font-weight='bold'>{escape(panel.title)}</text>"]
    for value, text in y.ticks:
        parts.append(f"<path d='M{_LEFT} {y.at(value):.1f}H{right}' stroke='#dddddd'/>")
        parts.append(f"<text x='{_LEFT - 6}' y='{y.at(value) + 4:.1f}' text-anchor='end'>{escape(text)}</text>")
    for value, text in x.ticks:
        parts.append(f"<path d='M{x.at(value):.1f} {bottom}v4' stroke='#444444'/>")
        parts.append(f"<text x='{x.at(value):.1f}' y='{bottom + 16}' text-anchor='middle'>{escape(text)}</text>")
    parts += [
        f"<path d='M{_LEFT} {_TOP}V{bottom}H{right}' fill='none' stroke='#444444'/>",
        f"<text x='{(_LEFT + right) / 2}' y='{bottom + 34}' text-anchor='middle'>{escape(panel.x)}</text>",
        f"<text transform='translate(13 {(_TOP + bottom) / 2}) rotate(-90)' text-anchor='middle'>{escape(panel.y)}</text>",
    ]
    for line in panel.lines:
        style = names.index(line.name)
        places = [(x.at(px), y.at(py)) for px, py in line.points if py <= y.high]
        parts.append(_path(places, style, dashed=line.is_dashed))
        parts += [_mark(px, py, style) for px, py in places if len(line.points) <= _MARKED]
    return parts


def _path(places: Sequence[tuple[float, float]], style: int, *, dashed: bool) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dash = " stroke-dasharray='5 4'" if dashed else ""
    return f"<path d='M{steps}' fill='none' stroke='{_colour(style)}' stroke-width='1.8'{dash}/>"


def _mark(x: float, y: float, style: int) -> str:
    kind, fill = _MARKS[style % len(_MARKS)], f"fill='{_colour(style)}'"
    if kind == "circle":
        return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.2' {fill}/>"
    shape = {"square": "m-3-3h6v6h-6z", "diamond": "m0-4l4 4l-4 4l-4-4z", "triangle": "m0-4l4 7h-8z"}[kind]
    return f"<path d='M{x:.1f} {y:.1f}{shape}' {fill}/>"


def _colour(style: int) -> str:
    return _COLOURS[style % len(_COLOURS)]


def _entry_width(name: str) -> int:
    return 44 + round(6.6 * len(name))


def _legend_rows(names: Sequence[str], width: int) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for name in names:
        if rows[-1] and _LEFT + sum(map(_entry_width, [*rows[-1], name])) > width:
            rows.append([])
        rows[-1].append(name)
    return rows


def _step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
