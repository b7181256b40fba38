"""``pgkeep export``: a backup as the files of pg_basebackup, so that nobody is locked in."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.units import format_size

__all__ = ["command"]


@click.command(
    "export",
    short_help="Write a backup as the files of pg_basebackup.",
    epilog=examples("pgkeep export latest /srv/exchange/auth_db", "pgkeep export latest /srv/x --compress zstd"),
)
@common_options
@repository_options
@click.argument("backup")
@click.argument("directory", metavar="DIR")
@click.option("--format", type=click.Choice(["tar"]), default="tar", show_default=True, expose_value=False)
@click.option("--compress", type=click.Choice(["gzip", "zstd", "none"]), default="gzip", show_default=True)
def command(context: Context, chosen: Chosen, backup: str, directory: str, compress: str) -> None:
    """Write what ``pg_basebackup -F tar -z -X stream`` would have written: base.tar.gz, pg_wal.tar.gz, one archive for
    each tablespace, and backup_manifest.

    DIR must be empty or not there. The files are not encrypted.
    """
    from pgkeep.restore import export_tar

    repository = chosen.open()
    manifest = repository.catalog.find(backup, chosen.cluster)
    with context.progress() as progress:
        files = export_tar(repository, manifest, directory, compress=compress, progress=progress)
    context.output.fields([(path.name, format_size(path.stat().st_size)) for path in files])
    context.output.line(f"backup {manifest.id} is exported to {directory}; these files are not encrypted", "green")
    context.output.document(
        {
            "backup": manifest.id,
            "directory": directory,
            "files": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
        }
    )
