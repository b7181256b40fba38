"""``pgkeep thaw``: a backup back from cold storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.units import format_size, format_time

if TYPE_CHECKING:
    from pgkeep.cold import ThawReport

__all__ = ["command"]


@click.command(
    "thaw",
    short_help="Bring a backup back from cold storage, so that it can be restored.",
    epilog=examples(
        "pgkeep thaw 20260301T03 --dry-run",
        "pgkeep thaw 20260301T03 --tier Bulk --days 14",
        "pgkeep thaw 20260301T03 --wait && pgkeep restore 20260301T03 --target-dir /srv/restored",
    ),
)
@common_options
@repository_options
@click.argument("backup")
@click.option(
    "--tier", metavar="NAME", help="Expedited, Standard or Bulk; High or Standard on Azure. Default: Standard."
)
@click.option("--days", type=click.IntRange(1, 365), default=7, show_default=True, help="How long it can be read then.")
@click.option("--wait", is_flag=True, help="Wait until all of it can be read.")
@click.option("--dry-run", is_flag=True, help="Show what it takes, and ask for nothing.")
@click.option("--poll", type=click.FloatRange(min=0.1), default=60.0, hidden=True)
def command(
    context: Context,
    chosen: Chosen,
    backup: str,
    tier: str | None,
    days: int,
    wait: bool,
    dry_run: bool,
    poll: float,
) -> None:
    """Ask the store for everything of a backup that lies in an archive, with its WAL up to where the next backup takes over.

    Run it again at any time: it knows what is thawed and what was asked for already. With --wait it ends once
    all can be read. What is being thawed is paid for once.
    """
    from pgkeep.cold import ThawRequest, run_thaw
    from pgkeep.cold.from_settings import class_facts

    settings = chosen.settings()
    request = ThawRequest(
        backup=backup,
        cluster=chosen.cluster,
        tier=tier,
        days=days,
        wait=wait,
        dry_run=dry_run,
        poll=poll,
        facts=None if settings is None else class_facts(settings),
    )
    with context.progress() as progress:
        report = run_thaw(request, chosen.open(), progress)
    _show(context, report, dry_run=dry_run)


def _show(context: Context, report: ThawReport, *, dry_run: bool) -> None:
    from pgkeep.cold.needs import format_hours

    output, need = context.output, report.before
    if not need.objects:
        output.line(f"all of backup {report.backup} can be read", "green")
    else:
        for name, (count, size) in need.by_class.items():
            output.line(f"{count:,} objects in {name}, {format_size(size)}")
        output.line(f"asked for before: {need.thawing:,}; thawed: {need.thawed:,}")
        rows = [(name, tier, format_hours(hours), f"${cost:.2f}") for name, tier, hours, cost in need.choices()]
        if rows:
            output.table(("CLASS", "TIER", "READY WITHIN", "ABOUT"), rows, right=("READY WITHIN", "ABOUT"))
    if not dry_run and need.objects:
        output.line(
            f"asked for {report.requested:,} objects, {format_size(report.requested_bytes)}, tier {report.tier}"
        )
        if report.left == 0:
            output.line(f"all of backup {report.backup} can be read", "green")
        elif report.ready_by is not None:
            output.line(f"{report.left:,} are under way, the last should be there by {format_time(report.ready_by)}")
    if report.thawed_until is not None:
        output.line(f"what is thawed can be read until {format_time(report.thawed_until)}")
    output.document(
        {
            "backup": report.backup,
            "tier": report.tier,
            "dry_run": dry_run,
            "need": need.document(),
            "requested": report.requested,
            "requested_bytes": report.requested_bytes,
            "left": report.left,
            "ready_by": report.ready_by,
            "thawed_until": report.thawed_until,
        }
    )
