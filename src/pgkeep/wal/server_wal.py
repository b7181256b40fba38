"""What a server says of its WAL and of those who take it: the slot, the archiver."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgkeep.errors import ServerError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.lsn import LSN
from pgkeep.units import parse_size

__all__ = ["ArchiverState", "ServerWal", "SlotState", "read_server_wal"]


@dataclass(frozen=True, slots=True)
class SlotState:
    """A replication slot (pg_replication_slots). ``retained`` are bytes that the server keeps for it, ``safe`` how many more it
    will, None without a limit.
    """

    name: str
    active: bool
    wal_status: str | None
    restart_lsn: LSN | None
    retained: int | None
    safe: int | None


@dataclass(frozen=True, slots=True)
class ArchiverState:
    """The archiver (pg_stat_archiver), and whether it is set up. ``command`` is None where the role may not see it."""

    mode: str
    command: str | None
    archived: int
    last_archived: str | None
    last_archived_time: datetime | None
    failed: int
    last_failed: str | None
    last_failed_time: datetime | None

    @property
    def is_on(self) -> bool:
        """Whether segments are handed to a command or a library."""
        return self.mode != "off" and self.command != ""

    @property
    def is_failing(self) -> bool:
        """Whether the newest thing that happened is a failure."""
        if self.last_failed_time is None:
            return False
        return self.last_archived_time is None or self.last_archived_time < self.last_failed_time


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWal:
    """A server's WAL at one moment. ``now`` is its clock; ``slot_cap`` is max_slot_wal_keep_size in bytes, None for no limit."""

    now: datetime
    system_identifier: int
    timeline: int
    in_recovery: bool
    lsn: LSN
    segment_size: int
    slot_cap: int | None
    slot: SlotState | None
    archiver: ArchiverState


_SERVER = """
SELECT clock_timestamp() AS now, s.system_identifier, pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_flush_lsn() END::text AS lsn,
       CASE WHEN pg_is_in_recovery() THEN c.timeline_id
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::bigint END AS timeline,
       current_setting('wal_segment_size') AS segment_size,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS slot_cap,
       current_setting('archive_mode') AS archive_mode,
       current_setting('archive_command', true) AS archive_command,
       current_setting('archive_library', true) AS archive_library
FROM pg_control_system() s, pg_control_checkpoint() c
"""

_SLOT = """
SELECT slot_name, active, wal_status, restart_lsn::text, safe_wal_size,
       pg_wal_lsn_diff(%s::pg_lsn, restart_lsn)::bigint AS retained
FROM pg_replication_slots WHERE slot_name = %s
"""

_ARCHIVER = """
SELECT archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, last_failed_time
FROM pg_stat_archiver
"""


def read_server_wal(dsn: str, slot: str) -> ServerWal:
    """Ask a server; ``slot`` is the receiver's. Raises ServerError."""
    with connect_sql(dsn) as connection:
        try:
            cursor = connection.cursor(row_factory=dict_row)
            server = _one(cursor.execute(_SERVER))
            assert server is not None
            found = _one(cursor.execute(_SLOT, [server["lsn"], slot]))
            archiver = _one(cursor.execute(_ARCHIVER))
            assert archiver is not None
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            raise ServerError(f"the server does not say how its WAL is: {reason}", hint="see its log") from None
    megabytes = server["slot_cap"]
    return ServerWal(
        now=server["now"],
        # SQL has no unsigned numbers: a large identifier comes back negative
        system_identifier=int(server["system_identifier"]) % (1 << 64),
        timeline=int(server["timeline"]),
        in_recovery=server["in_recovery"],
        lsn=LSN.parse(server["lsn"] or "0/0"),
        segment_size=parse_size(server["segment_size"]),
        slot_cap=None if megabytes is None or megabytes < 0 else megabytes << 20,
        slot=None if found is None else _slot(found),
        archiver=ArchiverState(
            mode=server["archive_mode"],
            command=server["archive_library"] or _command(server["archive_command"]),
            archived=archiver["archived_count"],
            last_archived=archiver["last_archived_wal"],
            last_archived_time=archiver["last_archived_time"],
            failed=archiver["failed_count"],
            last_failed=archiver["last_failed_wal"],
            last_failed_time=archiver["last_failed_time"],
        ),
    )


def _one(cursor: psycopg.Cursor[dict[str, Any]]) -> dict[str, Any] | None:
    return cursor.fetchone()


def _command(text: str | None) -> str | None:
    # what the server shows while archive_mode is off (show_archive_command in xlog.c)
    return "" if text == "(disabled)" else text


def _slot(row: dict[str, Any]) -> SlotState:
    return SlotState(
        name=row["slot_name"],
        active=row["active"],
        wal_status=row["wal_status"],
        restart_lsn=None if row["restart_lsn"] is None else LSN.parse(row["restart_lsn"]),
        retained=row["retained"],
        safe=row["safe_wal_size"],
    )
