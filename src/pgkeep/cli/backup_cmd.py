"""``pgkeep backup``: a backup of a running cluster, into each of its repositories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import parse_size

if TYPE_CHECKING:
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
) -> None:
    """Take a backup, complete with the WAL it needs.

    Every backup is a full one: any of them can be restored, or deleted, alone. Where it is known what changed since the
    last one, only that is read, and in any case only what changed is stored.
    Safe to interrupt: nothing that is stored already is stored again by the next run.
    """
    from pgkeep.backup import BackupRequest, run_backup
    from pgkeep.cli.backup_documents import backup_document, backup_fields
    from pgkeep.opening import open_repository

    config = context.config()
    settings = config.cluster(cluster)
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
    manifests = []
    for repository_settings in config.repositories_of(settings):
        repository = open_repository(repository_settings)
        with context.progress() as progress:
            manifest = run_backup(request, repository, progress)
        manifests.append((repository_settings.name, manifest))
        context.output.line(f"backup {manifest.id} is in repository {repository_settings.name}", "green")
        context.output.fields(backup_fields(manifest)[3:])
    context.output.document(
        {"backups": [{"repository": name, **backup_document(manifest)} for name, manifest in manifests]}
    )
    _report_damage(context, [manifest for _, manifest in manifests])


def _report_damage(context: Context, manifests: list[Manifest]) -> None:
    """End with a DamageError where a backup holds pages that are not as they should be; they are stored all the same."""
    from pgkeep.errors import DamageError

    found = [
        (sum(len(manifest.damaged_pages) for manifest in manifests), "have wrong checksums on the server"),
        (
            sum(len(manifest.unexplained_pages) for manifest in manifests),
            "changed on the server though no WAL tells of it",
        ),
    ]
    described = [f"{count} pages {what}" for count, what in found if count]
    if not described:
        return
    if context.json:
        context.exit(DamageError.exit_code)
    raise DamageError(
        f"the backup is stored, but {', and '.join(described)}",
        hint=f"pgkeep show {manifests[0].id} lists them; look after the server's disk before anything else",
    )
