"""``pgkeep export``: a backup as the files of pg_basebackup, so that nobody is locked in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.cli.target_options import open_repositories
from pgkeep.errors import UsageError
from pgkeep.units import format_size

if TYPE_CHECKING:
    from pgkeep.gpg import Lock

__all__ = ["command"]


@click.command(
    "export",
    short_help="Write a backup as the files of pg_basebackup.",
    epilog=examples(
        "pgkeep export latest /srv/exchange/auth_db",
        "pgkeep export latest /srv/x --compress zstd",
        "pgkeep export latest /srv/x --gpg 0123456789ABCDEF0123456789ABCDEF01234567",
        "gpg --decrypt /srv/x/base.tar.gz.gpg | tar xz -C /srv/unpacked",
    ),
)
@common_options
@repository_options
@click.argument("backup")
@click.argument("directory", metavar="DIR")
@click.option("--format", type=click.Choice(["tar"]), default="tar", show_default=True, expose_value=False)
@click.option("--compress", type=click.Choice(["gzip", "zstd", "none"]), default="gzip", show_default=True)
@click.option("--gpg", "recipient", metavar="RECIPIENT", help="Encrypt each file to this OpenPGP recipient.")
@click.option(
    "--gpg-passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Encrypt each file with AES-256 and the passphrase in this file.",
)
def command(
    context: Context,
    chosen: Chosen,
    backup: str,
    directory: str,
    compress: str,
    recipient: str | None,
    gpg_passphrase_file: Path | None,
) -> None:
    """Write what ``pg_basebackup -F tar -z -X stream`` would have written: base.tar.gz, pg_wal.tar.gz, one archive for
    each tablespace, and backup_manifest.

    DIR must be empty or not there. The files are encrypted only where --gpg or --gpg-passphrase-file says so: each is an OpenPGP
    message then, its name ends in .gpg, and no plain byte of it touches the disk.
    """
    from pgkeep.copies.several import nearest
    from pgkeep.restore import export_tar

    lock = _lock(recipient, gpg_passphrase_file)
    repositories = open_repositories(context, chosen)
    with context.progress() as progress:
        manifest, repository = nearest(
            repositories, lambda each: each.catalog.find(backup, chosen.cluster), progress.note
        )
        files = export_tar(repository, manifest, directory, compress=compress, lock=lock, progress=progress)
    context.output.fields([(path.name, format_size(path.stat().st_size)) for path in files])
    sealing = "not encrypted" if lock is None else "encrypted, each by itself: gpg --decrypt opens them"
    context.output.line(f"backup {manifest.id} is exported to {directory}; these files are {sealing}", "green")
    context.output.document(
        {
            "backup": manifest.id,
            "directory": directory,
            "encrypted": lock is not None,
            "files": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
        }
    )


def _lock(recipient: str | None, passphrase_file: Path | None) -> Lock | None:
    from pgkeep.gpg import Lock
    from pgkeep.repository import Passphrase

    if recipient is not None and passphrase_file is not None:
        raise UsageError("--gpg and --gpg-passphrase-file exclude each other", hint="leave one out")
    if recipient is not None:
        return Lock(recipient=recipient)
    return None if passphrase_file is None else Lock(passphrase=Passphrase.read(passphrase_file).passphrase)
