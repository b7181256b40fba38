"""``pgkeep restore``: a backup back into a directory or into its place, at any moment, and a server on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.backup_cmd import SizeType
from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.cli.target_options import (
    AskedTarget,
    cluster_settings,
    open_repositories,
    recovery_document,
    target_options,
)
from pgkeep.errors import UsageError
from pgkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from pgkeep.restore import RestoreOutcome, RestorePlan
    from pgkeep.restore.delta import DeltaCounts
    from pgkeep.restore.recover import Recovered

__all__ = ["command"]


@click.command(
    "restore",
    short_help="Bring a cluster back, to any moment.",
    epilog=examples(
        "pgkeep restore --target-dir /var/lib/postgresql/restored --plan",
        'pgkeep restore --target-dir /srv/copy --to "2025-06-01 03:15:00+09" --start',
        "pgkeep restore 20261123T03 --target-dir /srv/copy --tablespace /fast/ts=/srv/copy-ts --set port=5433",
        "pgkeep restore --target-dir /var/lib/postgresql/17/main --delta --plan",
        'pgkeep restore --in-place --to "5min ago" --carry token_blacklist --plan',
        "pgkeep restore --in-place --undo",
    ),
)
@common_options
@repository_options
@click.argument("backup", required=False)
@click.option("--target-dir", metavar="DIR", help="The data directory to make.")
@click.option("--in-place", is_flag=True, help="Stop the server, set its data aside, restore, start: all of it.")
@target_options
@click.option("--tablespace", "tablespaces", multiple=True, metavar="OLD=NEW", help="Another place for a tablespace.")
@click.option("--keep-archiving", is_flag=True, help="Leave the origin's archiving and standby settings on.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A server setting for the copy.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker threads. Default: one for each processor.")
@click.option("--delta", is_flag=True, help="Overwrite a stopped cluster in DIR, writing only what differs.")
@click.option("--rate", type=SizeType(), help="At most this much a second, to spare others' disks: 50MB.")
@click.option("--nice", type=click.IntRange(0, 19), help="How far to stand back from other processes.")
@click.option("--start", is_flag=True, help="Start the server, follow its recovery, say what it reached.")
@click.option("--carry", multiple=True, metavar="TABLE", help="With --in-place: bring the table's newer rows along.")
@click.option(
    "--carry-until", metavar="TIME|LSN", help="The moment from which --carry takes them. Default: the latest."
)
@click.option("--work-dir", metavar="DIR", help="Where --carry recovers to that moment. Default: beside the data.")
@click.option("--no-rollback", is_flag=True, help="With --in-place: leave it as it is where a step fails.")
@click.option("--undo", is_flag=True, help="With --in-place: put back what the last restore set aside.")
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done, and stop.")
def command(
    context: Context,
    chosen: Chosen,
    asked: AskedTarget,
    backup: str | None,
    target_dir: str | None,
    in_place: bool,
    tablespaces: tuple[str, ...],
    keep_archiving: bool,
    settings: tuple[str, ...],
    jobs: int | None,
    delta: bool,
    rate: int | None,
    nice: int | None,
    start: bool,
    carry: tuple[str, ...],
    carry_until: str | None,
    work_dir: str | None,
    no_rollback: bool,
    undo: bool,
    plan_only: bool,
) -> None:
    """Restore a cluster: plan, write, make durable, and with --start or --in-place recover.

    BACKUP is an id, an unambiguous beginning of one, or latest; without it the best one for the target is taken, and without
    a target everything that the WAL has comes back. What is in DIR already is moved aside, and overwritten only with --delta. With
    --start the server listens on a Unix socket only.
    """
    if in_place:
        if delta:
            raise UsageError(
                "--in-place sets the old data aside to be able to put it back, and --delta overwrites it",
                hint="to go without that safety, stop the server and use: pgkeep restore --delta --target-dir DIR",
            )
        _refuse(
            "--in-place",
            {
                "--target-dir": target_dir is not None,
                "--start": start,
                "--keep-archiving": keep_archiving,
                "--rate": rate is not None,
                "--nice": nice is not None,
                "--standby": "--standby" in asked.options(),
                "--action": "--action" in asked.options(),
            },
        )
        from pgkeep.cli.in_place_options import InPlaceOptions

        options = InPlaceOptions(
            backup=backup,
            asked=asked,
            tablespaces=_pairs("--tablespace", tablespaces),
            settings=_pairs("--set", settings),
            carry=list(carry),
            carry_until=carry_until,
            work_directory=work_dir,
            jobs=jobs,
            rollback=not no_rollback,
        )
        if undo:
            _refuse("--undo", dict.fromkeys(options.given(), True))
            options.undo(context, chosen, plan_only=plan_only)
        else:
            options.restore(context, chosen, plan_only=plan_only)
        return
    needing = {
        "--undo": undo,
        "--carry": bool(carry),
        "--carry-until": carry_until is not None,
        "--work-dir": work_dir is not None,
        "--no-rollback": no_rollback,
    }
    for name, given in needing.items():
        if given:
            raise UsageError(f"{name} goes with --in-place", hint="pgkeep restore --help")
    if target_dir is None:
        raise UsageError("where to restore is not said", hint="name --target-dir DIR, or restore --in-place")
    _restore(
        context,
        chosen,
        asked,
        backup=backup,
        target_dir=target_dir,
        tablespaces=_pairs("--tablespace", tablespaces),
        keep_archiving=keep_archiving,
        settings=_pairs("--set", settings),
        jobs=jobs,
        delta=delta,
        rate=rate,
        nice=nice,
        start=start,
        plan_only=plan_only,
    )


def _refuse(option: str, others: dict[str, bool]) -> None:
    for name, given in others.items():
        if given:
            raise UsageError(f"{option} and {name} contradict each other", hint="leave one of them out")


def _restore(
    context: Context,
    chosen: Chosen,
    asked: AskedTarget,
    *,
    backup: str | None,
    target_dir: str,
    tablespaces: dict[str, str],
    keep_archiving: bool,
    settings: dict[str, str],
    jobs: int | None,
    delta: bool,
    rate: int | None,
    nice: int | None,
    start: bool,
    plan_only: bool,
) -> None:
    import msgspec

    from pgkeep.cli.cold_prices import priced
    from pgkeep.copies.several import nearest
    from pgkeep.restore import RestoreRequest, make_plan, run_restore
    from pgkeep.restore.hooks_of import hooks_of

    cluster = cluster_settings(context, chosen)
    request = RestoreRequest(
        cluster=chosen.cluster,
        backup=backup,
        recovery=asked.target(None if cluster is None else cluster.time_zone, backup_is_named=backup is not None),
        target=target_dir,
        tablespaces=tablespaces,
        keep_archiving=keep_archiving,
        settings=settings,
        start=start,
        jobs=jobs,
        delta=delta,
        rate=rate,
        nice=nice,
        fetch_command=[sys.executable, "-P", "-m", "pgkeep", "wal", "fetch", *chosen.arguments()],
        fetch_files=chosen.files(),
    )
    if cluster is not None:
        request = msgspec.structs.replace(request, spool=str(cluster.spool), prefetch=cluster.wal.prefetch)
    repository, *others = open_repositories(context, chosen)
    if plan_only:
        notes: list[str] = []
        with priced(chosen):
            plan, _ = nearest([repository, *others], lambda each: make_plan(request, each), notes.append)
        plan.notes.extend(notes)
        _show_plan(context, plan)
        context.output.document({"plan": _plan_document(plan)})
        return
    with context.progress() as progress, priced(chosen):
        after = None if cluster is None else hooks_of(cluster, Path(os.path.abspath(target_dir)), progress)
        outcome = run_restore(request, repository, progress, others=others, after=after)
    _show_outcome(context, outcome)


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            example = "port=5433" if option == "--set" else "/old/place=/new/place"
            raise UsageError(f"{option} takes NAME=VALUE, not {word!r}", hint=f"like {option} {example}")
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
    if outcome.delta is not None:
        context.output.fields([(name, format_size(size)) for name, size in _delta_bytes(outcome.delta).items()])
    if recovery is None:
        context.output.line(f"next: pg_ctl -D {plan.target} start (PostgreSQL {plan.major})")
    else:
        _show_recovered(context, outcome, recovery)
    context.output.document(
        {
            "plan": _plan_document(plan),
            "seconds": outcome.seconds,
            "notes": outcome.notes,
            "delta": None
            if outcome.delta is None
            else {
                **{f"{name}_bytes": size for name, size in _delta_bytes(outcome.delta).items()},
                "removed_files": outcome.delta.removed_files,
            },
            "recovery": None
            if recovery is None
            else {
                "state": recovery.state,
                "lsn": str(recovery.lsn),
                "timeline": recovery.timeline,
                "last_transaction": recovery.last_transaction,
                "fetched_bytes": recovery.fetched,
                "waited_seconds": recovery.waited,
                "dsn": outcome.dsn,
                "log_file": outcome.log_file,
            },
        }
    )


def _delta_bytes(counts: DeltaCounts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("compared", "kept", "fetched", "written", "removed")}


def _show_recovered(context: Context, outcome: RestoreOutcome, recovery: Recovered) -> None:
    states = {
        "promoted": "the server runs",
        "paused": "the server runs, paused at its target; SELECT pg_wal_replay_resume() ends recovery",
        "shut down": "the server was shut down at its target",
        "standby": "the server runs as a standby",
    }
    reached = f"recovered to {recovery.lsn}, timeline {recovery.timeline}"
    context.output.line(f"{states[recovery.state]}: {reached}", "green")
    if outcome.dsn is not None and recovery.state != "shut down":
        context.output.fields([("connect", f"psql '{outcome.dsn}'"), ("log", outcome.log_file or "")])


def _plan_document(plan: RestorePlan) -> dict[str, object]:
    return {
        "backup": plan.manifest.id,
        "cluster": plan.manifest.cluster,
        "target_dir": plan.target,
        "recovery": recovery_document(plan.recovery),
        "logical_bytes": plan.manifest.logical_size,
        "stored_bytes": plan.manifest.stored_size,
        "server_version": plan.manifest.server_version,
        "server_binaries": None if plan.server is None else plan.server.place,
        "tablespaces": [
            {"oid": tablespace.oid, "old": tablespace.old, "new": tablespace.new} for tablespace in plan.tablespaces
        ],
        "room": [
            {"place": place, "free_bytes": free, "needed_bytes": needed} for place, (free, needed) in plan.room.items()
        ],
        "moved_aside": [{"old": old, "new": new} for old, new in plan.moved_aside],
        "delta": None
        if plan.delta is None
        else {
            "files": plan.delta.files,
            "existing_bytes": plan.delta.size,
            "half_restore": plan.delta.half,
            "removed_files": plan.delta.extras.files,
            "removed_bytes": plan.delta.extras.size,
            "wal_moved_aside": plan.delta.wal,
            "wal_aside": plan.delta.wal_aside,
        },
        "notes": plan.notes,
    }
