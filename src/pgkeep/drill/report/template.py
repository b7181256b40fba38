"""The template: one record and the ones before it become a document, in the order in which a person asks.

What failed and its remedy first, then the figures, then what was restored, how long it took, what was checked, and the history. Long
lists are cut so that a report stays within two printed pages; the record has them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgkeep.drill.record import DrillRecord
from pgkeep.drill.report.document import (
    Block,
    Column,
    Document,
    Items,
    Paragraph,
    Section,
    Table,
    Text,
    Tile,
    Tone,
    Verdict,
)
from pgkeep.drill.report.facts import drill_section, target_line
from pgkeep.drill.report.findings import check_section, comparison_section
from pgkeep.drill.report.limits import Limits, limits_for
from pgkeep.drill.report.messages import MESSAGES, Language
from pgkeep.drill.report.sentences import said
from pgkeep.drill.report.timings import timings_section
from pgkeep.drill.report.wording import Wording, clip, visible

__all__ = ["make_document"]


def make_document(
    record: DrillRecord, earlier: Sequence[DrillRecord] = (), *, language: Language = "en", zone: str | None = None
) -> Document:
    """The report of ``record``; ``earlier`` are other drills of the cluster, in any order, this one included or not."""
    words = Wording(language, zone)
    limits = limits_for(record)
    history = _history(record, earlier)[-limits.drills :]
    facts: list[Section | None] = [drill_section(record, words), timings_section(record, history, words)]
    findings: list[Section | None] = [check_section(record, limits, words), comparison_section(record, limits, words)]
    sections = [
        *(facts + findings if record.passed else findings + facts),
        _steps(record, limits, words),
        _drills(record, history, words),
        _notes(record, limits, words),
    ]
    return Document(
        language=language,
        title=words("title", cluster=clip(record.cluster, 40)),
        subtitle=words.time(record.started),
        verdict=_verdict(record, limits, words),
        tiles=_tiles(record, words),
        sections=[section for section in sections if section is not None],
        footer=words("footer", id=visible(record.id)),
    )


def _history(record: DrillRecord, earlier: Sequence[DrillRecord]) -> list[DrillRecord]:
    """The drills up to this one, oldest first."""
    others = {
        other.id: other
        for other in earlier
        if other.system_identifier == record.system_identifier and other.started <= record.started
    }
    others.pop(record.id, None)
    return [*sorted(others.values(), key=lambda other: (other.started, other.id)), record]


def _verdict(record: DrillRecord, limits: Limits, words: Wording) -> Verdict:
    state = words(f"state.{record.state}")
    if record.passed:
        skipped = sum(check.outcome == "skipped" for check in record.checks)
        passed = sum(check.outcome == "passed" for check in record.checks)
        key = "headline.passed.skipped" if skipped else "headline.passed"
        return Verdict(passed=True, state=state, headline=words(key, count=passed, skipped=skipped))
    cause = words("cause.unknown") if not record.cause else clip(said(record.cause, words), 2 * limits.sentence)
    note = words(f"exit.{record.exit_code}") if _names_exit(record, words) else ""
    return Verdict(
        passed=False,
        state=state,
        headline=words("headline.failed"),
        cause_label=words("cause"),
        cause=cause,
        cause_note=note,
        remedy_label=words("remedy") if record.remedy else "",
        remedy=clip(said(record.remedy, words), 2 * limits.sentence) if record.remedy else "",
    )


def _names_exit(record: DrillRecord, words: Wording) -> bool:
    """Whether the kind of error is said beside the cause: where the cause itself could not be said in the language."""
    if f"exit.{record.exit_code}" not in MESSAGES or words.language == "en":
        return False
    return not record.cause or said(record.cause, words) == record.cause


def _tiles(record: DrillRecord, words: Wording) -> list[Tile]:
    return [
        _rto_tile(record, words),
        _rpo_tile(record, words),
        _checks_tile(record, words),
        _compared_tile(record, words),
    ]


def _against(measured: float, objective: float | None, words: Wording) -> tuple[str, Tone]:
    if objective is None:
        return words("objective.none"), ""
    if measured <= objective:
        return words("objective.met", objective=words.duration(objective)), "good"
    return words("objective.missed", objective=words.duration(objective)), "bad"


def _rto_tile(record: DrillRecord, words: Wording) -> Tile:
    label = words("tile.rto")
    if record.rto is None:
        return Tile(label, words("not_measured"), [words("not_reached")], "quiet")
    note, tone = _against(record.rto.measured, record.rto.objective, words)
    notes = [note]
    if record.rto.predicted is not None:
        predicted = words.duration(record.rto.predicted)
        if record.rto.low is None or record.rto.high is None:
            notes.append(words("predicted", predicted=predicted))
        else:
            low, high = words.duration(record.rto.low), words.duration(record.rto.high)
            notes.append(words("predicted.range", predicted=predicted, low=low, high=high))
    return Tile(label, words.duration(record.rto.measured), notes, tone)


def _rpo_tile(record: DrillRecord, words: Wording) -> Tile:
    label = words("tile.rpo")
    if record.rpo is None:
        return Tile(label, words("not_measured"), [], "quiet")
    note, tone = _against(record.rpo.seconds, record.rpo.objective, words)
    notes = [note]
    if record.rpo.newest is not None:
        notes.append(words("rpo.newest", time=words.time(record.rpo.newest)))
    return Tile(label, words.duration(record.rpo.seconds), notes, tone)


def _checks_tile(record: DrillRecord, words: Wording) -> Tile:
    label = words("tile.checks")
    outcomes = [check.outcome for check in record.checks]
    if not outcomes:
        return Tile(label, words("checks.none"), [], "bad")
    failed, skipped = outcomes.count("failed"), outcomes.count("skipped")
    notes = [words("checks.skipped", count=skipped)] if skipped else []
    value = words("checks.all", count=outcomes.count("passed"), total=len(outcomes))
    if failed:
        return Tile(label, words("checks.failed", count=failed), [value, *notes], "bad")
    return Tile(label, value, notes, "good")


def _compared_tile(record: DrillRecord, words: Wording) -> Tile:
    label, comparison = words("tile.comparison"), record.comparison
    if comparison is None:
        return Tile(label, words("comparison.none"), [], "quiet")
    notes = [words(f"comparison.{comparison.mode}", lsn=visible(comparison.lsn))]
    if comparison.equal:
        return Tile(label, words("comparison.equal"), notes, "good")
    differing = sum(not table.equal for table in comparison.tables)
    value = words("comparison.unequal", count=differing) if differing else words("comparison.differs")
    return Tile(label, value, notes, "bad")


def _steps(record: DrillRecord, limits: Limits, words: Wording) -> Section | None:
    if not record.steps:
        return None
    items = [
        Text(
            f"{clip(said(step.text, words), 76)} ({words.known('outcome', step.outcome)}, {words.duration(step.seconds)})",
            note=clip(step.command, 86),
            tone="bad" if step.outcome == "failed" else "",
        )
        for step in record.steps[: limits.steps]
    ]
    return Section(
        "steps",
        words("section.steps"),
        _cut(Items(items, numbered=True), len(record.steps) - limits.steps, "steps", words),
    )


def _notes(record: DrillRecord, limits: Limits, words: Wording) -> Section | None:
    if not record.notes:
        return None
    items = [Text(clip(said(note, words), limits.sentence)) for note in record.notes[: limits.notes]]
    return Section(
        "notes", words("section.notes"), _cut(Items(items), len(record.notes) - limits.notes, "notes", words)
    )


def _cut(items: Items, left: int, name: str, words: Wording) -> list[Block]:
    more: list[Block] = [Paragraph(Text(words(f"{name}.more", count=left), tone="quiet"))] if left > 0 else []
    return [items, *more]


def _drills(record: DrillRecord, history: list[DrillRecord], words: Wording) -> Section:
    title = words("section.history")
    if len(history) == 1:
        return Section("history", title, [Paragraph(Text(words("history.first")))])
    names = ("began", "state", "target", "rto", "rpo", "checks", "cause")
    tight = {"began", "state", "target", "checks"}
    columns = [Column(words(f"column.{name}"), right=name in {"rto", "rpo"}, tight=name in tight) for name in names]
    rows = [_drill_row(each, record, words) for each in reversed(history)]
    passed = sum(each.passed for each in history)
    summary = Paragraph(Text(words("history.summary", passed=passed, count=len(history))))
    return Section("history", title, [summary, Table(columns, rows)])


def _drill_row(each: DrillRecord, record: DrillRecord, words: Wording) -> list[Text]:
    passed = sum(check.outcome == "passed" for check in each.checks)
    counted = sum(check.outcome != "skipped" for check in each.checks)
    is_this = each.id == record.id
    return [
        Text(words.short_time(each.started), strong=is_this),
        Text(words(f"state.{each.state}"), tone="good" if each.passed else "bad"),
        Text("–" if each.target is None else clip(target_line(each.target, words, short=True), 34)),
        _figure(None if each.rto is None else (each.rto.measured, each.rto.objective), words),
        _figure(None if each.rpo is None else (each.rpo.seconds, each.rpo.objective), words),
        Text(f"{passed}/{counted}"),
        Text(clip(said(each.cause or "", words), 48)),
    ]


def _figure(figure: tuple[float, float | None] | None, words: Wording) -> Text:
    if figure is None:
        return Text("–", tone="quiet")
    measured, objective = figure
    return Text(words.duration(measured), tone="bad" if objective is not None and measured > objective else "")
