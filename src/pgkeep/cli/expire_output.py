"""What an expiry removes and keeps, as lines and as JSON: the time line, the rules, the WAL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgkeep.cli.backup_documents import format_lsn
from pgkeep.units import format_duration, format_size, format_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgkeep.cli.output import Output
    from pgkeep.config import RepositorySettings
    from pgkeep.errors import PgkeepError
    from pgkeep.policy.expire import ExpireReport, ExpireRequest
    from pgkeep.policy.expiry_plan import ClusterPlan, WalPreview
    from pgkeep.policy.retention import Verdict
    from pgkeep.repository import Repository

__all__ = ["RepositoryExpiry", "draw_line", "expiry_document", "show_plan", "show_removed"]

_WIDTH = 72

_MOST_SPANS = 3


@dataclass
class RepositoryExpiry:
    """One repository's part: what was planned, what was removed, or why nothing could be."""

    settings: RepositorySettings
    repository: Repository | None = None
    request: ExpireRequest | None = None
    plans: list[ClusterPlan] = field(default_factory=list)
    previews: list[WalPreview] = field(default_factory=list)
    reports: list[ExpireReport] = field(default_factory=list)
    error: PgkeepError | None = None


def show_plan(output: Output, expiry: RepositoryExpiry) -> None:
    """The rules, and for each cluster its time line and what becomes of each backup."""
    rules = None if expiry.request is None else expiry.request.rules
    output.styled((f"repository {expiry.settings.name}", "bold"), (f" ({expiry.settings.url})", "dim"))
    if expiry.error is not None:
        output.styled(("error: ", "bold red"), (str(expiry.error), ""))
        if expiry.error.hint:
            output.styled(("hint: ", "bold"), (expiry.error.hint, ""))
        return
    if rules is not None:
        output.line(f"keeps {rules.describe()}")
    else:
        output.line("has no rules, so nothing expires in it by itself")
        output.styled(
            ("-> ", "dim"), (f'[repository.{expiry.settings.name}.retention] with window = "14d" and monthly = 12', "")
        )
    for plan, preview in zip(expiry.plans, expiry.previews, strict=True):
        output.line()
        _show_cluster(output, plan, preview)
    output.line()


def _show_cluster(output: Output, plan: ClusterPlan, preview: WalPreview) -> None:
    output.line(f"cluster {', '.join(plan.clusters) or '?'} (system identifier {plan.system_identifier})")
    if not plan.verdicts:
        output.line("no backup")
    else:
        for line in draw_line(plan.verdicts, plan):
            output.line(f"  {line}")
        output.line("  o stays   x goes   = the window", "dim")
        output.table(("", "BACKUP", "BEGUN", "AGE", "STATE", "KEPT BY"), list(_rows(plan)), right=("AGE",))
    for id_, why in plan.unreadable.items():
        output.line(f"{id_} stays: {why}", "yellow")
    for note in (*plan.notes, *([] if plan.silence is None else [plan.silence])):
        output.line(note, "yellow")
    if plan.needed is not None:
        for timeline, spans in sorted(plan.needed.spans().items()):
            kept = ", ".join(
                f"{format_lsn(begin)} to {'the end' if end is None else format_lsn(end)}"
                for begin, end in spans[-_MOST_SPANS:]
            )
            short = len(spans) - _MOST_SPANS
            before = f"{short:,} short spans for the backups before, " if short > 0 else ""
            output.line(f"WAL of timeline {timeline} that stays: {before}{kept}")
    more = "" if preview.complete else "more than "
    output.line(f"WAL that goes: {more}{preview.objects:,} objects, {more}{format_size(preview.bytes)}")
    output.line(f"{len(plan.going)} of {len(plan.ids)} backups go", "bold")


def _rows(plan: ClusterPlan) -> list[tuple[str, ...]]:
    going = set(plan.going)
    rows = [_row(verdict, plan, goes=verdict.backup.id in going) for verdict in plan.verdicts]
    before = sum(verdict.backup.started < plan.window_start for verdict in plan.verdicts)
    if plan.window_start < plan.now:
        rows.insert(
            before, ("=", "the window begins", format_time(plan.window_start), _age(plan, plan.window_start), "", "")
        )
    return rows


def _row(verdict: Verdict, plan: ClusterPlan, *, goes: bool) -> tuple[str, ...]:
    backup = verdict.backup
    kept = "named: goes" if backup.id in plan.removed_by_name else "goes" if goes else ", ".join(verdict.kept_by)
    mark = "x" if goes else "o"
    return mark, backup.id, format_time(backup.started), _age(plan, backup.started), backup.state.name.lower(), kept


def _age(plan: ClusterPlan, moment: datetime) -> str:
    seconds = (plan.now - moment).total_seconds()
    return format_duration(seconds) if seconds >= 0 else f"in {format_duration(-seconds)}"


def draw_line(verdicts: Sequence[Verdict], plan: ClusterPlan) -> list[str]:
    """The backups on a line, the oldest on the left, on a scale that stretches what is near: ``o`` stays, ``x`` goes, ``=`` is the
    window; and below it a scale.
    """
    ages = [max((plan.now - verdict.backup.started).total_seconds(), 0.0) for verdict in verdicts]
    oldest = max([*ages, (plan.now - plan.window_start).total_seconds(), 3600.0])

    def place(age: float) -> int:
        return _WIDTH - 1 - round((_WIDTH - 1) * math.log1p(age / 3600) / math.log1p(oldest / 3600))

    begin = place((plan.now - plan.window_start).total_seconds())
    line = ["=" if index >= begin else "-" for index in range(_WIDTH)]
    going = set(plan.going)
    for verdict, age in zip(verdicts, ages, strict=True):
        index = place(age)
        goes = verdict.backup.id in going
        line[index] = "x" if goes and line[index] != "o" else "o"
    scale = [" "] * _WIDTH
    for age, text in ((365 * 86400, "1y"), (30 * 86400, "1mo"), (7 * 86400, "1w"), (86400, "1d"), (3600, "1h")):
        index = place(age)
        if age <= oldest and index + len(text) <= _WIDTH:
            scale[index : index + len(text)] = text
    return ["".join(line), "".join(scale).rstrip()]


def show_removed(output: Output, expiry: RepositoryExpiry) -> None:
    """What was removed, and what went wrong."""
    name = expiry.settings.name
    for report in expiry.reports:
        output.line(
            f"{name}: {len(report.backups)} backups of cluster {', '.join(report.plan.clusters)} are gone, with"
            f" {report.wal_objects:,} objects of WAL ({format_size(report.wal_bytes)})",
            "green",
        )
    if expiry.error is not None and expiry.plans:
        output.styled((f"{name}: error: ", "bold red"), (str(expiry.error), ""))
        if expiry.error.hint:
            output.styled(("hint: ", "bold"), (expiry.error.hint, ""))


def expiry_document(expiry: RepositoryExpiry) -> dict[str, object]:
    """The keys that docs/reference/json.md promises."""
    rules = None if expiry.request is None else expiry.request.rules
    reports = {report.plan.system_identifier: report for report in expiry.reports}
    return {
        "name": expiry.settings.name,
        "url": expiry.settings.url,
        "rules": None
        if rules is None
        else {
            "window": rules.window,
            "daily": rules.daily,
            "weekly": rules.weekly,
            "monthly": rules.monthly,
            "yearly": rules.yearly,
            "minimum": rules.minimum,
            "time_zone": rules.zone,
            "grace": rules.grace,
        },
        "clusters": [
            _cluster_document(plan, preview, reports.get(plan.system_identifier))
            for plan, preview in zip(expiry.plans, expiry.previews, strict=True)
        ],
        "error": None
        if expiry.error is None
        else {
            "code": expiry.error.exit_code,
            "name": type(expiry.error).__name__,
            "message": str(expiry.error),
            "hint": expiry.error.hint,
        },
    }


def _cluster_document(plan: ClusterPlan, preview: WalPreview, report: ExpireReport | None) -> dict[str, object]:
    going = set(plan.going)
    return {
        "system_identifier": str(plan.system_identifier),
        "clusters": plan.clusters,
        "now": plan.now,
        "window_start": plan.window_start,
        "backups": [
            {
                "id": verdict.backup.id,
                "started": verdict.backup.started,
                "finished": verdict.backup.finished,
                "stored": verdict.backup.stored,
                "state": verdict.backup.state.name.lower(),
                "goes": verdict.backup.id in going,
                "kept_by": verdict.kept_by,
            }
            for verdict in plan.verdicts
        ],
        "unreadable": [{"id": id_, "reason": why} for id_, why in plan.unreadable.items()],
        "notes": plan.notes,
        "silence": plan.silence,
        "wal": {
            "objects": preview.objects,
            "bytes": preview.bytes,
            "complete": preview.complete,
            "kept": []
            if plan.needed is None
            else [
                {
                    "timeline": timeline,
                    "start_lsn": format_lsn(begin),
                    "end_lsn": None if end is None else format_lsn(end),
                }
                for timeline, spans in sorted(plan.needed.spans().items())
                for begin, end in spans
            ],
        },
        "removed": None
        if report is None
        else {"backups": report.backups, "wal_objects": report.wal_objects, "wal_bytes": report.wal_bytes},
    }
