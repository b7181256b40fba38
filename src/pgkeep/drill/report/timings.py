"""How long it took: the phases, and RTO and RPO of the last drills against their objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pgkeep.drill.record import DrillRecord, Phase
from pgkeep.drill.report.document import (
    Bar,
    Block,
    Column,
    HistoryChart,
    HistoryPoint,
    Paragraph,
    PhasesChart,
    Section,
    Side,
    Table,
    Text,
    Tone,
)
from pgkeep.drill.report.wording import Wording
from pgkeep.units import format_rate, format_size

__all__ = ["timings_section"]

_PHASES = 12
"""So many phases have a row; a drill has ten at most, so more are the work of another version."""


def timings_section(record: DrillRecord, history: Sequence[DrillRecord], words: Wording) -> Section:
    """The phases' bar and table, and the two history charts; ``history`` ends with the record."""
    blocks: list[Block] = []
    phases = _phases(record, words)
    if phases:
        total = sum(phase.seconds for _label, phase in phases)
        bars = [Bar(label, phase.seconds, words.duration(phase.seconds)) for label, phase in phases]
        blocks += [PhasesChart(words("phases.title"), bars), _table(phases, total, words)]
    else:
        blocks.append(Paragraph(Text(words("phases.none"), tone="quiet")))
    if record.wal_waited > 0:
        blocks.append(Paragraph(Text(words("wal_waited", waited=words.duration(record.wal_waited)), tone="quiet")))
    blocks.append(Side([_chart("rto", history, words), _chart("rpo", history, words)]))
    return Section("timings", words("section.timings"), blocks)


def _phases(record: DrillRecord, words: Wording) -> list[tuple[str, Phase]]:
    return [(words.known("phase", phase.name), phase) for phase in record.phases[:_PHASES]]


def _table(phases: list[tuple[str, Phase]], total: float, words: Wording) -> Table:
    columns = [Column(words("column.phase"))]
    columns += [Column(words(f"column.{name}"), right=True) for name in ("time", "share", "bytes", "rate")]
    rows = [
        [
            Text(label),
            Text(words.duration(phase.seconds)),
            Text(words.share(phase.seconds / total) if total > 0 else "–"),
            Text(format_size(phase.bytes) if phase.bytes else ""),
            Text(format_rate(phase.bytes / phase.seconds) if phase.bytes and phase.seconds > 0 else ""),
        ]
        for label, phase in phases
    ]
    return Table(columns, rows, keyed=True)


def _figures(name: Literal["rto", "rpo"], record: DrillRecord) -> tuple[float, float | None] | None:
    if name == "rto":
        return None if record.rto is None else (record.rto.measured, record.rto.objective)
    return None if record.rpo is None else (record.rpo.seconds, record.rpo.objective)


def _chart(name: Literal["rto", "rpo"], history: Sequence[DrillRecord], words: Wording) -> HistoryChart:
    points, objectives = [], []
    for each in history:
        figures = _figures(name, each)
        if figures is None:
            continue
        measured, objective = figures
        tone: Tone = "bad" if objective is not None and measured > objective else "good"
        points.append(
            HistoryPoint(
                words.day(each.started),
                max(0.0, measured),
                words.duration(measured),
                tone if each.passed else "quiet",
                current=each is history[-1],
            )
        )
        objectives.append(objective)
    objective = objectives[-1] if objectives else None
    shown = "" if objective is None else words.duration(objective)
    rto = history[-1].rto
    predicted = None
    if name == "rto" and rto is not None and rto.low is not None and rto.high is not None:
        predicted = (rto.low, rto.high)
    return HistoryChart(
        title=words(f"chart.{name}"),
        points=points,
        empty=words("chart.none"),
        objective=objective,
        objective_shown=words("chart.objective", objective=shown),
        objective_above=words("chart.objective.above", objective=shown),
        predicted=predicted,
        legend=_legend(points, predicted is not None, words),
    )


def _legend(points: list[HistoryPoint], has_interval: bool, words: Wording) -> list[tuple[Tone, str]]:
    used = {point.tone for point in points}
    entries: list[tuple[Tone, str]] = [
        ("good", words("chart.within")),
        ("bad", words("chart.over")),
        ("quiet", words("chart.failed")),
    ]
    legend = [(tone, label) for tone, label in entries if tone in used]
    return [*legend, ("", words("chart.predicted"))] if has_interval else legend
