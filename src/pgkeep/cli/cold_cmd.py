"""``pgkeep cold``: old backups and WAL to cold storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import ConfigError
from pgkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from pgkeep.cold import ColdReport
    from pgkeep.cold.plan import KeptAt
    from pgkeep.config import RetentionSettings
    from pgkeep.repository import Repository

__all__ = ["command"]


@click.command(
    "cold",
    short_help="Move old backups and WAL to cold storage, as the rules say.",
    epilog=examples("pgkeep cold --dry-run", "pgkeep cold --repository offsite --json"),
)
@common_options
@repository_options
@click.option("--dry-run", is_flag=True, help="Show what would move, and move nothing.")
def command(context: Context, chosen: Chosen, dry_run: bool) -> None:
    """Move packs and WAL to the storage classes of [repository.NAME.cold]: those that only backups older than the rule need.

    What a younger backup shares, the newest backup, and all that listings and plans read stay where they are. Run it as often as
    you like, with credentials that may replace objects; it may be stopped at any moment.
    """
    from dataclasses import replace

    from pgkeep.cold import run_cold
    from pgkeep.cold.from_settings import cold_request

    settings = chosen.settings()
    request = None if settings is None else cold_request(context.config(), settings)
    if request is None:
        raise ConfigError(
            "there are no rules for cold storage",
            hint='[repository.NAME.cold] with after = "30d" and class = "GLACIER_IR" in the configuration',
        )
    repository = chosen.open()
    if settings is not None and settings.retention is not None:
        request = replace(request, kept_at=_kept_at(repository, settings.retention))
    with context.progress() as progress:
        report = run_cold(replace(request, dry_run=dry_run), repository, progress)
    _show(context, report, dry_run=dry_run)


def _kept_at(repository: Repository, retention: RetentionSettings) -> KeptAt:
    from pgkeep.cli.backup_states import states_of
    from pgkeep.policy import Rules
    from pgkeep.policy.keeping import keeping

    return keeping(repository, Rules.of(retention), states_of(repository))


def _show(context: Context, report: ColdReport, *, dry_run: bool) -> None:
    plan, output = report.plan, context.output
    for rule in plan.rules:
        infos = plan.moves.get(rule.storage_class, [])
        output.line(
            f"older than {format_duration(rule.after)}, to {rule.storage_class}:"
            f" {len(infos):,} objects, {format_size(sum(info.size for info in infos))}"
        )
    for reason, count in plan.stays.items():
        output.line(f"{count:,} objects stay: they {reason}")
    for backup in plan.needing:
        output.line(f"backup {backup} is younger than the rules and needs packs that are in an archive", "yellow")
    if report.locked:
        output.line(f"{report.locked:,} objects stay until their lock ends")
    for note in report.notes:
        output.line(f"note: {note}", "yellow")
    if not dry_run:
        output.line(f"{report.moved:,} objects moved, {format_size(report.moved_bytes)}", "green")
    output.document(
        {
            "dry_run": dry_run,
            "complete": report.complete,
            "moves": [
                {
                    "class": rule.storage_class,
                    "after_seconds": rule.after,
                    "objects": len(plan.moves.get(rule.storage_class, [])),
                    "bytes": sum(info.size for info in plan.moves.get(rule.storage_class, [])),
                }
                for rule in plan.rules
            ],
            "moved": report.moved,
            "moved_bytes": report.moved_bytes,
            "stays": [{"reason": reason, "objects": count} for reason, count in plan.stays.items()],
            "locked": report.locked,
            "backups_in_need_of_cold_packs": plan.needing,
            "notes": report.notes,
        }
    )
