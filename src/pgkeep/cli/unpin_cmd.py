"""``pgkeep unpin``: take a pin back."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import NotFoundError

__all__ = ["command"]


@click.command("unpin", short_help="Take a pin back.", epilog=examples("pgkeep unpin 20261123T03"))
@common_options
@repository_options
@click.argument("backup")
def command(context: Context, chosen: Chosen, backup: str) -> None:
    """Take all pins of a backup back, in every repository that has it; the rules decide about it again.

    Takes credentials that may delete: whoever can only add to a repository ends no pin.
    """
    from pgkeep.cli.pin_cmd import find_everywhere
    from pgkeep.repository.manifests import BackupName

    removed = []
    for repository, manifest in find_everywhere(chosen, backup):
        count = repository.pins.remove(BackupName(manifest.id, manifest.system_identifier))
        removed.append((repository, manifest, count))
    manifest = removed[0][1]
    if not any(count for _, _, count in removed):
        raise NotFoundError(f"backup {manifest.id} is not pinned", hint="pgkeep list shows the pins")
    for repository, _, count in removed:
        if count:
            context.output.line(f"{manifest.id} is not pinned any more in {repository.store.url}", "green")
    context.output.document(
        {
            "backup": manifest.id,
            "repositories": [repository.store.url for repository, _, count in removed if count],
        }
    )
