"""``pgkeep show``: all that is known of one backup."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.units import utc_now

__all__ = ["command"]


@click.command(
    "show",
    short_help="Show all that is known of one backup.",
    epilog=examples("pgkeep show latest", "pgkeep show 20261123T03 --json"),
)
@common_options
@repository_options
@click.argument("backup", default="latest")
def command(context: Context, chosen: Chosen, backup: str) -> None:
    """Show a backup: sizes, times, LSNs, timeline, state.

    BACKUP is an id, an unambiguous beginning of one, or latest.
    """
    from pgkeep.cli.backup_documents import backup_document, backup_fields
    from pgkeep.drill.memory import proven_backups
    from pgkeep.verify import VerifyMemory

    repository = chosen.open()
    manifest = repository.catalog.find(backup, chosen.cluster)
    verified = VerifyMemory(repository.store, repository, objects=False).backups.get(manifest.id)
    proven = proven_backups(repository).get(manifest.id)
    pins = repository.pins.in_force(utc_now(), [manifest.system_identifier]).get(manifest.id, [])
    context.output.fields(backup_fields(manifest, verified, proven, pins))
    context.output.document({"repository": repository.store.url, **backup_document(manifest, verified, proven, pins)})
