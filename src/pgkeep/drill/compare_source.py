"""The source's side of a comparison: mark a moment, and take the fingerprints of its tables."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.drill.fingerprint import RangeSum, SequenceFloor, SourceFingerprints, TableFingerprint
from pgkeep.drill.fingerprint_moment import (
    LockedOut,
    LockRules,
    Mark,
    Marker,
    TablesChanged,
    close_all,
    free_mark,
    locked_mark,
    open_snapshot,
)
from pgkeep.drill.fingerprint_ranges import Chosen, Readers, Unreadable, choose_ranges, sum_ranges
from pgkeep.drill.fingerprint_tables import (
    Connection,
    TableName,
    TableState,
    connect_to,
    databases,
    sequence_values,
    table_states,
    tables_of,
)
from pgkeep.errors import NotFoundError, ServerError, ServerSettingError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.progress import Progress, Silent
from pgkeep.units import utc_now

__all__ = ["ComparisonRequest", "begin_comparison"]

_SERVER = """
    SELECT pg_is_in_recovery(), current_setting('wal_level'),
           (pg_control_system()).system_identifier::text, current_setting('server_version_num')::int / 10000,
           pg_postmaster_start_time(), has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE')
"""
_OPEN = (
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::int8, pg_snapshot_xmax(pg_current_snapshot())::text::int8"
)

_WAIT_FOR_OPEN = 5.0
"""Seconds in which transactions may end that were in the middle of their commit at the moment, where nothing is locked."""

_TABLES_MAY_CHANGE = 3


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """``databases`` None: all that take connections; ``tables`` None: all, else as ``schema.name``.

    ``most_bytes`` is how much is read of a table at the most, None for all of it. ``lock`` False: tolerance from the start.
    """

    databases: Collection[str] | None = None
    tables: Collection[str] | None = None
    lock: bool = True
    rules: LockRules = field(default_factory=LockRules)
    most_bytes: int | None = 8 << 30
    jobs: int | None = None


def begin_comparison(
    dsn: str, request: ComparisonRequest | None = None, progress: Progress | None = None
) -> SourceFingerprints:
    """Mark a moment in the source's WAL, and say what its tables held then. It writes nothing but that mark.

    Raises ServerError, ServerSettingError where it cannot be told; NotFoundError for a database or table that is not there.
    """
    request, progress = request or ComparisonRequest(), progress or Silent()
    began = time.monotonic()
    with ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(connect_sql(dsn)))
        system, major, started, may_mark = _ask(first, dsn)
        identity = f"{utc_now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        source = _Source(dsn, request, first, Marker(f"pgkeep-compare-{identity}", may_mark), stack)
        progress.phase("marking the moment")
        mark = source.mark()
        progress.phase("taking fingerprints of the source")
        tables = source.fingerprints(mark)
        return SourceFingerprints(
            id=identity,
            mode="exact" if all(table.locked for table in tables) else "tolerance",
            system_identifier=system,
            server_major=major,
            server_started=started,
            timeline=mark.timeline,
            lsn=str(mark.lsn),
            restore_point=source.marker.name if may_mark else None,
            time=mark.time,
            tables=tables,
            sequences=source.floors(),
            snapshots=mark.visible,
            attempts=mark.attempts,
            held=mark.held,
            seconds=time.monotonic() - began,
            notes=source.notes,
        )


def _ask(connection: Connection, dsn: str) -> tuple[int, int, datetime, bool]:
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    in_recovery, level, system, major, started, may_mark = row
    if in_recovery:
        raise ServerError(
            f"{endpoint_of(dsn)} is a standby: the moment of a comparison is marked in the WAL, which only the primary writes",
            hint="name the primary in the DSN",
        )
    if level == "minimal":
        raise ServerSettingError(
            f"wal_level at {endpoint_of(dsn)} is minimal, which leaves restore points out",
            hint="ALTER SYSTEM SET wal_level = replica; then restart the server",
        )
    return int(system), major, started, bool(may_mark)


class _Source:
    """The source's server, and what is held open there until the fingerprints are taken."""

    def __init__(
        self, dsn: str, request: ComparisonRequest, first: Connection, marker: Marker, stack: ExitStack
    ) -> None:
        self.dsn = dsn
        self.request = request
        self.marker = marker
        self.notes: list[str] = []
        self._first = first
        self._stack = stack
        self._connect = functools.partial(connect_to, dsn)
        self._databases, notes = databases(first, request.databases)
        self.notes += notes
        self._plain = {name: self._keep(self._connect(name)) for name in self._databases}
        self._tables: dict[str, dict[TableName, bool]] = {}
        self._before: dict[str, str] = {}
        self._after: dict[str, str] = {}
        self._floors: dict[tuple[str, str, str], tuple[int, int]] = {}

    def mark(self) -> Mark:
        """Exactly, where that can be; else with snapshots before and after, which say what was quiet."""
        for _ in range(_TABLES_MAY_CHANGE):
            self._list_tables()
            locked = {
                database: [table for table, may_lock in tables.items() if may_lock and self.request.lock]
                for database, tables in self._tables.items()
            }
            try:
                return self._mark(locked)
            except LockedOut as error:
                self.notes.append(f"tables could not be locked, so the comparison is not exact: {error}")
                return self._mark({})
            except TablesChanged as error:
                problem = error
        raise problem

    def fingerprints(self, mark: Mark) -> list[TableFingerprint]:
        """Of every table, in the order of their names."""
        exact = self._readers(mark.snapshots) if mark.snapshots else None
        tables: list[TableFingerprint] = []
        if exact is not None:
            chosen = self._choose(exact, mark.sessions, locked=True)
            tables += [_with(each, sums) for each, sums in self._sums(exact, chosen)]
        if self._after:
            before, after = self._readers(self._before), self._readers(self._after)
            chosen = self._choose(after, self._after_sessions, locked=False)
            earlier = dict(zip(map(id, chosen), sum_ranges(before, chosen), strict=True))
            for each, sums in self._sums(after, chosen):
                older = earlier[id(each)]
                known = {} if isinstance(older, Unreadable) else {each.start: each for each in older}
                tables.append(_with(each, [_quiet(each, known.get(each.start)) for each in sums]))
        return sorted(tables, key=lambda table: (table.database, table.schema, table.name))

    def floors(self) -> list[SequenceFloor]:
        """What sequences had handed out; read before and after the moment, so that one that was set back is not held to its past."""
        return [
            SequenceFloor(database=database, schema=schema, name=name, increment=increment, value=value)
            for (database, schema, name), (increment, value) in sorted(self._floors.items())
        ]

    def _mark(self, locked: Mapping[str, Sequence[TableName]]) -> Mark:
        self._locked = {database: set(tables) for database, tables in locked.items()}
        all_locked = all(
            table in self._locked.get(database, ()) for database, tables in self._tables.items() for table in tables
        )
        if not all_locked:
            self._before = self._snapshots()[0]
        self._floors = {}
        self._read_sequences()
        if any(locked.values()):
            mark = locked_mark(
                self._connect,
                {database: tables for database, tables in locked.items() if tables},
                self._first,
                self.marker,
                self.request.rules,
            )
            self._stack.callback(close_all, mark.sessions.values())
        else:
            mark = free_mark(self._first, self.marker)
        if not self.marker.restore_point:
            # an exclusive target is noticed at the first record behind it
            free_mark(self._first, self.marker)
        self._read_sequences()
        if not all_locked:
            self._wait_for_commits()
            self._after, visible, self._after_sessions = self._snapshots()
            mark.visible = {**visible, **mark.visible}
        return mark

    def _list_tables(self) -> None:
        wanted = None if self.request.tables is None else set(self.request.tables)
        self._tables, notes, found = {}, [], set()
        for database, session in self._plain.items():
            tables, unreadable = tables_of(session)
            found |= {str(table) for table in tables}
            self._tables[database] = {
                table: lock for table, lock in tables.items() if wanted is None or str(table) in wanted
            }
            notes += [f"database {database}: {note}" for note in unreadable] if wanted is None else []
        missing = sorted((wanted or set()) - found)
        if missing:
            raise NotFoundError(
                f"there is no table {missing[0]} that could be compared", hint="write it like public.accounts"
            )
        self.notes = [note for note in self.notes if note not in notes] + notes

    def _snapshots(self) -> tuple[dict[str, str], dict[str, str], dict[str, Connection]]:
        ids, visible, sessions = {}, {}, {}
        for database in self._databases:
            sessions[database] = self._keep(self._connect(database))
            ids[database], visible[database] = open_snapshot(sessions[database])
        return ids, visible, sessions

    def _wait_for_commits(self) -> None:
        """Until what was being committed at the moment is seen by every new snapshot."""
        row = self._first.execute(_OPEN).fetchone()
        assert row is not None
        wanted, deadline = row[1], time.monotonic() + _WAIT_FOR_OPEN
        while row[0] < wanted:
            if time.monotonic() > deadline:
                self.notes.append("a transaction was still open some seconds after the moment")
                return
            time.sleep(0.05)
            row = self._first.execute(_OPEN).fetchone()
            assert row is not None

    def _choose(self, readers: Readers, sessions: Mapping[str, Connection], *, locked: bool) -> list[Chosen]:
        wanted: list[tuple[str, TableState]] = []
        for database, session in sessions.items():
            # the catalogs as of the snapshot
            states = table_states(session)
            mine = {table for table in self._tables[database] if (table in self._locked.get(database, ())) == locked}
            wanted += [(database, state) for table, state in states.items() if table in mine]

        def choose(item: tuple[str, TableState]) -> Chosen | Unreadable:
            database, state = item
            seed = self.marker.name
            try:
                return choose_ranges(
                    readers, database, state, locked=locked, seed=seed, most_bytes=self.request.most_bytes
                )
            except Unreadable as error:
                return error

        found = []
        for (database, state), each in zip(wanted, readers.map(choose, wanted), strict=True):
            if isinstance(each, Unreadable):
                self.notes.append(f"table {database}.{state.table} was left out: {each}")
            else:
                found.append(each)
        return found

    def _sums(self, readers: Readers, chosen: Sequence[Chosen]) -> list[tuple[Chosen, list[RangeSum]]]:
        found = []
        for each, sums in zip(chosen, sum_ranges(readers, chosen), strict=True):
            if isinstance(sums, Unreadable):
                table = each.table
                self.notes.append(f"table {table.database}.{table.schema}.{table.name} was left out: {sums}")
            else:
                found.append((each, sums))
        return found

    def _readers(self, snapshots: Mapping[str, str]) -> Readers:
        readers = Readers(self._connect, self.request.jobs or min(os.cpu_count() or 1, 8), snapshots)
        self._stack.callback(readers.close)
        return readers

    def _read_sequences(self) -> None:
        if self.request.tables is not None:
            return
        for database, session in self._plain.items():
            for (schema, name), (increment, value) in sequence_values(session).items():
                known = self._floors.get((database, schema, name), (increment, value))
                least = min if increment > 0 else max
                self._floors[database, schema, name] = (increment, least(known[1], value))

    def _keep(self, connection: Connection) -> Connection:
        return self._stack.enter_context(contextlib.closing(connection))


def _with(chosen: Chosen, sums: list[RangeSum]) -> TableFingerprint:
    table = chosen.table
    return TableFingerprint(
        database=table.database,
        schema=table.schema,
        name=table.name,
        columns=table.columns,
        key=table.key,
        locked=table.locked,
        blocks=table.blocks,
        range_blocks=table.range_blocks,
        ranges=sums,
        sampled=table.sampled,
    )


def _quiet(now: RangeSum, before: RangeSum | None) -> RangeSum:
    quiet = before is not None and (before.rows, before.total) == (now.rows, now.total)
    return RangeSum(now.start, now.rows, now.total, quiet)
