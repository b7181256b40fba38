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


@command.command(
    "create",
    short_help="Create a further repository, which the configuration names.",
    epilog=examples(
        "pgkeep repository create offsite",
        "pgkeep repository create offsite --share-keys-of local",
    ),
)
@common_options
@click.argument("name")
@click.option("--share-keys-of", metavar="NAME", help="Give it the keys of this one: copies need not be sealed anew.")
def create(context: Context, name: str, share_keys_of: str | None) -> None:
    """Create the repository NAME of the configuration, at its url and opened by its key.

    A key file that is not there is made. Repositories that share keys share who can read them; with keys of its own, what is stored in
    one says nothing of the other.
    """
    from pgkeep.cli.findings import show_findings
    from pgkeep.opening import create_repository, open_repository
    from pgkeep.repository import KeyFile

    config = context.config()
    settings = config.repository(name)
    shared = None if share_keys_of is None else open_repository(config.repository(share_keys_of))
    new_key = settings.key.kind == "file" and settings.key.path is not None and not settings.key.path.exists()
    if new_key:
        assert settings.key.path is not None
        KeyFile.generate(settings.key.path)
    repository, findings = create_repository(settings, share_keys_of=shared)
    recovery_key = repository.add_recovery_key() if repository.encrypted else None
    show_findings(context.output, findings)
    context.output.line(f"repository {name} is created at {settings.url}", "green")
    if new_key:
        context.output.line(f"its key is in {settings.key.path}")
    if recovery_key is not None:
        context.output.line(f"Recovery key of repository {name!r}, shown only this once:", "bold")
        context.output.line(f"  {recovery_key}")
    context.output.document(
        {
            "name": name,
            "url": settings.url,
            "key": str(settings.key),
            "shares_keys_of": share_keys_of,
            "recovery_key": recovery_key,
            "findings": [finding.document() for finding in findings],
        }
    )
