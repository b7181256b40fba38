"""``pgkeep list``: the backups there are."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.units import format_duration, format_size, format_time

__all__ = ["command"]


@click.command(
    "list",
    short_help="List the backups.",
    epilog=examples(
        "pgkeep list",
        "pgkeep list --json",
        "pgkeep list --repository file:///backups/auth_db --key-file recovery-key.txt",
    ),
)
@common_options
@repository_options
def command(context: Context, chosen: Chosen) -> None:
    """List the backups of a cluster, oldest first.

    LOGICAL is what the files hold, STORED what a restore reads, NEW what the backup added to the repository.
    """
    from pgkeep.cli.backup_documents import backup_document, format_lsn
    from pgkeep.verify import VerifyMemory

    repository = chosen.open()
    memory = VerifyMemory(repository.store, repository)
    manifests = list(repository.catalog.read_all(chosen.cluster))
    rows = [
        (
            manifest.id,
            manifest.cluster,
            "verified" if manifest.id in memory.backups else "taken",
            format_time(manifest.started),
            format_duration((manifest.finished - manifest.started).total_seconds()),
            format_size(manifest.logical_size),
            format_size(manifest.stored_size),
            format_size(manifest.new_size),
            str(manifest.timeline),
            format_lsn(manifest.stop_lsn),
            manifest.label,
        )
        for manifest in manifests
    ]
    columns = (
        "BACKUP", "CLUSTER", "STATE", "BEGUN", "TOOK", "LOGICAL", "STORED", "NEW", "TLI", "STOP LSN", "LABEL",
    )  # fmt: skip
    if rows:
        context.output.table(columns, rows, right=("TOOK", "LOGICAL", "STORED", "NEW", "TLI"))
    else:
        context.output.line(f"no backup in {repository.store.url} yet; pgkeep backup takes one")
    context.output.document(
        {
            "repository": repository.store.url,
            "backups": [backup_document(manifest, memory.backups.get(manifest.id)) for manifest in manifests],
        }
    )
