"""``pgkeep completion``: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from pgkeep.cli.options import Context, common_options, examples

__all__ = ["command"]

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(
    "completion",
    epilog=examples(
        "pgkeep completion bash > /etc/bash_completion.d/pgkeep",
        "pgkeep completion zsh > ~/.zfunc/_pgkeep",
        "pgkeep completion fish > ~/.config/fish/completions/pgkeep.fish",
    ),
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@common_options
def command(context: Context, shell: str) -> None:
    """Print the completion script of a shell."""
    from pgkeep.cli.main import main

    script = SHELLS[shell](main, {}, "pgkeep", "_PGKEEP_COMPLETE").source()
    context.output.document({"shell": shell, "script": script})
    context.output.line(script)
