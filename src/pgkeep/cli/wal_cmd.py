"""``pgkeep wal``: write-ahead log into the repositories and out of them."""

from __future__ import annotations

import click

from pgkeep.cli.lazy_group import LazyGroup
from pgkeep.cli.options import add_global_options, examples

__all__ = ["COMMANDS", "command"]

COMMANDS = {
    "receive": ("pgkeep.cli.wal_receive_cmd", "Stream WAL from the server into the repositories, until stopped."),
    "push": ("pgkeep.cli.wal_push_cmd", "Store a WAL file, for archive_command."),
    "fetch": ("pgkeep.cli.wal_fetch_cmd", "Bring a WAL file back, for restore_command."),
    "status": ("pgkeep.cli.wal_status_cmd", "Show what WAL is held, what is missing, and how old the newest is."),
    "claim": ("pgkeep.cli.wal_claim_cmd", "Say that this server is the one whose WAL is archived."),
}
"""Name -> (module with ``command``, one-line help)."""


@click.command(
    "wal",
    cls=LazyGroup,
    table=COMMANDS,
    epilog=examples("pgkeep wal receive", "pgkeep wal status", "archive_command = 'pgkeep wal push %p'"),
)
@add_global_options
def command() -> None:
    """Write-ahead log: into the repositories, and out of them."""
