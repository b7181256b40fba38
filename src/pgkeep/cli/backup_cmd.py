"""``pgkeep backup``: a backup of a running cluster, into each of its repositories."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import parse_size

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
    epilog=examples("pgkeep backup", "pgkeep backup --label before-migration", "pgkeep backup --rate 50MB --jobs 1"),
)
@common_options
@cluster_option
@click.option("--label", help="A word to find the backup by. Default: the configuration's, or pgkeep.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker threads. Default: one for each processor.")
@click.option("--rate", type=SizeType(), help="At most this much a second, to spare the server: 50MB.")
@click.option(
    "--checkpoint",
    type=click.Choice(["fast", "spread"]),
    default="fast",
    show_default=True,
    help="Begin at once with a checkpoint, or wait for a gentle one.",
)
def command(
    context: Context, cluster: str | None, label: str | None, jobs: int | None, rate: int | None, checkpoint: str
) -> None:
    """Take a full backup over the replication protocol, complete with the WAL it needs.

    Safe to interrupt: nothing that is stored already is stored again by the next run.
    """
    from pgkeep.backup import BackupRequest, run_backup
    from pgkeep.cli.backup_documents import backup_document, backup_fields
    from pgkeep.errors import DamageError
    from pgkeep.opening import open_repository

    config = context.config()
    settings = config.cluster(cluster)
    request = BackupRequest(
        cluster=settings.name,
        dsn=settings.dsn,
        label=label or settings.backup.label or "pgkeep",
        jobs=jobs or settings.backup.jobs,
        rate=rate or settings.backup.rate,
        fast_checkpoint=checkpoint == "fast",
    )
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
    damaged = sum(len(manifest.damaged_pages) for _, manifest in manifests)
    if damaged:
        if context.json:
            context.exit(DamageError.exit_code)
        raise DamageError(
            f"the backup is stored, but {damaged} pages have wrong checksums on the server",
            hint=f"pgkeep show {manifests[0][1].id} lists them; look after the server's disk before anything else",
        )
