"""One moment of a running cluster, seen from both sides of the WAL: a snapshot of each database, and the position that it belongs to.

Exact where the tables are locked in SHARE mode meanwhile. A writer holds ROW EXCLUSIVE until its commit record is written and every new
snapshot sees it; so once SHARE is granted nobody has written and not committed, and nobody writes until it is given back. A snapshot
taken in between shows just what recovery shows that ends at any position in between. The lock is taken behind a savepoint and given back
by going back to it: the transaction lives on, with its snapshot and without the lock. For one database all that is one message to the
server, so that a slow network or a stopped client holds nobody up; for several, the server ends the sessions that are kept waiting.

A transaction that goes on writing is waited for no longer than the lock timeout: then all that queued behind us goes on, and we try again.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import pq, sql

from pgkeep.drill.fingerprint_tables import Connection, TableName
from pgkeep.errors import ServerError
from pgkeep.postgres.lsn import LSN

__all__ = [
    "LockRules",
    "LockedOut",
    "Mark",
    "Marker",
    "TablesChanged",
    "close_all",
    "free_mark",
    "locked_mark",
    "open_snapshot",
]

_LOCK_SHARE = 0.8
"""Of the time that a writer may wait: for the lock to be granted. The rest is for what is done under it."""

_DEADLOCK_SHARE = 0.8
"""Of the server's deadlock_timeout: a writer that waits longer looks for a deadlock, and would end its own transaction for ours."""

_CANCELS_AUTOVACUUM_FROM = 3
"""The attempt from which on an autovacuum that is in the way is cancelled, as the server does for whoever waits deadlock_timeout."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0

_BUSY = {"55P03", "57014", "40P01", "25P03", "57P01"}
"""lock_not_available, query_canceled, deadlock_detected, idle_in_transaction_session_timeout, admin_shutdown: try again."""
_CHANGED = {"42P01", "3F000", "42809", "42501"}
"""undefined_table, invalid_schema_name, wrong_object_type, insufficient_privilege: look at the tables again."""

_RESTORE_POINT = sql.SQL("""
    WITH mark AS MATERIALIZED (SELECT pg_create_restore_point({}) AS lsn)
    SELECT lsn::text, pg_walfile_name(lsn), clock_timestamp()::text FROM mark
""")
_MESSAGE = sql.SQL("""
    WITH mark AS MATERIALIZED (SELECT pg_logical_emit_message(false, 'pgkeep', {}) AS lsn)
    SELECT lsn::text, pg_walfile_name(lsn), clock_timestamp()::text FROM mark
""")
_NO_ROOM = "53200"
"""out_of_memory: of the table of locks."""

_WAITING_FOR = """
    SELECT n.nspname, c.relname, a.pid, coalesce(nullif(a.application_name, ''), a.backend_type), a.usename
      FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_stat_activity a ON a.pid = ANY (pg_blocking_pids(l.pid))
     WHERE l.pid = %s AND NOT l.granted AND l.locktype = 'relation' LIMIT 1
"""


class LockedOut(ServerError):
    """The tables were not free in time; the message says who was in the way."""


class TablesChanged(ServerError):
    """A table is gone, or is not what it was when it was listed."""


@dataclass(frozen=True, slots=True)
class LockRules:
    """``timeout`` is the longest that a writer may be held up, in seconds; ``give_up`` for how long it is tried."""

    timeout: float = 0.5
    give_up: float = 60.0


@dataclass(frozen=True, slots=True)
class Marker:
    """How the position is marked in the WAL: by a restore point of this name, or where the role may not, by a mere message."""

    name: str
    restore_point: bool

    def query(self) -> str:
        """Writes the mark; answers with the position behind it, the name of the WAL file that holds it, and the time."""
        return (_RESTORE_POINT if self.restore_point else _MESSAGE).format(sql.Literal(self.name)).as_string()


@dataclass
class Mark:
    """The moment. ``snapshots`` are ids of exported snapshots by database, good while their sessions live; ``visible`` what they show."""

    lsn: LSN
    timeline: int
    time: datetime
    snapshots: dict[str, str] = field(default_factory=dict)
    visible: dict[str, str] = field(default_factory=dict)
    attempts: int = 1
    held: float = 0.0
    sessions: dict[str, Connection] = field(default_factory=dict)


def open_snapshot(connection: Connection) -> tuple[str, str]:
    """Begin a transaction; the id of its exported snapshot, and what that shows. The snapshot lives as long as the transaction."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    row = connection.execute("SELECT pg_export_snapshot(), pg_current_snapshot()::text").fetchone()
    assert row is not None
    return row[0], row[1]


def free_mark(connection: Connection, marker: Marker) -> Mark:
    """Mark the moment without a lock."""
    row = connection.execute(marker.query().encode()).fetchone()
    assert row is not None
    return Mark(LSN.parse(row[0]), int(row[1][:8], 16), datetime.fromisoformat(row[2]))


def locked_mark(
    connect: Callable[[str], Connection],
    tables: Mapping[str, Sequence[TableName]],
    watcher: Connection,
    marker: Marker,
    rules: LockRules,
) -> Mark:
    """Lock the tables of every database, mark the moment, and let go; the mark's sessions are in transactions with its snapshots then.

    ``connect`` opens a session in a database; ``watcher`` is one more, which looks who is in the way. The caller closes the mark's
    sessions. Raises LockedOut, TablesChanged, ServerError.
    """
    budget, may_cancel = _budget(watcher, rules)
    order = {database: list(names) for database, names in tables.items()}
    end, pause, attempt = time.monotonic() + rules.give_up, _FIRST_PAUSE, 0
    while True:
        attempt += 1
        sessions: dict[str, Connection] = {}
        try:
            for database in order:
                sessions[database] = connect(database)
            quick = may_cancel and attempt >= _CANCELS_AUTOVACUUM_FROM
            mark = _try(sessions, order, watcher, marker, budget, quick=quick)
        except _InTheWay as blocked:
            close_all(sessions.values())
            if time.monotonic() + pause > end:
                raise LockedOut(
                    f"{attempt} attempts within {rules.give_up:g} s found no moment without writers: {blocked}",
                    hint="a longer --lock-timeout waits longer for each; pg_stat_activity shows the transaction",
                ) from None
            if blocked.table is not None and blocked.table in order[blocked.database]:
                # whoever holds this one comes to the others later: taken first, it is no deadlock
                order[blocked.database].remove(blocked.table)
                order[blocked.database].insert(0, blocked.table)
                order = {blocked.database: order.pop(blocked.database), **order}
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        except BaseException:
            close_all(sessions.values())
            raise
        else:
            mark.attempts = attempt
            mark.sessions = sessions
            return mark


class _InTheWay(Exception):
    def __init__(self, message: str, database: str, table: TableName | None = None) -> None:
        super().__init__(message)
        self.database = database
        self.table = table


def _budget(watcher: Connection, rules: LockRules) -> tuple[float, bool]:
    row = watcher.execute(
        "SELECT setting::int, has_parameter_privilege('deadlock_timeout', 'SET') FROM pg_settings WHERE name = 'deadlock_timeout'"
    ).fetchone()
    assert row is not None
    return min(rules.timeout, _DEADLOCK_SHARE * row[0] / 1000), bool(row[1])


def _try(
    sessions: Mapping[str, Connection],
    order: Mapping[str, Sequence[TableName]],
    watcher: Connection,
    marker: Marker,
    budget: float,
    *,
    quick: bool,
) -> Mark:
    """One attempt, all within ``budget`` seconds."""
    began = time.monotonic()
    *others, last = order
    for database in others:
        _run(sessions[database], _lock_script(order[database], budget, began, quick=quick), watcher, database, budget)
    script = [*_lock_script(order[last], budget, began, quick=quick), marker.query(), *_RELEASE]
    answers = _run(sessions[last], script, watcher, last, budget)
    # the answers in the order of the statements: when the lock was there, the mark, and what the end says
    granted, (lsn, file, moment), (released, *snapshot) = answers[-3][0], answers[-2], answers[-1]
    mark = Mark(LSN.parse(lsn), int(file[:8], 16), datetime.fromisoformat(moment))
    mark.held = (datetime.fromisoformat(released) - datetime.fromisoformat(granted)).total_seconds()
    mark.snapshots[last], mark.visible[last] = snapshot
    for database in others:
        released, *snapshot = _run(sessions[database], _RELEASE, watcher, database, budget)[-1]
        mark.held = max(mark.held, time.monotonic() - began)
        mark.snapshots[database], mark.visible[database] = snapshot
    return mark


_RELEASE = [
    "ROLLBACK TO SAVEPOINT pgkeep",
    "RELEASE SAVEPOINT pgkeep",
    "SELECT clock_timestamp()::text, pg_export_snapshot(), pg_current_snapshot()::text",
]


def _lock_script(tables: Sequence[TableName], budget: float, began: float, *, quick: bool) -> list[str]:
    left = max(_LOCK_SHARE * budget - (time.monotonic() - began), 0.001)
    # what is set behind the savepoint is as before once we are back there
    script = [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "SAVEPOINT pgkeep",
        f"SET LOCAL statement_timeout = {max(int(left * 1000), 1)}",
        f"SET LOCAL idle_in_transaction_session_timeout = {max(int(budget * 1000), 1)}",
    ]
    if quick:
        script.append(f"SET LOCAL deadlock_timeout = {max(int(left * 500), 1)}")
    if tables:
        names = sql.SQL(", ").join([sql.SQL("ONLY ") + table.identifier for table in tables])
        script.append((sql.SQL("LOCK TABLE ") + names + sql.SQL(" IN SHARE MODE")).as_string())
    # the first query takes the transaction's snapshot: not before the lock is there
    return [*script, "SELECT clock_timestamp()::text"]


def _run(
    session: Connection, script: Sequence[str], watcher: Connection, database: str, budget: float
) -> list[tuple[str, ...]]:
    """Send statements as one message; the first row of each that answers. Halfway through the budget, see who is in the way."""
    pgconn = session.pgconn
    blocker: tuple[str, TableName] | None = None
    try:
        pgconn.send_query("; ".join(script).encode())
        waiting = select.poll()
        waiting.register(pgconn.socket, select.POLLIN)
        if not waiting.poll(budget * 500):
            blocker = _blocker(watcher, pgconn.backend_pid)
        answers, failure = [], None
        while (result := pgconn.get_result()) is not None:
            if result.status == pq.ExecStatus.TUPLES_OK:
                values = (result.get_value(0, column) or b"" for column in range(result.nfields))
                answers.append(tuple(value.decode() for value in values))
            elif result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY}:
                failure = failure or result
    except psycopg.OperationalError as error:
        raise ServerError(
            f"the source broke off while its tables were locked: {error}", hint="see the server's log"
        ) from None
    if failure is None:
        return answers
    state = (failure.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (failure.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"no reason given").decode(errors="replace")
    if state in _CHANGED:
        raise TablesChanged(f"database {database}: {message}")
    if state == _NO_ROOM:
        raise LockedOut(
            f"database {database}: the server's table of locks has no room for all of them",
            hint="raise max_locks_per_transaction, or compare fewer tables: --table",
        )
    if state not in _BUSY:
        raise ServerError(
            f"the tables of database {database} cannot be locked: {message}", hint="pgkeep compare --no-lock"
        )
    text, table = blocker or (f"database {database}: {message}", None)
    raise _InTheWay(text, database, table)


def _blocker(watcher: Connection, pid: int) -> tuple[str, TableName] | None:
    row = watcher.execute(_WAITING_FOR, (pid,)).fetchone()
    if row is None:
        return None
    schema, name, holder, program, user = row
    who = "a prepared transaction" if holder is None else f"process {holder} ({program}{f', {user}' if user else ''})"
    return f"{schema}.{name} is held by {who}", TableName(schema, name)


def close_all(sessions: Iterable[Connection]) -> None:
    """Close sessions, whatever became of them."""
    for session in sessions:
        with contextlib.suppress(psycopg.Error):
            session.close()
