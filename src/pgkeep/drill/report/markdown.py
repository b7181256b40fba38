"""A report as Markdown (CommonMark with tables): the same document, its plots as tables and bars of text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pgkeep.drill.report.document import (
    Block,
    Column,
    Document,
    Fields,
    HistoryChart,
    Items,
    Paragraph,
    PhasesChart,
    Side,
    Table,
    Text,
    Verdict,
)

__all__ = ["escape_markdown", "markdown_document"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&#!])")
_LEADING = re.compile(r"^(\s*)([-+=>]|\d+[.)](?=\s))")

_BAR = 24
"""Characters of the longest bar."""


def escape_markdown(text: str) -> str:
    """The text so that Markdown shows it as it is, in a paragraph, in a list or in a table's cell."""
    escaped = _SPECIAL.sub(r"\\\1", text)
    return _LEADING.sub(lambda match: f"{match[1]}{match[2][:-1]}\\{match[2][-1]}", escaped)


def markdown_document(document: Document) -> str:
    """The whole text, ending in a newline."""
    lines = [f"# {escape_markdown(document.title)}: {escape_markdown(document.verdict.state)}", ""]
    lines += [escape_markdown(document.subtitle), "", *_verdict(document.verdict)]
    lines += [
        f"* {escape_markdown(tile.label)}: **{escape_markdown(tile.value)}**"
        + (f" ({escape_markdown('; '.join(tile.notes))})" if tile.notes else "")
        for tile in document.tiles
    ]
    for section in document.sections:
        lines += ["", f"## {escape_markdown(section.title)}"]
        for block in section.blocks:
            lines += ["", *_block(block)]
    return "\n".join([*lines, "", "---", "", escape_markdown(document.footer), ""])


def _verdict(verdict: Verdict) -> Iterator[str]:
    yield escape_markdown(verdict.headline)
    yield ""
    if verdict.passed:
        return
    note = f"{escape_markdown(verdict.cause_note)} " if verdict.cause_note else ""
    yield f"> **{escape_markdown(verdict.cause_label)}:** {note}{escape_markdown(verdict.cause)}"
    if verdict.remedy:
        yield ">"
        yield f"> **{escape_markdown(verdict.remedy_label)}:** {escape_markdown(verdict.remedy)}"
    yield ""


def _block(block: Block) -> Iterator[str]:
    match block:
        case Fields():
            yield from (f"* {escape_markdown(name)}: {_inline(text)}" for name, text in block.rows)
        case Table():
            yield from _table(block.columns, [[_inline(cell) for cell in row] for row in block.rows])
        case Paragraph():
            yield _inline(block.text)
        case Items():
            for number, item in enumerate(block.items, 1):
                yield f"{number}. {_inline(item)}" if block.numbered else f"* {_inline(item)}"
        case PhasesChart():
            longest = max((len(bar.shown) for bar in block.bars), default=0)
            yield from _bars([(f"{bar.shown:>{longest}}  {bar.label}", bar.seconds) for bar in block.bars])
        case Side():
            for chart in block.charts:
                yield f"### {escape_markdown(chart.title)}"
                yield ""
                yield from _history(chart)
                yield ""


def _inline(text: Text) -> str:
    value = escape_markdown(text.text)
    if text.strong or text.tone == "bad":
        value = f"**{value}**" if value else ""
    return f"{value} ({escape_markdown(text.note)})" if text.note else value


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(escape_markdown(column.title) for column in columns)} |"
    yield f"|{'|'.join('---:' if column.right else '---' for column in columns)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _bars(rows: Sequence[tuple[str, float]]) -> Iterator[str]:
    """A bar of text for each row, in a block that keeps its spaces."""
    highest = max((seconds for _label, seconds in rows), default=0.0)
    yield "```text"
    for label, seconds in rows:
        length = round(_BAR * seconds / highest) if highest > 0 else 0
        yield f"{'█' * length or '▏':<{_BAR}}  {label}".replace("```", "'''")
    yield "```"


def _history(chart: HistoryChart) -> Iterator[str]:
    if not chart.points:
        yield escape_markdown(chart.empty)
        return
    longest = max(len(point.shown) for point in chart.points)
    yield from _bars([(f"{point.shown:>{longest}}  {point.label}", point.seconds) for point in chart.points])
    if chart.objective is not None:
        yield ""
        yield escape_markdown(chart.objective_shown)
