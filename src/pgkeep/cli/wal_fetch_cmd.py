"""``pgkeep wal fetch``: one WAL file out of the repositories, for ``restore_command``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import Interrupted, PgkeepError, UsageError
from pgkeep.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeep.repository import Repository
    from pgkeep.wal.fetch_source import WalSource

__all__ = ["command"]

_PREFETCH = 16
"""Segments kept ready where no configuration says how many."""

_JOBS = 4
"""Threads that bring them: they wait for the store more than they work."""


class FetchCommand(click.Command):
    """Says before its words are read that PostgreSQL reads the exit code: a mistake in them must not mean "absent"."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click."""
        if parent is not None:
            parent.ensure_object(Context).for_restore_command = True
        return super().make_context(info_name, args, parent, **extra)


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value).total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "fetch",
    cls=FetchCommand,
    short_help="Bring a WAL file back, for restore_command.",
    epilog=examples(
        "restore_command = 'pgkeep wal fetch %f %p'",
        "pgkeep wal fetch --setting >> postgresql.auto.conf",
        "pgkeep wal fetch 00000002.history /tmp/00000002.history",
    ),
)
@common_options
@repository_options
@click.option(
    "--prefetch",
    type=click.IntRange(0, 256),
    metavar="N",
    help=f"Segments that a process in the background keeps ready; 0 for none. Default: as configured, else {_PREFETCH}.",
)
@click.option(
    "--time-limit",
    default="5min",
    show_default=True,
    metavar="DURATION",
    callback=_seconds,
    help="How long a store may take for one file.",
)
@click.option(
    "--setting", is_flag=True, help="Print the line for postgresql.conf with the quickest client, and do nothing else."
)
@click.option("--absent-code", type=int, default=1, hidden=True)
@click.option("--serve", type=int, metavar="LOCK", hidden=True)
@click.argument("name", required=False)
@click.argument("path", required=False, type=click.Path(path_type=Path))
def command(
    context: Context,
    chosen: Chosen,
    prefetch: int | None,
    time_limit: float,
    setting: bool,
    absent_code: int,
    serve: int | None,
    name: str | None,
    path: Path | None,
) -> None:
    """Bring the WAL file NAME to PATH, for restore_command: %f and %p.

    Ends with 0 once it is there, with 1 only where it is absent from every repository of the cluster, each of them having
    answered, and above 125 for everything else, so that the server stops instead of ending its recovery early: 200 and the
    usual exit code, 130 and 143 for signals.
    """
    job = _Fetch(context, chosen, prefetch, time_limit)
    if setting:
        _print_setting(context, job)
    elif name is None or path is None:
        raise UsageError("missing NAME and PATH", hint="pgkeep wal fetch --help shows what it takes")
    elif serve is not None:
        job.serve(name, path, serve)
    elif job.fetch(name, path):
        context.output.document({"name": name, "path": path, "found": True})
    else:
        context.output.document({"name": name, "path": path, "found": False})
        context.exit(absent_code)


class _Fetch:
    """One call, with what its options mean."""

    def __init__(self, context: Context, chosen: Chosen, prefetch: int | None, time_limit: float) -> None:
        self._context = context
        self._chosen = chosen
        self._prefetch = prefetch
        self._time_limit = time_limit
        self._options = click.get_current_context().params

    def fetch(self, name: str, path: Path) -> bool:
        """Ask the prefetcher, else do it here and start one; False where the file is absent."""
        from pgkeep.wal.fetch import SOCKET
        from pgkeep.wal.thin_fetch import ask

        answer = None if path.is_absolute() or not os.path.exists(SOCKET) else ask(SOCKET, name, str(path))
        if answer is None:
            return self._fetch_here(name, path)
        code, message = answer
        if code > 1:
            error = PgkeepError(message or "the prefetcher failed")
            error.exit_code = code
            raise error
        if message:
            print(f"pgkeep: {message}", file=sys.stderr)
        return code == 0

    def _fetch_here(self, name: str, path: Path) -> bool:
        from pgkeep.wal.fetch import fetch_file
        from pgkeep.wal.fetch_identity import control_file_of, data_directory_of, only_cluster
        from pgkeep.wal.fetch_sources import WalSources

        # PostgreSQL ends a restore_command with SIGTERM; what it asked for must not appear after that
        parent = os.getppid()
        data_directory = data_directory_of(path)
        if data_directory is None:
            system_identifier, segment_size = only_cluster(self._chosen.open())
        else:
            control = control_file_of(data_directory)
            system_identifier, segment_size = control.system_identifier, control.wal_segment_size
        sources = WalSources(
            self._sources(system_identifier), system_identifier, segment_size, time_limit=self._time_limit
        )
        fetched = fetch_file(sources, name, path, lambda: os.getppid() == parent)
        if fetched is None:
            return False
        for note in fetched.notes:
            print(f"pgkeep: {note}", file=sys.stderr)
        if data_directory is not None and self._depth() and path.absolute().parent == data_directory / "pg_wal":
            from pgkeep.wal.prefetch_process import start_process

            start_process(data_directory, [*self.arguments(), name, str(path)])
        return True

    def serve(self, name: str, path: Path, lock: int) -> None:
        """Be the prefetcher, after NAME was fetched without one."""
        import logging

        from pgkeep.wal.fetch_identity import control_file_of, data_directory_of
        from pgkeep.wal.prefetch import Prefetcher
        from pgkeep.wal.prefetch_process import serve

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, level=logging.WARNING)
        data_directory = data_directory_of(path)
        if data_directory is None:
            raise UsageError(f"{path} is in no data directory's pg_wal")
        control = control_file_of(data_directory)
        prefetcher = Prefetcher(
            data_directory / "pg_wal",
            self._sources(control.system_identifier),
            control.wal_segment_size,
            depth=self._depth(),
            jobs=_JOBS,
            time_limit=self._time_limit,
            system_identifier=control.system_identifier,
            lock=lock,
        )
        prefetcher.start_after(name)
        try:
            serve(prefetcher, data_directory)
        except Interrupted as error:
            if error.signal_number != signal.SIGTERM:
                raise

    def arguments(self) -> list[str]:
        """The words of a command line that means the same, up to where NAME and PATH follow."""
        words = ["wal", "fetch", *self._chosen.arguments()]
        if self._prefetch is not None:
            words += ["--prefetch", str(self._prefetch)]
        return [*words, "--time-limit", f"{self._time_limit:g}s"]

    def _sources(self, system_identifier: int) -> list[WalSource]:
        """The repository that is named, or all of the cluster's."""
        from pgkeep.opening import open_repository
        from pgkeep.wal.fetch_source import WalSource

        named = self._options["repository"]
        if named is not None or any(self._options[name] for name in ("key_file", "passphrase_file", "named_key")):
            return [WalSource.of(named or "the repository", self._chosen.open, system_identifier)]
        config = self._context.config()

        def opener(settings: Any) -> Callable[[], Repository]:
            return lambda: open_repository(settings)

        return [
            WalSource.of(settings.name, opener(settings), system_identifier)
            for settings in config.repositories_of(config.cluster(self._options["cluster"]))
        ]

    def _depth(self) -> int:
        if self._prefetch is not None:
            return self._prefetch
        if self._is_address():
            return _PREFETCH
        return self._context.config().cluster(self._options["cluster"]).wal.prefetch

    def _is_address(self) -> bool:
        return "/" in (self._options["repository"] or "")


def _print_setting(context: Context, job: _Fetch) -> None:
    from pgkeep.postgres.recovery_settings import format_settings
    from pgkeep.wal.fetch import restore_command

    value = restore_command([sys.executable, "-P", "-m", "pgkeep", *job.arguments()])
    context.output.document({"restore_command": value})
    context.output.line(format_settings({"restore_command": value}).rstrip("\n"))
