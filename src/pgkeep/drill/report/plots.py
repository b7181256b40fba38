"""The plots of a report as SVG that stands inside HTML: no script, no outside font, readable in black and white."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from pgkeep.drill.report.document import HistoryChart, PhasesChart, Tone

__all__ = ["COLOURS", "history_svg", "phase_colour", "phases_svg"]

COLOURS: dict[Tone, str] = {"good": "#2e7d4f", "bad": "#c0392b", "quiet": "#9aa5b1", "warn": "#b7791f", "": "#33475b"}

# dark enough for white letters (WCAG's 4.5 to 1), and of different lightness beside each other
# dark enough for white letters (WCAG's 4.5 to 1), and of different lightness beside each other
_PHASES = ("#1f4e79", "#3a77b0", "#5e3c80", "#9c5a12", "#1e6f5c", "#6b7785", "#7d6608", "#49545f", "#8c3b52", "#4d6b1f")

_WIDE, _HEIGHT = 700.0, 30.0
_CHART_WIDTH, _CHART_HEIGHT = 340.0, 132.0
_TOP, _BOTTOM = 26.0, 18.0
_ABOVE = 3.0
"""An objective that is more than so many times the highest column lies above the plot: the columns would be flat under it."""

_CHARACTER = 6.2
"""About the width of a character of the labels, in the plot's units."""


def phase_colour(index: int) -> str:
    """The colour of the phase at this place."""
    return _PHASES[index % len(_PHASES)]


def phases_svg(chart: PhasesChart) -> str:
    """One bar, as wide as the page; a phase that is wide enough has its name and time in it."""
    total = sum(bar.seconds for bar in chart.bars)
    parts = [f"<title>{escape(chart.title)}</title>"]
    left = 0.0
    for index, bar in enumerate(chart.bars):
        width = _WIDE * bar.seconds / total if total > 0 else _WIDE / len(chart.bars)
        label = f"{bar.label} {bar.shown}"
        parts.append(
            f'<g><rect x="{left:.1f}" y="0" width="{max(width, 0.4):.1f}" height="{_HEIGHT:.0f}" fill="{phase_colour(index)}"'
            f' stroke="#fff" stroke-width="0.8"/><title>{escape(label)}</title>'
        )
        text = next((text for text in (label, bar.label) if _width(text) + 8 <= width), None)
        if text is not None:
            parts.append(
                f'<text x="{left + width / 2:.1f}" y="{_HEIGHT / 2 + 4:.1f}" text-anchor="middle" class="in">{escape(text)}</text>'
            )
        parts.append("</g>")
        left += width
    return _svg("phases", chart.title, _WIDE, _HEIGHT, parts)


def history_svg(chart: HistoryChart) -> str:
    """Columns with their values above them, and the objective as a line; the predicted interval is a whisker on the current one."""
    points = chart.points
    top = _top(chart)
    base = _CHART_HEIGHT - _BOTTOM
    scale = (base - _TOP) / top
    parts = [
        f"<title>{escape(chart.title)}</title>",
        f'<line x1="0" y1="{base}" x2="{_CHART_WIDTH}" y2="{base}" class="axis"/>',
    ]
    parts += _objective(chart, top, base, scale)
    slot = _CHART_WIDTH / max(len(points), 4)
    fits = all(_width(point.shown) <= slot - 1 for point in points)
    for index, point in enumerate(points):
        middle, height = slot * (index + 0.5), max(1.0, point.seconds * scale)
        width = min(26.0, slot * 0.62)
        faint = "" if point.current else ' fill-opacity="0.62"'
        parts.append(
            f'<g><rect x="{middle - width / 2:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5"'
            f' fill="{COLOURS[point.tone]}"{faint}/>'
            f"<title>{escape(f'{point.label}: {point.shown}')}</title>"
        )
        if fits or point.current:
            above = height if not point.current or chart.predicted is None else max(height, chart.predicted[1] * scale)
            anchor, x = ("end", min(_CHART_WIDTH, middle + width / 2)) if not fits else ("middle", middle)
            parts.append(
                f'<text x="{x:.1f}" y="{base - above - 4:.1f}" text-anchor="{anchor}" class="value">{escape(point.shown)}</text>'
            )
        parts.append(
            f'<text x="{middle:.1f}" y="{_CHART_HEIGHT - 5:.1f}" text-anchor="middle" class="tick">{escape(point.label)}</text></g>'
        )
        if point.current and chart.predicted is not None:
            parts += _whisker(chart.predicted, middle, base, scale)
    return _svg("history", chart.title, _CHART_WIDTH, _CHART_HEIGHT, parts)


def _top(chart: HistoryChart) -> float:
    """The seconds at the upper edge."""
    highest = max([point.seconds for point in chart.points] + [0.0 if chart.predicted is None else chart.predicted[1]])
    if chart.objective is not None and (highest <= 0 or chart.objective <= _ABOVE * highest):
        highest = max(highest, chart.objective)
    return highest * 1.12 if highest > 0 else 1.0


def _objective(chart: HistoryChart, top: float, base: float, scale: float) -> Iterator[str]:
    if chart.objective is None:
        return
    above = chart.objective > top
    y = 12.0 if above else base - chart.objective * scale
    label = chart.objective_above if above else chart.objective_shown
    yield f'<line x1="0" y1="{y:.1f}" x2="{_CHART_WIDTH}" y2="{y:.1f}" class="{"objective above" if above else "objective"}"/>'
    yield f'<text x="0" y="{y - 3:.1f}" class="objective">{escape(label)}</text>'


def _whisker(interval: tuple[float, float], middle: float, base: float, scale: float) -> Sequence[str]:
    low, high = (base - max(0.0, value) * scale for value in interval)
    return [
        f'<path d="M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 5:.1f} {low:.1f}h10M{middle - 5:.1f} {high:.1f}h10" class="whisker"/>'
    ]


def _width(text: str) -> float:
    """About how wide the text is: a Korean syllable is twice as wide as a digit."""
    return sum(_CHARACTER * (1.75 if ord(character) >= 0x1100 else 1.0) for character in text)


def _svg(name: str, title: str, width: float, height: float, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f'<svg class="{name}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'
