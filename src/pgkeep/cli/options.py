"""What every command shares: the global options, before or after the command's name, and the context they fill."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgkeep import __version__
from pgkeep.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pgkeep.config import Config
    from pgkeep.progress import Progress

__all__ = ["Context", "add_global_options", "cluster_option", "common_options", "examples"]


class Context:
    """The global options of one call, and what commands make of them.

    ``config_path`` is ``--config``, or None to search; ``json`` is ``--json``; ``verbose`` counts ``-v``.
    ``for_restore_command``: PostgreSQL reads the exit code, by the rules of its ``restore_command``.
    """

    def __init__(self) -> None:
        self.config_path: Path | None = None
        self.json = False
        self.verbose = 0
        self.for_restore_command = False

    @functools.cached_property
    def output(self) -> Output:
        """Where results go: standard output, as text or as one JSON document."""
        return Output(json=self.json)

    def config(self) -> Config:
        """The settings in force. Raises ConfigError with every mistake found."""
        return self._config

    @functools.cached_property
    def _config(self) -> Config:
        from pgkeep.config import load_config

        return load_config(self.config_path)

    def progress(self) -> AbstractContextManager[Progress]:
        """``with context.progress() as progress:`` a bar, plain lines or JSON lines on standard error."""
        from pgkeep.cli.progress_bar import open_progress

        return open_progress(json=self.json)

    def exit(self, code: int) -> None:
        """End the command with this exit code; its results are printed already."""
        raise click.exceptions.Exit(code)


def _keep_config(click_context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        click_context.ensure_object(Context).config_path = value


def _keep_json(click_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        click_context.ensure_object(Context).json = True


def _keep_verbose(click_context: click.Context, _parameter: click.Parameter, value: int) -> None:
    context = click_context.ensure_object(Context)
    context.verbose = max(context.verbose, value)


_GLOBAL_OPTIONS = (
    click.option(
        "--config",
        metavar="FILE",
        type=click.Path(readable=False, path_type=Path),
        callback=_keep_config,
        expose_value=False,
        help="The configuration file, instead of the first one found.",
    ),
    click.option(
        "--json", is_flag=True, is_eager=True, callback=_keep_json, expose_value=False, help="Print one JSON document."
    ),
    click.option(
        "-v",
        "--verbose",
        count=True,
        is_eager=True,
        callback=_keep_verbose,
        expose_value=False,
        help="Say more; twice for everything.",
    ),
    click.version_option(__version__, "--version", prog_name="pgkeep", message="%(prog)s %(version)s"),
)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the global options, and its function the Context as first argument.

    Stands between ``@click.command`` and the command's own options, so that ``--help`` lists those first.
    """

    @functools.wraps(function)
    def with_context(*arguments: Any, **options: Any) -> Any:
        context = click.get_current_context().ensure_object(Context)
        return function(context, *arguments, **options)

    return add_global_options(with_context)


def add_global_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Only the options; for the group, whose callback needs no Context."""
    for option in reversed(_GLOBAL_OPTIONS):
        function = option(function)
    return function


def cluster_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--cluster NAME``, passed on as ``cluster: str | None``."""
    return click.option(
        "--cluster", metavar="NAME", help="The cluster's name in the configuration; needed where there are several."
    )(function)


def examples(*lines: str) -> str:
    """An epilog that shows commands, one a line, unwrapped: ``epilog=examples("pgkeep list", "pgkeep list --json")``."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
