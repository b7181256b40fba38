"""``pgkeep backup``: a backup of a running cluster, into each of its repositories."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Literal

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import parse_size

if TYPE_CHECKING:
    from pgkeep.backup import Stored
    from pgkeep.config import Cluster
    from pgkeep.repository.manifests import Manifest

__all__ = ["command"]


class SizeType(click.ParamType[int]):
    """A size: ``50MB``, ``1GiB``."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    "backup",
    short_help="Take a backup of a running cluster.",
    epilog=examples(
        "pgkeep backup",
        "pgkeep backup --full --label before-migration",
        "pgkeep backup --mode local --jobs 4 --nice 10",
        "pgkeep backup --rate 50MB --jobs 1",
        "pgkeep backup --if-due",
    ),
)
@common_options
@cluster_option
@click.option("--label", help="A word to find the backup by. Default: the configuration's, or pgkeep.")
@click.option("--full", is_flag=True, help="Read everything, and rest on no earlier backup.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "stream", "local"]),
    help="Where pages come from: the replication protocol, the data directory on this machine, or what is best."
    " Default: the configuration's, or auto.",
)
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker threads. Default: one for each processor.")
@click.option("--rate", type=SizeType(), help="At most this much a second, to spare the server: 50MB.")
@click.option("--nice", type=click.IntRange(0, 19), help="Give way to other programs, as nice(1) does: 0 to 19.")
@click.option(
    "--checkpoint",
    type=click.Choice(["fast", "spread"]),
    default="fast",
    show_default=True,
    help="Begin at once with a checkpoint, or wait for a gentle one.",
)
@click.option(
    "--if-due",
    is_flag=True,
    help="Only where a restore would else take longer than objectives.rto by the time that the backup is there.",
)
def command(
    context: Context,
    cluster: str | None,
    label: str | None,
    full: bool,
    mode: Literal["auto", "stream", "local"] | None,
    jobs: int | None,
    rate: int | None,
    nice: int | None,
    checkpoint: str,
    if_due: bool,
) -> None:
    """Take a backup, complete with the WAL it needs.

    Every backup is a full one: any of them can be restored, or deleted, alone. Where it is known what changed since the
    last one, only that is read, and in any case only what changed is stored.
    Safe to interrupt: nothing that is stored already is stored again by the next run.
    """
    from pgkeep.backup import BackupRequest, run_backup_everywhere
    from pgkeep.cli.backup_documents import backup_document, backup_fields
    from pgkeep.opening import open_repository

    config = context.config()
    settings = config.cluster(cluster)
    if if_due and not _is_due(context, settings):
        return
    directory = settings.server.data_directory
    request = BackupRequest(
        cluster=settings.name,
        dsn=settings.dsn,
        label=label or settings.backup.label or "pgkeep",
        jobs=jobs or settings.backup.jobs,
        rate=rate or settings.backup.rate,
        fast_checkpoint=checkpoint == "fast",
        full=full,
        mode=mode or settings.backup.mode,
        data_directory=None if directory is None else str(directory),
        deep_check=settings.backup.deep_check,
    )
    if nice is not None:
        # threads and the receiving process inherit it
        os.nice(nice)
    opened = [(each.name, functools.partial(open_repository, each)) for each in config.repositories_of(settings)]
    with context.progress() as progress:
        outcomes = run_backup_everywhere(request, opened, progress)
    for outcome in outcomes:
        for backup_id in outcome.caught_up:
            context.output.line(f"backup {backup_id}, which repository {outcome.name} had missed, is there now")
        if outcome.manifest is not None:
            context.output.line(f"backup {outcome.manifest.id} is in repository {outcome.name}", "green")
    stored = [(outcome.name, outcome.manifest) for outcome in outcomes if outcome.manifest is not None]
    context.output.fields(backup_fields(stored[0][1])[3:])
    context.output.document(
        {
            "backups": [{"repository": name, **backup_document(manifest)} for name, manifest in stored],
            "caught_up": [
                {"repository": outcome.name, "id": backup_id} for outcome in outcomes for backup_id in outcome.caught_up
            ],
            "behind": [
                {
                    "repository": outcome.name,
                    "code": outcome.error.exit_code,
                    "message": str(outcome.error),
                    "hint": outcome.error.hint,
                }
                for outcome in outcomes
                if outcome.error is not None
            ],
        }
    )
    _report_damage(context, stored[0][1])
    _report_behind(context, outcomes, one_is_enough=settings.backup.policy == "first")


def _report_behind(context: Context, outcomes: list[Stored], *, one_is_enough: bool) -> None:
    """End with the error of the first repository that has not taken the backup, where the policy wants all of them to."""
    errors = [(outcome.name, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not errors:
        return
    taken = next(outcome for outcome in outcomes if outcome.manifest is not None)
    assert taken.manifest is not None
    name, error = errors[0]
    if one_is_enough:
        for name, error in errors:
            context.output.line(f"warning: repository {name} is behind: {error}", "yellow")
        return
    if context.json:
        context.exit(error.exit_code)
    behind = type(error)(
        f"backup {taken.manifest.id} is in repository {taken.name}, but {name} is behind: {error}",
        hint=f"once it is back, the next pgkeep backup brings it up to date; or: pgkeep copy --from {taken.name} --to {name}",
    )
    raise behind


def _report_damage(context: Context, manifest: Manifest) -> None:
    """End with a DamageError where the backup holds pages that are not as they should be; they are stored all the same."""
    from pgkeep.errors import DamageError

    found = [
        (len(manifest.damaged_pages), "have wrong checksums on the server"),
        (len(manifest.unexplained_pages), "changed on the server though no WAL tells of it"),
    ]
    described = [f"{count} pages {what}" for count, what in found if count]
    if not described:
        return
    if context.json:
        context.exit(DamageError.exit_code)
    raise DamageError(
        f"the backup is stored, but {', and '.join(described)}",
        hint=f"pgkeep show {manifest.id} lists them; look after the server's disk before anything else",
    )


def _is_due(context: Context, settings: Cluster) -> bool:
    """Whether the objectives ask for a backup now; says so, or when they will."""
    from pgkeep.cli.drill_cmd import known_drills
    from pgkeep.drill.predicted import forecasts
    from pgkeep.policy.objectives import backup_due
    from pgkeep.units import utc_now
    from pgkeep.wal.status import read_wal_status

    status = read_wal_status(context.config(), settings)
    now = status.server.now if status.server is not None else utc_now()
    found = backup_due(status, forecasts(status, known_drills(context.config(), settings), now), now)
    if found.due:
        context.output.line(f"a backup is due: {found.reason}")
        return True
    context.output.line(f"no backup was taken: {found.reason}", "green")
    context.output.document(
        {"backups": [], "caught_up": [], "behind": [], "due": False, "reason": found.reason, "due_at": found.until}
    )
    return False
