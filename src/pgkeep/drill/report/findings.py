"""What was checked and compared: failures first and whole, what passed in few words."""

from __future__ import annotations

from pgkeep.drill.record import Check, ComparedTable, Comparison, Difference, DrillRecord
from pgkeep.drill.report.document import Block, Column, Paragraph, Section, Table, Text, Tone
from pgkeep.drill.report.limits import Limits
from pgkeep.drill.report.sentences import said
from pgkeep.drill.report.wording import Wording, clip, visible

__all__ = ["check_section", "comparison_section"]

_TONES: dict[str, Tone] = {"passed": "good", "failed": "bad", "skipped": "warn"}
_ORDER = {"failed": 0, "skipped": 1, "passed": 2}


def check_section(record: DrillRecord, limits: Limits, words: Wording) -> Section:
    """A row for each check: the failed ones first, then the skipped, then as they were done."""
    title = words("section.checks")
    if not record.checks:
        return Section("checks", title, [Paragraph(Text(words("checks.empty"), tone="bad"))])
    ordered = sorted(record.checks, key=lambda check: _ORDER.get(check.outcome, 0))
    failed = [check for check in ordered if check.outcome == "failed"]
    others = [check for check in ordered if check.outcome != "failed"]
    shown = failed[: limits.failed] + others[: limits.others]
    names = ("check", "outcome", "found", "time")
    columns = [Column(words(f"column.{name}"), right=name == "time", tight=name == "outcome") for name in names]
    blocks: list[Block] = [Table(columns, [_row(check, limits, words) for check in shown])]
    hidden_failed = max(0, len(failed) - limits.failed)
    hidden = len(ordered) - len(shown) - hidden_failed
    for key, count in (("checks.more.failed", hidden_failed), ("checks.more", hidden)):
        if count:
            blocks.append(Paragraph(Text(words(key, count=count), tone="quiet")))
    return Section("checks", title, blocks)


def _row(check: Check, limits: Limits, words: Wording) -> list[Text]:
    passed = check.outcome == "passed"
    found = said(check.detail, words)
    if check.kind == "assertion" and check.name:
        found = f"{clip(check.name, 48)}: {found}"
    remedy = (
        f"{words('remedy')}: {clip(said(check.remedy, words), limits.sentence)}" if check.remedy and not passed else ""
    )
    return [
        Text(
            words.known("check", check.kind),
            note=words("check.sampled", share=words.share(check.sampled)) if check.sampled < 1 else "",
        ),
        Text(words.known("outcome", check.outcome), tone=_TONES.get(check.outcome, "")),
        Text(clip(found, 80 if passed else limits.sentence), note=remedy),
        Text(words.duration(check.seconds)),
    ]


def comparison_section(record: DrillRecord, limits: Limits, words: Wording) -> Section | None:
    """The tables that differ with example rows, or one sentence; None where nothing was compared."""
    comparison = record.comparison
    if comparison is None:
        return None
    differing = [table for table in comparison.tables if not table.equal]
    blocks: list[Block] = [Paragraph(Text(_summary(comparison, differing, words), note=_how(comparison, words)))]
    if differing:
        names = ("table", "rows.restored", "rows.live", "examples")
        columns = [Column(words(f"column.{name}"), right=name.startswith("rows")) for name in names]
        blocks.append(Table(columns, [_table_row(table, limits, words) for table in differing[: limits.tables]]))
    if len(differing) > limits.tables:
        blocks.append(Paragraph(Text(words("comparison.more", count=len(differing) - limits.tables), tone="quiet")))
    return Section("comparison", words("section.comparison"), blocks)


def _summary(comparison: Comparison, differing: list[ComparedTable], words: Wording) -> str:
    if comparison.equal and not differing:
        rows = sum(table.rows for table in comparison.tables)
        return words("comparison.summary.equal", count=len(comparison.tables), rows=rows)
    return words("comparison.summary.unequal", differing=len(differing), count=len(comparison.tables))


def _how(comparison: Comparison, words: Wording) -> str:
    parts = [words(f"comparison.{comparison.mode}", lsn=visible(comparison.lsn))]
    sampled = sum(table.sampled < 1 for table in comparison.tables)
    if sampled:
        parts.append(words("comparison.sampled", count=sampled))
    if comparison.detail:
        parts.append(clip(said(comparison.detail, words), 140))
    return " · ".join(part.rstrip(".") for part in parts)


def _table_row(table: ComparedTable, limits: Limits, words: Wording) -> list[Text]:
    examples = [_example(each, words) for each in table.differences[: limits.examples]]
    if len(table.differences) > limits.examples:
        examples.append(words("difference.more", count=len(table.differences) - limits.examples))
    return [
        Text(clip(table.name, 100), note=clip(said(table.detail, words), 120)),
        Text(f"{table.rows:,}"),
        Text("–" if table.live_rows is None else f"{table.live_rows:,}"),
        Text(" · ".join(examples)),
    ]


def _example(difference: Difference, words: Wording) -> str:
    key = clip(difference.key, 32)
    live, restored = clip(difference.live or "", 40), clip(difference.restored or "", 40)
    if difference.restored is None:
        return words("difference.lost", key=key, live=live)
    if difference.live is None:
        return words("difference.extra", key=key, restored=restored)
    return words("difference.changed", key=key, live=live, restored=restored)
