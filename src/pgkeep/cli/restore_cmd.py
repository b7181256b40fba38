"""``pgkeep restore``: a backup back into a directory, and a server on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import UsageError
from pgkeep.units import format_duration

if TYPE_CHECKING:
    from pgkeep.restore import RestoreOutcome, RestorePlan

__all__ = ["command"]


@click.command(
    "restore",
    short_help="Bring a backup back into a directory.",
    epilog=examples(
        "pgkeep restore --target-dir /var/lib/postgresql/restored --plan",
        "pgkeep restore latest --target-dir /var/lib/postgresql/restored --start",
        "pgkeep restore 20261123T03 --target-dir /srv/copy --tablespace /fast/ts=/srv/copy-ts --set port=5433",
    ),
)
@common_options
@repository_options
@click.argument("backup", default="latest")
@click.option("--target-dir", required=True, metavar="DIR", help="The data directory to make.")
@click.option("--tablespace", "tablespaces", multiple=True, metavar="OLD=NEW", help="Another place for a tablespace.")
@click.option("--keep-archiving", is_flag=True, help="Leave the origin's archiving and standby settings on.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A server setting for the copy.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker threads. Default: one for each processor.")
@click.option("--start", is_flag=True, help="Start the server, follow its recovery, say what it reached.")
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done, and stop.")
def command(
    context: Context,
    chosen: Chosen,
    backup: str,
    target_dir: str,
    tablespaces: tuple[str, ...],
    keep_archiving: bool,
    settings: tuple[str, ...],
    jobs: int | None,
    start: bool,
    plan_only: bool,
) -> None:
    """Restore a backup: plan, write, make durable, and with --start recover.

    BACKUP is an id, an unambiguous beginning of one, or latest. What is in DIR already is moved aside, never
    overwritten. With --start the server listens on a Unix socket only.
    """
    from pgkeep.restore import RestoreRequest, make_plan, run_restore

    request = RestoreRequest(
        cluster=chosen.cluster,
        backup=backup,
        target=target_dir,
        tablespaces=_pairs("--tablespace", tablespaces),
        keep_archiving=keep_archiving,
        settings=_pairs("--set", settings),
        start=start,
        jobs=jobs,
    )
    repository = chosen.open()
    if plan_only:
        plan = make_plan(request, repository)
        _show_plan(context, plan)
        context.output.document({"plan": _plan_document(plan)})
        return
    with context.progress() as progress:
        outcome = run_restore(request, repository, progress)
    _show_outcome(context, outcome)


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} takes NAME=VALUE, not {word!r}")
        pairs[name] = value
    return pairs


def _show_plan(context: Context, plan: RestorePlan) -> None:
    from pgkeep.restore.plan import describe

    for line in describe(plan):
        context.output.line(line)


def _show_outcome(context: Context, outcome: RestoreOutcome) -> None:
    plan, recovery = outcome.plan, outcome.recovery
    for old, new in plan.moved_aside:
        context.output.line(f"{old} was moved aside to {new}")
    for note in outcome.notes:
        context.output.line(f"note: {note}", "yellow")
    context.output.line(f"backup {plan.manifest.id} is restored in {plan.target}", "green")
    context.output.fields([(phase, format_duration(seconds)) for phase, seconds in outcome.seconds.items()])
    if recovery is not None:
        context.output.line(f"the server runs: recovered to {recovery.lsn}, timeline {recovery.timeline}", "green")
        context.output.fields([("connect", f"psql '{recovery.dsn}'"), ("log", recovery.log_file)])
    else:
        context.output.line(f"next: pg_ctl -D {plan.target} start (PostgreSQL {plan.major})")
    document: dict[str, object] = {
        "plan": _plan_document(plan),
        "seconds": outcome.seconds,
        "notes": outcome.notes,
        "recovery": None,
    }
    if recovery is not None:
        document["recovery"] = {
            "lsn": str(recovery.lsn),
            "timeline": recovery.timeline,
            "dsn": recovery.dsn,
            "log_file": recovery.log_file,
        }
    context.output.document(document)


def _plan_document(plan: RestorePlan) -> dict[str, object]:
    return {
        "backup": plan.manifest.id,
        "cluster": plan.manifest.cluster,
        "target_dir": plan.target,
        "logical_bytes": plan.manifest.logical_size,
        "stored_bytes": plan.manifest.stored_size,
        "server_version": plan.manifest.server_version,
        "server_binaries": plan.server,
        "tablespaces": [
            {"oid": tablespace.oid, "old": tablespace.old, "new": tablespace.new} for tablespace in plan.tablespaces
        ],
        "room": [
            {"place": place, "free_bytes": free, "needed_bytes": needed} for place, (free, needed) in plan.room.items()
        ],
        "moved_aside": [{"old": old, "new": new} for old, new in plan.moved_aside],
        "notes": plan.notes,
    }
