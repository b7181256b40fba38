"""Care of the replication slot: it exists, it is capped, and the server still holds what it should.

Two ways to the server: the replication connection creates the slot and reads it; an SQL connection of its own, in a thread,
watches it and sets the cap, where the role may.
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg
from psycopg import sql

from pgkeep.errors import PgkeepError, ServerSettingError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import ReplicationConnection
from pgkeep.units import format_size
from pgkeep.wal.events import Alarms
from pgkeep.wal.spool import Position

__all__ = ["ServerWatch", "SlotKeeper"]

_WATCH_INTERVAL = 10.0
"""Seconds between looks at the slot."""

_SETTLE_SECONDS = 1.0

_STATE = """
SELECT r.wal_status, r.safe_wal_size, s.sync_state, k.setting::bigint
FROM pg_settings k
LEFT JOIN pg_replication_slots r ON r.slot_name = %s
LEFT JOIN pg_stat_replication s ON s.pid = r.active_pid
WHERE k.name = 'max_slot_wal_keep_size'
"""

_IDLE_LIMIT = "SELECT setting::bigint FROM pg_settings WHERE name = 'idle_replication_slot_timeout'"
"""A setting of PostgreSQL 18 and later."""


class SlotKeeper:
    """The receiver's slot, seen through the replication connection."""

    def __init__(self, name: str, alarms: Alarms) -> None:
        self.name = name
        self._alarms = alarms

    def ensure(self, connection: ReplicationConnection, *, expected: bool) -> Position:
        """From where the slot holds WAL; creates it where there is none, or where the server has given it up.

        That is an alarm where it was ``expected`` to hold what was not received yet. Raises ServerError.
        """
        state = connection.read_slot(self.name)
        if state is not None and state.restart_lsn is not None and state.timeline is not None:
            return Position(state.timeline, state.restart_lsn)
        if expected:
            what = "is gone" if state is None else "was given up by the server"
            self._alarms.raise_alarm(
                "slot",
                f"replication slot {self.name} {what}; it is created again",
                "who dropped it? a limit may have: SHOW max_slot_wal_keep_size; SHOW idle_replication_slot_timeout;",
            )
        return self._create(connection, drop=state is not None)

    def recreate(self, connection: ReplicationConnection) -> Position:
        """A new slot in place of the old one; from where it holds WAL. Raises ServerError."""
        return self._create(connection, drop=connection.read_slot(self.name) is not None)

    def _create(self, connection: ReplicationConnection, *, drop: bool) -> Position:
        if drop:
            connection.drop_slot(self.name)
        connection.create_slot(self.name)
        self._alarms.info("slot-created", f"created replication slot {self.name}")
        state = connection.read_slot(self.name)
        if state is None or state.restart_lsn is None or state.timeline is None:
            raise PgkeepError(f"the new replication slot {self.name} holds no WAL")
        return Position(state.timeline, LSN(state.restart_lsn))


class ServerWatch:
    """A thread that looks after the slot by SQL. What the role may not see or do becomes a warning, never a failure."""

    def __init__(
        self,
        dsn: str,
        slot: str,
        alarms: Alarms,
        *,
        cap: int | None,
        synchronous: bool,
        interval: float = _WATCH_INTERVAL,
    ) -> None:
        self.wal_status: str | None = None
        self.sync_state: str | None = None
        self._dsn = dsn
        self._slot = slot
        self._alarms = alarms
        self._cap = cap
        self._synchronous = synchronous
        self._interval = interval
        self._look = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slot", daemon=True)

    def start(self) -> None:
        """Begin; the first look comes with `look_soon`."""
        self._thread.start()

    def look_soon(self) -> None:
        """A stream has begun: look at once, and again at intervals."""
        self._look.set()

    def stop(self) -> None:
        """End; not waited for, as a server may take its time to answer."""
        self._stop.set()
        self._look.set()

    def _run(self) -> None:
        self._look.wait()
        while not self._stop.is_set():
            self._look.clear()
            try:
                self._watch()
            except ServerSettingError as error:
                self._cannot_watch(str(error), error.hint)
            except (PgkeepError, psycopg.OperationalError):
                # the server is away, which the receiver tells
                pass
            except psycopg.Error as error:
                self._cannot_watch(str(error), None)
            self.wal_status = self.sync_state = None
            self._look.wait(self._interval)

    def _watch(self) -> None:
        with connect_sql(self._dsn) as connection:
            self._cap_slot(connection)
            # a receiver counts as synchronous once it has caught up
            self._stop.wait(min(self._interval, _SETTLE_SECONDS))
            self._check_idle_limit(connection)
            while not self._stop.is_set():
                self._check(connection)
                self._look.wait(self._interval)
                self._look.clear()

    def _cannot_watch(self, reason: str, hint: str | None) -> None:
        self._alarms.warn(
            "slot-watch",
            f"replication slot {self._slot} is not watched, and its cap is not set: {' '.join(reason.split())}",
            f"let the role connect to a database, or set the cap by hand: {self._cap_statement()}"
            + (f" ({hint})" if hint else ""),
        )

    def _cap_statement(self) -> str:
        megabytes = max((self._cap or 0) >> 20, 1)
        return f"ALTER SYSTEM SET max_slot_wal_keep_size = '{megabytes}MB'; SELECT pg_reload_conf();"

    def _cap_slot(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Give the server a limit where nobody has chosen one: a receiver that is away must not fill its disk."""
        if self._cap is None:
            return
        row = connection.execute(
            "SELECT setting, source FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
        ).fetchone()
        if row is None or row[0] != "-1":
            return
        if row[1] != "default":
            self._alarms.warn(
                "slot-cap",
                "max_slot_wal_keep_size = -1 was chosen on the server: WAL that a slot holds back may fill its disk",
                self._cap_statement(),
            )
            return
        value = sql.Literal(f"{max(self._cap >> 20, 1)}MB")
        try:
            connection.execute(sql.SQL("ALTER SYSTEM SET max_slot_wal_keep_size = {}").format(value))
            connection.execute("SELECT pg_reload_conf()")
        except psycopg.errors.InsufficientPrivilege:
            self._alarms.warn(
                "slot-cap",
                "the server has no limit for the WAL that a slot holds back, and the role may not set one:"
                " its disk may fill while no receiver runs",
                f"as a superuser: {self._cap_statement()}",
            )
            return
        self._alarms.info(
            "slot-cap", f"the server may hold back {format_size(self._cap)} of WAL for a slot (max_slot_wal_keep_size)"
        )

    def _check_idle_limit(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        row = connection.execute(_IDLE_LIMIT).fetchone()
        if row is not None and row[0] > 0:
            self._alarms.warn(
                "slot-idle-limit",
                f"the server drops slots that nobody used for {row[0]} s (idle_replication_slot_timeout)",
                "make it longer than any time that the receiver may be away, or 0",
            )

    def _check(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        row = connection.execute(_STATE, [self._slot]).fetchone()
        if row is None:
            return
        self.wal_status, safe, self.sync_state, limit = row
        if self.wal_status in {"unreserved", "lost"}:
            self._alarms.raise_alarm(
                "slot-room",
                f"the server holds back more WAL for slot {self._slot} than it may, and is about to remove some",
                "why is the receiver behind? see its other alarms, and max_slot_wal_keep_size",
            )
        elif safe is not None and limit > 0 and safe < limit << 18:
            self._alarms.raise_alarm(
                "slot-room",
                f"the server holds back WAL for slot {self._slot}, and gives it up after {format_size(safe)} more",
                "why is the receiver behind? see its other alarms, and max_slot_wal_keep_size",
            )
        else:
            self._alarms.clear("slot-room", f"the server has room again for the WAL of slot {self._slot}")
        self._check_synchronous()

    def _check_synchronous(self) -> None:
        waits = self.sync_state in {"sync", "quorum"}
        if self._synchronous and self.sync_state is not None and not waits:
            self._alarms.warn(
                "synchronous",
                f"no commit waits for this receiver, though it is set to be synchronous (sync_state {self.sync_state})",
                f"ALTER SYSTEM SET synchronous_standby_names = '{self._slot}'; SELECT pg_reload_conf();",
            )
        elif not self._synchronous and waits:
            self._alarms.warn(
                "synchronous",
                "commits wait for this receiver, and it makes WAL durable only once a second",
                "set wal = { synchronous = true }, or leave it out of synchronous_standby_names",
            )
        else:
            self._alarms.settle("synchronous")
