"""``pgkeep wal claim``: this data directory is the one whose WAL is archived."""

from __future__ import annotations

from pathlib import Path

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options

__all__ = ["command"]


@click.command(
    "claim",
    short_help="Say that this server is the one whose WAL is archived.",
    epilog=examples("pgkeep wal claim --data-directory /var/lib/postgresql/15/main"),
)
@common_options
@repository_options
@click.option(
    "--data-directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The server's data directory. Default: the working directory.",
)
def command(context: Context, chosen: Chosen, data_directory: Path) -> None:
    """Claim the server's timeline for this data directory, after it was moved or copied here for good.

    The first server that pushes WAL of a timeline claims it; a clone of it is refused from then on, so that it cannot archive over the
    WAL of the one that it was made from.
    """
    from pgkeep.wal.claims import claim_timeline, data_directory_claim
    from pgkeep.wal.push import control_file_of

    control = control_file_of(data_directory)
    mine = data_directory_claim(data_directory)
    before = {}
    for repository in chosen.open_all():
        held = claim_timeline(repository, control.system_identifier, control.timeline, mine)
        before[repository.store.url] = None if held is None else str(held)
        was = "nobody" if held is None else "this one already" if held.is_same(mine) else str(held)
        context.output.line(f"timeline {control.timeline} in {repository.store.url}: {mine}; before: {was}", "green")
    context.output.document(
        {"timeline": control.timeline, "data_directory": mine.path, "host": mine.host, "before": before}
    )
