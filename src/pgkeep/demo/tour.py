"""The guided tour: a service's database is backed up under load, loses a table, goes back to the second before, and then forward
to its last commit after its disk is gone.

Every step calls the real program as a user would, and is timed.
"""

from __future__ import annotations

import json
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
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from pgkeep.demo.workload import Client, Commit, load
from pgkeep.errors import PgkeepError
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.units import utc_now

__all__ = ["TourResult", "run_tour"]

_MAJOR = 18
_RATE = 200.0
"""Transactions a second of the client that never stops writing."""

_SHIP_EVERY = "1s"
"""So that the tour need not wait; 10 s is the default."""

_NEVER = "0001-01-01T00:00:00Z"


@dataclass
class TourResult:
    """What the tour showed: seconds for each step, and commits counted.

    ``before`` are commits that the client knew of at the target, ``after`` those that it asked for later; ``acknowledged`` all
    until the server was gone.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    users_loaded: int = 0
    before: int = 0
    before_missing: int = 0
    after: int = 0
    after_found: int = 0
    acknowledged: int = 0
    lost: int = 0

    @property
    def ok(self) -> bool:
        """Whether the past came back to the second, and the present to the last commit."""
        return bool(self.before and self.after) and not (self.before_missing or self.after_found or self.lost)


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
        self._config = root / "pgkeep.toml"
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
                result.users_loaded = _count(dsn, "users")
            with self._step("pgkeep init"):
                repository = f"file://{self._root}/repository"
                self._pgkeep("init", dsn, "--name", "auth", "--repository", repository, "--yes")
                self._configure_wal()
            with self._receiver() as receiver, Client(dsn, rate=_RATE) as client:
                client.wait_for(100)
                with self._step(f"pgkeep backup, while a client commits {_RATE:.0f} transactions a second"):
                    self._pgkeep("backup")
                client.wait_for(len(client.committed()) + 200)
                target, dropped = self._accident(dsn)
                with self._step("the WAL of the accident is in the repository, while the client goes on"):
                    self._wait_for_wal(dropped)
                    self._say(f"  {client.refused} transactions were refused, {len(client.committed())} were committed")
                with self._step("pgkeep restore --to the second before, beside the server"):
                    past = self._restore("past", "--to", target.isoformat(sep=" "))
                with self._running("past"), self._step("proof: every commit of before, none of after"):
                    self._compare_past(past, client.committed(), target)
                client.stop()
                receiver.send_signal(signal.SIGTERM)
                receiver.wait()
        with self._step("the server is gone, and its disk with it: pgkeep restore --latest"):
            present = self._restore("present", "--latest")
        with self._running("present"), self._step("proof: no commit that was acknowledged is lost"):
            self._compare_present(present, client.committed())
        with self._step("pgkeep verify"):
            self._pgkeep("verify")
        return result

    def _accident(self, dsn: str) -> tuple[datetime, datetime]:
        """Drop a table; returns the second before, and when it was gone."""
        with self._step("the accident: DROP TABLE token_blacklist"):
            # the second before begins now
            time.sleep(1.1)
            dropped = utc_now()
            _execute(dsn, "DROP TABLE token_blacklist")
            gone = utc_now()
            self._say(f"  dropped at {dropped:%H:%M:%S.%f} UTC; every revoked token is valid again")
            self._say(f"  the source says: {_error_of(dsn, 'TABLE token_blacklist')}")
        return dropped - timedelta(seconds=1), gone

    def _compare_past(self, dsn: str, commits: list[Commit], target: datetime) -> None:
        result = self._result
        before = [commit for commit in commits if commit.committed_at <= target]
        after = [commit for commit in commits if commit.sent_at > target]
        result.before, result.before_missing = len(before), len(before) - _found(dsn, before, tokens=True)
        result.after, result.after_found = len(after), _found(dsn, after, tokens=True)
        self._say(f"  commits acknowledged by {target:%H:%M:%S.%f}: {result.before}, missing: {result.before_missing}")
        self._say(f"  commits asked for later: {result.after}, found: {result.after_found}")
        self._say(f"  revoked tokens: {_count(dsn, 'token_blacklist'):,}")
        if result.before_missing or result.after_found:
            raise PgkeepError("the restored rows are not those of the second before the accident")

    def _compare_present(self, dsn: str, commits: list[Commit]) -> None:
        result = self._result
        result.acknowledged = len(commits)
        result.lost = len(commits) - _found(dsn, commits, tokens=False)
        self._say(f"  commits acknowledged before the server was gone: {result.acknowledged}, lost: {result.lost}")
        if result.lost:
            raise PgkeepError("commits that were acknowledged are lost")

    def _configure_wal(self) -> None:
        text = self._config.read_text()
        wal = f'wal = {{ ship_every = "{_SHIP_EVERY}", spool = "{self._root}/spool" }}\n'
        self._config.write_text(text + wal)
        self._say(f"  and in its configuration: {wal.strip()}")

    @contextmanager
    def _receiver(self) -> Iterator[subprocess.Popen[bytes]]:
        """``pgkeep wal receive`` in the background, until it is told to stop."""
        self._say("  $ pgkeep wal receive &")
        with (self._root / "receive.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgkeep", "wal", "receive"], env=self._environment(), stdout=log, stderr=log
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()

    def _wait_for_wal(self, moment: datetime) -> None:
        deadline = time.monotonic() + 60
        while True:
            status = json.loads(self._quietly("wal", "status", "--json"))
            newest = status["repositories"][0]["newest"]
            if newest is not None and datetime.fromisoformat(newest["current_at"] or _NEVER) > moment:
                return
            if time.monotonic() > deadline:
                raise PgkeepError("the WAL of the accident does not reach the repository", hint=str(self._root))
            time.sleep(0.2)

    def _restore(self, name: str, *target: str) -> str:
        output = self._pgkeep("restore", "--target-dir", str(self._root / name), *target, "--start")
        connect = next(line for line in output.splitlines() if line.strip().startswith("connect:"))
        return connect.partition("'")[2].rpartition("'")[0]

    @contextmanager
    def _running(self, name: str) -> Iterator[None]:
        """The server that ``restore --start`` left running; stopped at the end."""
        try:
            yield
        finally:
            Server(self._root / name, find_binaries(_MAJOR)).stop()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PGKEEP_CONFIG": str(self._config)}

    def _quietly(self, *arguments: str) -> str:
        answer = subprocess.run(
            [sys.executable, "-m", "pgkeep", *arguments],
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return answer.stdout

    def _pgkeep(self, *arguments: str) -> str:
        """Run the program; its lines for people are shown as they come, and returned."""
        self._say(f"  $ pgkeep {' '.join(_shown(argument) for argument in arguments)}")
        command = [sys.executable, "-m", "pgkeep", *arguments]
        process = subprocess.Popen(
            command, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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


def _found(dsn: str, commits: list[Commit], *, tokens: bool) -> int:
    """How many of these transactions left all their rows in the database; ``tokens`` False: apart from revoked tokens."""
    token = "AND (c.jti IS NULL OR EXISTS (SELECT FROM token_blacklist t WHERE t.jti = c.jti))" if tokens else ""
    query = f"""
        SELECT count(*) FROM unnest(%s::bigint[], %s::bigint[], %s::uuid[]) AS c(user_id, audit_id, jti)
        WHERE EXISTS (SELECT FROM users WHERE id = c.user_id) AND EXISTS (SELECT FROM audit_logs WHERE id = c.audit_id)
        {token}"""  # noqa: S608 - our own words
    columns = (
        [commit.user_id for commit in commits],
        [commit.audit_id for commit in commits],
        [commit.jti for commit in commits],
    )
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode(), columns).fetchone()
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
