"""The restored server as checks see it: sessions in its databases, work that is done in several of them at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from pgkeep.errors import PgkeepError
from pgkeep.postgres.binaries import ServerBinaries
from pgkeep.postgres.connection import connect_sql

__all__ = ["Connection", "Copy", "Done", "Job", "reason_of", "work_off"]

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")
R = TypeVar("R")

_DATABASES = (
    "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 AND datname <> 'template0' ORDER BY 1"
)
_LOCK_TIMEOUT = "60s"
"""A prepared transaction that came back holds its locks for ever."""


@dataclass(frozen=True)
class Copy:
    """``dsn`` is of a superuser. ``budget`` seconds are what a check may take that can be done in part; None: all of it is done."""

    dsn: str
    data_directory: Path
    binaries: ServerBinaries
    databases: list[str]
    jobs: int
    seed: int
    budget: float | None

    @property
    def major(self) -> int:
        """Of the server."""
        return self.binaries.major

    def dsn_of(self, database: str) -> str:
        """The connection string of a database, for programs."""
        return make_conninfo(self.dsn, dbname=database)

    def connect(self, database: str) -> Connection:
        """A session, in autocommit, which sees every row, and waits for no lock for ever."""
        options = f"-c row_security=off -c lock_timeout={_LOCK_TIMEOUT} -c default_transaction_read_only=off"
        connection = connect_sql(
            make_conninfo(self.dsn, dbname=database, options=options, application_name="pgkeep drill")
        )
        connection.execute("SET jit = off")
        return connection

    @staticmethod
    def databases_of(dsn: str) -> list[str]:
        """Those that take connections."""
        with connect_sql(dsn) as connection:
            return [str(name) for (name,) in connection.execute(_DATABASES).fetchall()]


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """Something to look at in a database; ``weight`` in bytes."""

    database: str
    what: T
    weight: int = 1


@dataclass
class Done(Generic[T, R]):
    """What came of jobs. ``left`` were not looked at for want of time."""

    results: list[tuple[Job[T], R]] = field(default_factory=list)
    errors: list[tuple[Job[T], Exception]] = field(default_factory=list)
    left: list[Job[T]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the bytes that were to be looked at, how many were; 1 where there were none."""
        looked = sum(job.weight for job, _ in self.results) + sum(job.weight for job, _ in self.errors)
        total = looked + sum(job.weight for job in self.left)
        return looked / total if total else 1.0


def work_off(
    copy: Copy,
    jobs: Iterable[Job[T]],
    work: Callable[[Connection, T], R],
    *,
    limited: bool = False,
) -> Done[T, R]:
    """Do the jobs, several at once, in the given order. ``limited``: only as long as the copy's budget allows, one job at least."""
    done: Done[T, R] = Done()
    waiting: queue.SimpleQueue[Job[T]] = queue.SimpleQueue()
    ordered: Sequence[Job[T]] = list(jobs)
    for job in ordered:
        waiting.put(job)
    deadline = time.monotonic() + copy.budget if limited and copy.budget is not None else None
    threads = [
        threading.Thread(target=_Worker(copy, waiting, work, done, deadline).run, name=f"check {number}")
        for number in range(min(copy.jobs, len(ordered)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


class _Worker(Generic[T, R]):
    def __init__(
        self,
        copy: Copy,
        waiting: queue.SimpleQueue[Job[T]],
        work: Callable[[Connection, T], R],
        done: Done[T, R],
        deadline: float | None,
    ) -> None:
        self._copy = copy
        self._waiting = waiting
        self._work = work
        self._done = done
        self._deadline = deadline
        self._connections: dict[str, Connection] = {}

    def run(self) -> None:
        with ExitStack() as stack:
            while True:
                try:
                    job = self._waiting.get_nowait()
                except queue.Empty:
                    return
                if self._deadline is not None and time.monotonic() > self._deadline and self._done.results:
                    self._done.left.append(job)
                else:
                    self._do(job, stack)

    def _do(self, job: Job[T], stack: ExitStack) -> None:
        try:
            connection = self._connections.get(job.database)
            if connection is None or connection.closed:
                connection = stack.enter_context(self._copy.connect(job.database))
                self._connections[job.database] = connection
            if self._deadline is not None and self._done.results:
                left = max(self._deadline - time.monotonic(), 0.1)
                connection.execute("SELECT set_config('statement_timeout', %s, false)", (str(int(left * 1000)),))
            self._done.results.append((job, self._work(connection, job.what)))
        except psycopg.errors.QueryCanceled:
            self._done.left.append(job)
        except (psycopg.Error, PgkeepError) as error:
            self._done.errors.append((job, error))


def reason_of(error: BaseException) -> str:
    """PostgreSQL's own words, on one line."""
    diagnosis = getattr(error, "diag", None)
    text = (diagnosis.message_primary if diagnosis is not None else None) or str(error)
    return " ".join(text.split())
