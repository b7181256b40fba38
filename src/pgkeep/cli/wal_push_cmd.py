"""``pgkeep wal push``: a WAL file into the repositories, for ``archive_command``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pgkeep.config import Cluster

__all__ = ["command"]


@click.command(
    "push",
    short_help="Store a WAL file, for archive_command.",
    epilog=examples(
        "pgkeep wal push --archive-command",
        "cd /var/lib/postgresql/15/main && pgkeep wal push pg_wal/00000002.history",
    ),
)
@common_options
@cluster_option
@click.option(
    "--archive-command", "print_setting", is_flag=True, help="Print the setting that has the server push its WAL."
)
@click.argument("path", type=click.Path(path_type=Path), required=False)
def command(context: Context, cluster: str | None, path: Path | None, print_setting: bool) -> None:
    """Store a WAL file of the server's in the cluster's repositories; ends with 0 once it is durable there.

    The same content again is no error, other content under the same name is one. Segments that the server has finished beside it
    are stored, too. With --archive-command, prints the line for postgresql.conf: it asks a running receiver first, which takes a few
    milliseconds, and does the work itself where none runs.
    """
    from pgkeep.config import find_config
    from pgkeep.wal.push import Pusher, data_directory_of
    from pgkeep.wal.push_settings import push_state, settings_of_program

    settings = context.config().cluster(cluster)
    config = find_config(context.config_path)
    if config is None:
        raise ConfigError(
            "pushing needs a configuration file",
            hint="the server's archiver does not have your environment: pgkeep init",
        )
    if print_setting:
        _print_setting(context, config, settings)
        return
    if path is None:
        raise UsageError("name the file to push", hint="pgkeep wal push pg_wal/<file>, in the data directory")
    state = push_state(settings.spool)
    pusher = Pusher(settings_of_program(config, settings.name, state), state, data_directory_of(path))
    pusher.push(path)
    context.output.line(f"{path.name} is stored", "green")
    for warning in pusher.warnings:
        click.echo(f"warning: {warning}", err=True)
    context.output.document({"name": path.name, "repositories": list(settings.repositories)})


def _print_setting(context: Context, config: Path, settings: Cluster) -> None:
    from pgkeep.postgres.recovery_settings import quote_setting
    from pgkeep.wal import thin_push
    from pgkeep.wal.push import push_line
    from pgkeep.wal.push_settings import push_state

    value = push_line(
        sys.executable,
        Path(thin_push.__file__),
        settings.push_socket,
        settings.name,
        config,
        push_state(settings.spool),
    )
    context.output.line(f"archive_command = {quote_setting(value)}")
    context.output.document({"archive_command": value})
