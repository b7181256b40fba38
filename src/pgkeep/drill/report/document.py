"""A report before it is HTML or Markdown: the one template that all forms for people are made of.

Texts are plain; whoever writes a form escapes them. Numbers for plots are seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pgkeep.drill.report.messages import Language

__all__ = [
    "Bar",
    "Block",
    "Column",
    "Document",
    "Fields",
    "HistoryChart",
    "HistoryPoint",
    "Items",
    "Paragraph",
    "PhasesChart",
    "Section",
    "Side",
    "Table",
    "Text",
    "Tile",
    "Tone",
    "Verdict",
]

Tone = Literal["", "good", "bad", "warn", "quiet"]


class Text(msgspec.Struct, frozen=True):
    """A value: ``note`` stands below it, smaller; ``mono`` is set in a fixed pitch; ``strong`` in bold."""

    text: str
    note: str = ""
    tone: Tone = ""
    mono: bool = False
    strong: bool = False


class Fields(msgspec.Struct, frozen=True):
    """Names and values."""

    rows: list[tuple[str, Text]]


class Column(msgspec.Struct, frozen=True):
    """A column's title; ``right`` sets numbers flush right, ``tight`` keeps each cell on one line, as ``right`` does."""

    title: str
    right: bool = False
    tight: bool = False


class Table(msgspec.Struct, frozen=True):
    """Rows of as many cells as there are columns; ``keyed``: row for row, it is the key to the bar above it."""

    columns: list[Column]
    rows: list[list[Text]]
    keyed: bool = False


class Paragraph(msgspec.Struct, frozen=True):
    """A sentence or two."""

    text: Text


class Items(msgspec.Struct, frozen=True):
    """A list, numbered where the order counts."""

    items: list[Text]
    numbered: bool = False


class Bar(msgspec.Struct, frozen=True):
    """A stretch of the phases' bar."""

    label: str
    seconds: float
    shown: str


class PhasesChart(msgspec.Struct, frozen=True):
    """One bar, cut into phases in their order."""

    title: str
    bars: list[Bar]


class HistoryPoint(msgspec.Struct, frozen=True):
    """One drill of a history chart; ``tone`` is quiet where the drill failed, bad where the objective was missed."""

    label: str
    seconds: float
    shown: str
    tone: Tone
    current: bool = False


class HistoryChart(msgspec.Struct, frozen=True):
    """Columns, the oldest first, against an objective; ``predicted`` is the interval for the current one."""

    title: str
    points: list[HistoryPoint]
    empty: str
    objective: float | None = None
    objective_shown: str = ""
    objective_above: str = ""
    predicted: tuple[float, float] | None = None
    legend: list[tuple[Tone, str]] = []


class Side(msgspec.Struct, frozen=True):
    """Charts beside each other, where there is room."""

    charts: list[HistoryChart]


Block = Fields | Table | Paragraph | Items | PhasesChart | Side


class Section(msgspec.Struct, frozen=True):
    """A part with a heading; ``name`` is the same in all languages."""

    name: str
    title: str
    blocks: list[Block]


class Tile(msgspec.Struct, frozen=True):
    """A figure that is seen first."""

    label: str
    value: str
    notes: list[str]
    tone: Tone = ""


class Verdict(msgspec.Struct, frozen=True):
    """What came of it; ``cause`` and ``remedy`` are empty where it passed."""

    passed: bool
    state: str
    headline: str
    cause_label: str = ""
    cause: str = ""
    cause_note: str = ""
    remedy_label: str = ""
    remedy: str = ""


class Document(msgspec.Struct, frozen=True):
    """The whole report."""

    language: Language
    title: str
    subtitle: str
    verdict: Verdict
    tiles: list[Tile]
    sections: list[Section]
    footer: str
