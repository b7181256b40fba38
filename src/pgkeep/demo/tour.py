"""The guided tour: a service's database is backed up under load, loses a table, and comes back beside it.

Every step calls the real program as a user would, and is timed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pgkeep.demo.workload import Client, Commit, load
from pgkeep.errors import PgkeepError
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.server import Server, ThrowawayServer

__all__ = ["TourResult", "run_tour"]

_MAJOR = 18
_RATE = 200.0
"""Transactions a second of the client that writes while the backup runs."""


@dataclass
class TourResult:
    """What the tour showed: seconds for each step, rows compared."""

    seconds: dict[str, float] = field(default_factory=dict)
    users_before: int = 0
    users_restored: int = 0
    commits_before_backup: int = 0
    commits_missing: int = 0
    commits_after_backup: int = 0
    commits_from_the_future: int = 0

    @property
    def ok(self) -> bool:
        """Whether every row of the backup's moment came back, and none from after it."""
        return not (self.commits_missing or self.commits_from_the_future) and self.users_restored >= self.users_before


def run_tour(say: Callable[[str], None], *, users: int = 10_000, keep: Path | None = None) -> TourResult:
    """Go through the tour; ``say`` prints a line. Everything is removed at the end, except ``keep``, where given.

    Raises PgkeepError where a step fails.
    """
    root = keep or Path(tempfile.mkdtemp(prefix="pgkeep-demo-"))
    try:
        # PostgreSQL's account must be able to enter it; what is secret below it has modes of its own
        root.mkdir(exist_ok=True)
        root.chmod(0o755)
        return _Tour(root, say, users).run()
    finally:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)


class _Tour:
    def __init__(self, root: Path, say: Callable[[str], None], users: int) -> None:
        self._root = root
        self._say = say
        self._users = users
        self._result = TourResult()

    def run(self) -> TourResult:
        result = self._result
        with self._step("a PostgreSQL server with an authentication service's tables, and rows in them"):
            source = ThrowawayServer(find_binaries(_MAJOR), parent=self._root)
            source.initdb()
            source.start()
        with source:
            dsn = source.dsn()
            with self._step(f"{self._users:,} users with their accounts, tokens and audit logs"):
                load(dsn, users=self._users)
                result.users_before = _count(dsn, "users")
            with self._step("pgkeep init"):
                repository = f"file://{self._root}/repository"
                self._pgkeep("init", dsn, "--name", "auth", "--repository", repository, "--yes")
            with Client(dsn, rate=_RATE) as client:
                client.wait_for(100)
                before = client.committed()
                self._say(f"  a client writes {_RATE:.0f} transactions a second; {len(before)} are committed by now")
                with self._step("pgkeep backup, while the client writes"):
                    self._pgkeep("backup")
                backed_up = len(client.committed())
                client.wait_for(backed_up + 100)
            after = client.committed()[backed_up:]
            with self._step("the accident: DROP TABLE users CASCADE"):
                _execute(dsn, "DROP TABLE users CASCADE")
                self._say(f"  the source says: {_error_of(dsn, 'TABLE users')}")
            target = self._root / "restored"
            with self._step("pgkeep restore, beside the server, and start"):
                restored_dsn = self._restored_dsn(self._pgkeep("restore", "--target-dir", str(target), "--start"))
            with self._running(target), self._step("proof: every row of the backup's moment"):
                self._compare(restored_dsn, before, after)
            with self._step("pgkeep verify"):
                self._pgkeep("verify")
        return result

    def _compare(self, dsn: str, before: list[Commit], after: list[Commit]) -> None:
        result = self._result
        result.users_restored = _count(dsn, "users")
        result.commits_before_backup, result.commits_after_backup = len(before), len(after)
        result.commits_missing = len(before) - _found(dsn, before)
        result.commits_from_the_future = _found(dsn, after)
        self._say(
            f"  users restored: {result.users_restored:,} ({result.users_before:,} were loaded, the rest signed up)"
        )
        self._say(f"  commits acknowledged before the backup: {len(before)}, missing: {result.commits_missing}")
        self._say(f"  commits after the backup: {len(after)}, found: {result.commits_from_the_future}")
        if not result.ok:
            raise PgkeepError("the restored rows are not those of the backup's moment")

    @contextmanager
    def _running(self, target: Path) -> Iterator[None]:
        """The server that ``restore --start`` left running; stopped at the end."""
        try:
            yield
        finally:
            Server(target, find_binaries(_MAJOR)).stop()

    def _pgkeep(self, *arguments: str) -> str:
        """Run the program; its JSON result is returned, and its lines for people are shown as they come."""
        self._say(f"  $ pgkeep {' '.join(_shown(argument) for argument in arguments)}")
        environment = {**os.environ, "PGKEEP_CONFIG": str(self._root / "pgkeep.toml")}
        command = [sys.executable, "-m", "pgkeep", *arguments]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines = []
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                self._say(f"    {line.rstrip()}")
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        if code != 0:
            raise PgkeepError(f"pgkeep {arguments[0]} ended with exit code {code}", hint="run it by hand to see why")
        return "".join(lines)

    def _restored_dsn(self, output: str) -> str:
        connect = next(line for line in output.splitlines() if line.strip().startswith("connect:"))
        return connect.partition("'")[2].rpartition("'")[0]

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        number = len(self._result.seconds) + 1
        self._say(f"{number}. {title}")
        begun = time.monotonic()
        yield
        self._result.seconds[title] = time.monotonic() - begun


def _shown(argument: str) -> str:
    return f'"{argument}"' if " " in argument else argument


def _count(dsn: str, table: str) -> int:
    return int(str(_execute(dsn, f"SELECT count(*) FROM {table}")[0][0]))  # noqa: S608 - our own names


def _found(dsn: str, commits: list[Commit]) -> int:
    """How many of these transactions left all their rows in the database."""
    query = """
        SELECT count(*) FROM unnest(%s::bigint[], %s::bigint[], %s::uuid[]) AS c(user_id, audit_id, jti)
        WHERE EXISTS (SELECT FROM users WHERE id = c.user_id) AND EXISTS (SELECT FROM audit_logs WHERE id = c.audit_id)
          AND (c.jti IS NULL OR EXISTS (SELECT FROM token_blacklist t WHERE t.jti = c.jti))"""
    columns = (
        [commit.user_id for commit in commits],
        [commit.audit_id for commit in commits],
        [commit.jti for commit in commits],
    )
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query, columns).fetchone()
    return int(row[0]) if row is not None else 0


def _execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _error_of(dsn: str, statement: str) -> str:
    try:
        _execute(dsn, statement)
    except psycopg.Error as error:
        return f"ERROR: {error.diag.message_primary}"
    return "no error"
