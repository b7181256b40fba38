"""Counting and summing up tables by ranges of blocks, many at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from pgkeep.drill.fingerprint import RangeSum, TableFingerprint, range_is_sampled
from pgkeep.drill.fingerprint_tables import Connection, TableState, range_query
from pgkeep.errors import ServerError

__all__ = ["Chosen", "Readers", "Unreadable", "choose_ranges", "read_ranges", "sum_ranges"]

_MOST_RANGES = 1024
_LEAST_BLOCKS = 256
"""2 MiB in blocks of 8 KiB: less is not worth a query of its own."""

T = TypeVar("T")
R = TypeVar("R")


class Unreadable(Exception):
    """A table cannot be read as it was at the moment; the text says why."""


class Readers:
    """Sessions for several threads, opened when they are first needed: one for each thread and database.

    ``snapshots`` are ids of exported snapshots by database; None reads what is there now.
    """

    def __init__(
        self, connect: Callable[[str], Connection], jobs: int, snapshots: Mapping[str, str] | None = None
    ) -> None:
        self.jobs = jobs
        self._connect = connect
        self._snapshots = snapshots
        self._local = threading.local()
        self._all: list[Connection] = []

    def close(self) -> None:
        """End the sessions."""
        for session in self._all:
            with contextlib.suppress(psycopg.Error):
                session.close()

    @contextmanager
    def transaction(self, database: str) -> Iterator[Connection]:
        """A short transaction in the snapshot: what it locks against DDL is free again at its end."""
        session = self._session(database)
        script = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        if self._snapshots is not None:
            script += f"; SET TRANSACTION SNAPSHOT '{self._snapshots[database]}'"
        session.execute(script.encode())
        try:
            yield session
        finally:
            with contextlib.suppress(psycopg.Error):
                session.execute("ROLLBACK")

    def map(self, call: Callable[[T], R], things: Iterable[T]) -> list[R]:
        """Call for each, several at once; the first exception is raised once all that ran have ended."""
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="compare") as executor:
            futures = [executor.submit(call, thing) for thing in things]
            try:
                return [future.result() for future in futures]
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise

    def _session(self, database: str) -> Connection:
        sessions: dict[str, Connection] = self._local.__dict__.setdefault("sessions", {})
        if database not in sessions:
            sessions[database] = self._connect(database)
            self._all.append(sessions[database])
        return sessions[database]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A table with the ranges of it that are to be read."""

    table: TableFingerprint
    oid: int
    filenode: int
    starts: list[int]


def choose_ranges(
    readers: Readers, database: str, state: TableState, *, locked: bool, seed: str, most_bytes: int | None
) -> Chosen:
    """Split a table, and where it is larger than ``most_bytes`` choose so many of its ranges by their hashes.

    Raises Unreadable where it is not what it was.
    """
    with readers.transaction(database) as session, _as_unreadable():
        row = session.execute(
            "SELECT pg_relation_size(%s), current_setting('block_size')::int", (state.oid,)
        ).fetchone()
    assert row is not None
    if row[0] is None:
        raise Unreadable("it was dropped meanwhile")
    blocks = row[0] // row[1]
    size = 0
    if state.in_blocks:
        size = _LEAST_BLOCKS
        while size * _MOST_RANGES < blocks:
            size *= 2
    starts = list(range(0, max(blocks, 1), size)) if size else [0]
    if size and most_bytes is not None and row[0] > most_bytes:
        share = most_bytes / row[0]
        name = f"{database}.{state.table}"
        starts = [start for start in starts if range_is_sampled(seed, name, start // size, share)] or starts[-1:]
    covered = sum(min(size, blocks - start) for start in starts) if size else blocks
    table = TableFingerprint(
        database=database,
        schema=state.table.schema,
        name=state.table.name,
        columns=state.columns,
        key=state.key,
        locked=locked,
        blocks=blocks,
        range_blocks=size,
        ranges=[],
        sampled=covered / blocks if blocks else 1.0,
    )
    return Chosen(table, state.oid, state.filenode, starts)


def sum_ranges(readers: Readers, chosen: Sequence[Chosen]) -> list[list[RangeSum] | Unreadable]:
    """The sums of each table's ranges, or why there are none."""

    def one(item: tuple[int, int]) -> RangeSum | Unreadable:
        which, start = item
        each = chosen[which]
        try:
            with readers.transaction(each.table.database) as session, _as_unreadable():
                found = read_range(session, each.table, start)
                # the query's lock lasts to the transaction's end: what is true now was true while it ran
                now = session.execute("SELECT pg_relation_filenode(%s)", (each.oid,)).fetchone()
            if now is None or now[0] != each.filenode:
                return Unreadable("it was truncated or rewritten meanwhile")
            return found
        except Unreadable as error:
            return error

    items = [(which, start) for which, each in enumerate(chosen) for start in each.starts]
    return _gathered(len(chosen), [which for which, _ in items], readers.map(one, items))


def _gathered(
    count: int, owners: Sequence[int], results: Sequence[RangeSum | Unreadable]
) -> list[list[RangeSum] | Unreadable]:
    """Results by the table that they are of; one that cannot be read spoils the table's."""
    found: list[list[RangeSum] | Unreadable] = [[] for _ in range(count)]
    for which, result in zip(owners, results, strict=True):
        so_far = found[which]
        if isinstance(so_far, Unreadable):
            continue
        if isinstance(result, Unreadable):
            found[which] = result
        else:
            so_far.append(result)
    return found


def read_ranges(readers: Readers, tables: Sequence[TableFingerprint]) -> list[list[RangeSum] | Unreadable]:
    """The same ranges of the same tables in another cluster."""

    def one(item: tuple[TableFingerprint, int]) -> RangeSum | Unreadable:
        table, start = item
        try:
            with readers.transaction(table.database) as session, _as_unreadable():
                return read_range(session, table, start)
        except Unreadable as error:
            return error

    items = [(which, each.start) for which, table in enumerate(tables) for each in table.ranges]
    results = readers.map(one, [(tables[which], start) for which, start in items])
    return _gathered(len(tables), [which for which, _ in items], results)


def read_range(session: Connection, table: TableFingerprint, start: int) -> RangeSum:
    """One range, as the session's transaction sees it."""
    row = session.execute(_bytes(session, range_query(table, start))).fetchone()
    assert row is not None
    return RangeSum(start, row[0], row[1])


def _bytes(session: psycopg.Connection[Any], query: sql.Composed) -> bytes:
    return query.as_bytes(session)


@contextmanager
def _as_unreadable() -> Iterator[None]:
    """What is about one table is said of that table; a lost connection is not."""
    try:
        yield
    except psycopg.OperationalError as error:
        if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.ProgramLimitExceeded):
            raise Unreadable(_reason(error)) from None
        raise ServerError(
            f"the server broke off while its tables were read: {_reason(error)}", hint="see its log"
        ) from None
    except psycopg.Error as error:
        raise Unreadable(_reason(error)) from None


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
