"""``pgkeep repository``: care of a repository itself."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, add_global_options, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options

__all__ = ["command"]


@click.group("repository", epilog=examples("pgkeep repository reindex"))
@add_global_options
def command() -> None:
    """Care of a repository itself."""


@command.command("reindex", epilog=examples("pgkeep repository reindex"))
@common_options
@repository_options
def reindex(context: Context, chosen: Chosen) -> None:
    """Make the index again from what the packs say of themselves; for an index that was lost or damaged."""
    packs = chosen.open().reindex()
    context.output.line(f"the index covers {packs:,} packs again", "green")
    context.output.document({"packs": packs})
