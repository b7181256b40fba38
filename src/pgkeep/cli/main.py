"""The ``pgkeep`` command: finds the subcommand, runs it, and turns whatever it raises into a message and an exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

import click

from pgkeep.cli.lazy_group import LazyGroup
from pgkeep.cli.options import Context, add_global_options, examples
from pgkeep.cli.output import print_error
from pgkeep.errors import Interrupted, PgkeepError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

__all__ = ["COMMANDS", "main", "run"]

COMMANDS = {
    "init": ("pgkeep.cli.init_cmd", "Check a server, create its repository, key and configuration."),
    "check": ("pgkeep.cli.check_cmd", "Test everything a backup needs; each failure says what mends it."),
    "backup": ("pgkeep.cli.backup_cmd", "Take a backup of a running cluster."),
    "list": ("pgkeep.cli.list_cmd", "List the backups."),
    "show": ("pgkeep.cli.show_cmd", "Show all that is known of one backup."),
    "restore": ("pgkeep.cli.restore_cmd", "Bring a backup back into a directory."),
    "restore-point": ("pgkeep.cli.restore_point_cmd", "Name this moment, so that a restore can go back to it."),
    "wal": ("pgkeep.cli.wal_cmd", "Receive, push, fetch and watch write-ahead log."),
    "status": ("pgkeep.cli.status_cmd", "Show how each repository stands, and how far it is behind the best."),
    "copy": ("pgkeep.cli.copy_cmd", "Copy backups and WAL from one repository into another."),
    "verify": ("pgkeep.cli.verify_cmd", "Check stored bytes and backups against damage."),
    "expire": ("pgkeep.cli.expire_cmd", "Remove the backups and the WAL that no rule keeps."),
    "collect": ("pgkeep.cli.collect_cmd", "Delete the contents that no backup needs any more."),
    "pin": ("pgkeep.cli.pin_cmd", "Keep a backup whatever the rules say, for a reason."),
    "unpin": ("pgkeep.cli.unpin_cmd", "Take a pin back."),
    "drill": ("pgkeep.cli.drill_cmd", "Prove that a backup comes back: restore, recover, check, measure."),
    "compare": ("pgkeep.cli.compare_cmd", "Hold a restored cluster against the live one, row for row."),
    "export": ("pgkeep.cli.export_cmd", "Write a backup as the files of pg_basebackup."),
    "cold": ("pgkeep.cli.cold_cmd", "Move old backups and WAL to cold storage, as the rules say."),
    "thaw": ("pgkeep.cli.thaw_cmd", "Bring a backup back from cold storage, so that it can be restored."),
    "key": ("pgkeep.cli.key_cmd", "Who can open a repository: list, add, remove, rotate, export, verify."),
    "repository": ("pgkeep.cli.repository_cmd", "Care of a repository itself."),
    "demo": ("pgkeep.cli.demo_cmd", "See it all at work on a throw-away server."),
    "completion": ("pgkeep.cli.completion_cmd", "Print the completion script of a shell."),
}
"""Name -> (module with ``command``, one-line help). Here, so that ``--help`` imports none of them."""


_LAST_ABSENT, _FETCH_ERRORS = 125, 200
"""PostgreSQL takes exit codes up to 125 of its restore_command for "there is no such file", and may end recovery on them
(src/backend/access/transam/xlogarchive.c): errors of ``wal fetch`` are put above."""


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "pgkeep init 'host=db.example port=5432 user=replication_user dbname=auth_db'",
        "pgkeep backup",
        "pgkeep restore --target-dir /srv/restored --start",
    ),
)
@add_global_options
def main() -> None:
    """Back up PostgreSQL clusters, and bring them back."""


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: runs the command line and exits with one of the documented exit codes."""
    if "_PGKEEP_COMPLETE" in os.environ:
        main.main(prog_name="pgkeep")
    # modules and maps live to the end: to look for garbage after every 700 objects took a fifth of a small incremental's processor time
    gc.set_threshold(100_000, 50, 100)
    sys.exit(execute(list(sys.argv[1:] if arguments is None else arguments)))


def execute(arguments: list[str]) -> int:
    """Run one command line; returns its exit code, having printed any error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character must not turn a finished backup into a failure.
            stream.reconfigure(errors="backslashreplace")
    context = Context()
    # A command line that cannot be parsed still has to answer in JSON when it asks for it.
    context.json = "--json" in arguments
    context.for_restore_command = ("wal", "fetch") in pairwise(arguments)
    try:
        with _signals_interrupt():
            code = _invoke(arguments, context)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence(sys.stdout)
        return 128 + signal.SIGPIPE
    except PgkeepError as error:
        return _report(error, context)
    except KeyboardInterrupt:
        return _report(Interrupted(), context)
    except Exception as error:  # noqa: BLE001  (the last line of defence: a person gets a sentence, not a traceback)
        text = " ".join(str(error).split())
        unexpected = PgkeepError(
            f"unexpected {type(error).__name__}{': ' + text if text else ''}",
            hint=None if context.verbose else "run it again with -v to see where it came from",
        )
        if context.verbose:
            sys.excepthook(type(error), error, error.__traceback__)
        return _report(unexpected, context)


def _invoke(arguments: list[str], context: Context) -> int:
    try:
        with main.make_context("pgkeep", arguments, obj=context) as click_context:
            _start_logging(context)
            main.invoke(click_context)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        raise Interrupted from None
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "pgkeep"
        message = error.format_message().rstrip(".")
        raise UsageError(message[:1].lower() + message[1:], hint=f"{command} --help shows what it takes") from None
    except click.ClickException as error:
        raise PgkeepError(error.format_message()) from None
    return 0


def _report(error: PgkeepError, context: Context) -> int:
    if context.verbose > 1:
        sys.excepthook(type(error), error, error.__traceback__)
    if context.for_restore_command and error.exit_code <= _LAST_ABSENT:
        error.exit_code += _FETCH_ERRORS
    try:
        print_error(error, json=context.json)
    except BrokenPipeError:
        _silence(sys.stdout)
    return error.exit_code


def _silence(stream: object) -> None:
    """Send a broken stream to nowhere, so that the interpreter's last flush stays quiet."""
    if hasattr(stream, "fileno"):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _start_logging(context: Context) -> None:
    if context.verbose:
        import logging

        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("pgkeep").setLevel(logging.DEBUG if context.verbose > 1 else logging.INFO)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM raises Interrupted in the main thread; a second one ends the process."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        word = "interrupted" if number == signal.SIGINT else "terminated"
        raise Interrupted(f"{word} by {signal.Signals(number).name}", signal_number=number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
