"""Pushing WAL in tests: as the server's account, from its data directory, as `archive_command` does it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from pgkeep.postgres.account import process_identity, run_as, server_account
from pgkeep.postgres.wal import WalFileKind, classify
from pgkeep.wal.push_settings import push_state
from support.fetch import give_tree
from support.servers import sql
from support.wal import ReceiverProgram, Setup, change_setting, current_lsn, make_setup, until, write_wal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pgkeep.postgres.server import Server

__all__ = [
    "ARCHIVING",
    "AccountReceiver",
    "archive_by",
    "direct_command",
    "direct_words",
    "done",
    "expect_stored",
    "finish_segments",
    "make_push_setup",
    "markers",
    "program_words",
    "push",
    "ready",
    "run_pgkeep",
    "stored",
    "thin_command",
    "wait_archived",
]

ARCHIVING: dict[str, str | int | bool] = {"archive_mode": True, "wal_keep_size": "1GB", "max_wal_size": "2GB"}
"""For a server that archives once it is told how, and keeps what it has archived to be compared."""


def make_push_setup(
    directory: Path, dsn: str, *, repositories: Mapping[str, bool] | None = None, **wal: str | float | bool
) -> Setup:
    """`make_setup`, all of it in the hands of the server's account."""
    setup = make_setup(directory, dsn, repositories=repositories, **wal)
    give_tree(directory)
    return setup


def program_words(setup: Setup) -> list[str]:
    """The whole program, with the setup's configuration."""
    return [sys.executable, "-P", "-m", "pgkeep", "--config", str(setup.path)]


def direct_words(setup: Setup) -> list[str]:
    """What the thin client falls back to, up to the file's path."""
    state = push_state(setup.spool)
    return [sys.executable, "-P", "-m", "pgkeep.wal.push_program", str(setup.path), "auth", str(state)]


def direct_command(setup: Setup) -> str:
    """An `archive_command` that asks no receiver."""
    return f'{shlex.join(direct_words(setup))} "%p"'


def thin_command(setup: Setup) -> str:
    """What ``pgkeep wal push --archive-command`` prints, as the server takes it."""
    line = run_pgkeep(setup, "wal", "push", "--archive-command")
    assert line.startswith("archive_command = '")
    return line.removeprefix("archive_command = '").rstrip().removesuffix("'").replace("''", "'")


def run_pgkeep(setup: Setup, *arguments: str | Path) -> str:
    """Run the program as the server's account; its output, or AssertionError with what it said."""
    answer = run_as(server_account(), [*program_words(setup), *arguments], timeout=120)
    assert answer.returncode == 0, f"{arguments} ended with {answer.returncode}:\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def push(server: Server, command: str, name: str | Path) -> tuple[int, str]:
    """Run an `archive_command` for a file by hand; its exit code, and what it said."""
    path = str(name) if "/" in str(name) else f"pg_wal/{name}"
    line = command.replace("%p", path).replace("%%", "%")
    in_place = f"cd {shlex.quote(str(server.data_directory))} && exec {line}"
    answer = run_as(server.account, ["/bin/sh", "-c", in_place], timeout=60)
    return answer.returncode, answer.stderr


def archive_by(dsn: str, command: str) -> None:
    """Have the server archive by this command from now on."""
    change_setting(dsn, "archive_command", "'" + command.replace("'", "''") + "'")
    until(lambda: sql(dsn, "SHOW archive_command") == [(command,)], "the setting")


def ready(server: Server) -> list[str]:
    """What the server has finished and not archived."""
    return sorted(path.stem for path in (server.data_directory / "pg_wal" / "archive_status").glob("*.ready"))


def done(server: Server) -> list[str]:
    """What the server believes to be archived."""
    return sorted(path.stem for path in (server.data_directory / "pg_wal" / "archive_status").glob("*.done"))


def finish_segments(server: Server, count: int) -> list[str]:
    """Let the server finish so many segments and more of 1 MiB; the names of all that wait to be archived."""
    before = len(ready(server))
    while len(ready(server)) < before + count:
        write_wal(server.dsn(), 1)
        sql(server.dsn(), "SELECT pg_switch_wal()")
    return ready(server)


def wait_archived(server: Server) -> None:
    """Let the server finish its segment, and wait until it has archived all that it has finished."""
    sql(server.dsn(), "SELECT pg_switch_wal()")
    end = current_lsn(server.dsn())
    until(lambda: not ready(server), lambda: f"archived up to {end}; {ready(server)} wait\n{server.log_tail()}", 60)


def markers(setup: Setup) -> list[str]:
    """What was pushed ahead of the server's asking."""
    return sorted(path.stem for path in (push_state(setup.spool) / "pushed").glob("*.mark"))


def stored(setup: Setup, identifier: int, repository: str = "main") -> dict[str, bytes]:
    """All WAL files in a repository, and their bytes."""
    archive = setup.repository(repository).wal(identifier)
    return {name: archive.get(name) for name, _ in archive.names()}


def expect_stored(setup: Setup, server: Server, identifier: int, kinds: set[WalFileKind]) -> None:
    """Whatever the server believes to be archived is in every repository as it stands in pg_wal, and is of all these kinds."""
    archived = done(server)
    assert {classify(name) for name in archived} >= kinds, archived
    for repository in setup.repositories:
        found = stored(setup, identifier, repository)
        for name in archived:
            assert name in found, f"{name} is not in {repository}"
            path = server.data_directory / "pg_wal" / name
            if path.exists():
                assert found[name] == path.read_bytes(), f"{name} differs in {repository}"


class AccountReceiver(ReceiverProgram):
    """A receiver that runs as the server's account, so that it and the server may write one repository."""

    def __init__(self, setup: Setup, *arguments: str) -> None:
        self.setup = setup
        self.log = setup.directory / "receiver.log"
        command = [*program_words(setup), "wal", "receive", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **process_identity(server_account())
            )
