"""What a backup needs to know of a server, from the replication connection alone or with an SQL connection beside it.

A walsender answers ``IDENTIFY_SYSTEM`` and ``SHOW`` (PostgreSQL docs, 54.4 "Streaming Replication Protocol"); sizes, roles
and tablespaces take SQL. What the role may not see is None, never an error.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import pq

from pgkeep.errors import ServerError, ServerSettingError
from pgkeep.postgres.connection import connect_sql, open_replication
from pgkeep.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_KNOWN_VERSION", "MIN_VERSION", "ServerFacts", "TablespaceFacts", "read_server_facts", "server_facts"]

MIN_VERSION, MAX_KNOWN_VERSION = 15, 18
"""The oldest major version whose protocol is spoken, and the newest that was tested."""

Sql = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class TablespaceFacts:
    """A tablespace outside the data directory: its OID, name and absolute location on the server."""

    oid: int
    name: str
    location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A server at one moment. Sizes are bytes; ``version_num`` is like 180006; None means not visible to the role.

    ``wal_senders_in_use`` leaves out our own connection. ``segment_size`` is that of relation files.
    ``server_encoding`` is that of the DSN's database: a walsender has none and would say SQL_ASCII.
    ``config_files_outside`` are the configuration files that no base backup holds, as on Debian.
    """

    version_num: int
    system_identifier: int
    timeline: int
    in_recovery: bool
    wal_level: str
    max_wal_senders: int
    wal_senders_in_use: int | None
    max_replication_slots: int
    wal_segment_size: int
    block_size: int
    segment_size: int
    data_checksums: bool
    archive_mode: str
    full_page_writes: bool
    fsync: bool
    summarize_wal: bool
    server_encoding: str | None
    data_directory: str | None
    config_files_outside: tuple[str, ...] | None
    role: str
    role_replication: bool | None
    role_superuser: bool | None
    size: int | None
    tablespaces: tuple[TablespaceFacts, ...] | None

    @property
    def major_version(self) -> int:
        """``18`` of 18.6."""
        return self.version_num // 10000

    @property
    def version(self) -> str:
        """``"18.6"``."""
        return f"{self.version_num // 10000}.{self.version_num % 10000}"


def read_server_facts(dsn: str) -> ServerFacts:
    """Connect for replication, and for SQL if the role may, and read the facts.

    Raises ServerError or ServerSettingError where there is no replication connection.
    """
    replication = open_replication(dsn)
    try:
        sql: Sql | None = None
        with suppress(ServerError):
            sql = connect_sql(dsn)
        try:
            return server_facts(replication, sql)
        finally:
            if sql is not None:
                sql.close()
    finally:
        replication.finish()


def server_facts(replication: pq.abc.PGconn | None, sql: Sql | None) -> ServerFacts:
    """Read the facts over idle connections of which at least one is given; they stay open.

    Raises ServerSettingError for a server older than MIN_VERSION, ServerError where the connection breaks off.
    """
    source = _source(replication, sql)
    version_num = source.version_num()
    if version_num // 10000 < MIN_VERSION:
        raise ServerSettingError(
            f"the server is PostgreSQL {version_num // 10000}, and {MIN_VERSION} is the oldest that can be backed up",
            hint=f"upgrade it to PostgreSQL {MIN_VERSION} or newer",
        )
    try:
        return _read(source, replication, sql)
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise ServerError(f"the server broke off while its settings were read: {reason}", hint="see its log") from None


def _source(replication: pq.abc.PGconn | None, sql: Sql | None) -> _Walsender | _SqlSession:
    if replication is not None:
        return _Walsender(replication)
    if sql is not None:
        return _SqlSession(sql)
    raise ValueError("a connection is needed")


def _read(source: _Walsender | _SqlSession, replication: pq.abc.PGconn | None, sql: Sql | None) -> ServerFacts:
    version_num, show = source.version_num(), source.show
    system_identifier, timeline = source.identify()

    def known(name: str) -> str:
        value = show(name)
        if value is None:
            raise ServerError(f"the server does not tell its setting {name}", hint="is it PostgreSQL itself?")
        return value

    role_replication, role_superuser = (None, None) if sql is None else _role(sql)
    data_directory = show("data_directory")
    return ServerFacts(
        version_num=version_num,
        system_identifier=system_identifier,
        timeline=timeline,
        in_recovery=known("in_hot_standby") == "on",
        wal_level=known("wal_level"),
        max_wal_senders=int(known("max_wal_senders")),
        wal_senders_in_use=None if sql is None else _wal_senders_in_use(sql, replication),
        max_replication_slots=int(known("max_replication_slots")),
        wal_segment_size=parse_size(known("wal_segment_size")),
        block_size=int(known("block_size")),
        segment_size=parse_size(known("segment_size")),
        data_checksums=known("data_checksums") == "on",
        archive_mode=known("archive_mode"),
        full_page_writes=known("full_page_writes") == "on",
        fsync=known("fsync") == "on",
        summarize_wal=version_num >= 170000 and known("summarize_wal") == "on",
        server_encoding=None if sql is None else _SqlSession(sql).show("server_encoding"),
        data_directory=data_directory,
        config_files_outside=None if data_directory is None else _outside(data_directory, show),
        role=known("session_authorization"),
        role_replication=role_replication,
        role_superuser=role_superuser,
        size=None if sql is None else _size(sql),
        tablespaces=None if sql is None else _tablespaces(sql),
    )


class _Walsender:
    """Questions to a walsender."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn

    def version_num(self) -> int:
        """The server's version, like 180006."""
        return self._pgconn.server_version

    def show(self, name: str) -> str | None:
        """The setting as SHOW prints it, or None where the role may not see it or there is none of that name."""
        result = self._pgconn.exec_(f"SHOW {name}".encode())
        if result.status == pq.ExecStatus.TUPLES_OK:
            return _text(result, 0)
        if _sqlstate(result) in {"42501", "42704"}:
            return None
        raise self._failure(f"SHOW {name}", result)

    def identify(self) -> tuple[int, int]:
        """System identifier and timeline."""
        result = self._pgconn.exec_(b"IDENTIFY_SYSTEM")
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._failure("IDENTIFY_SYSTEM", result)
        return int(_text(result, 0)), int(_text(result, 1))

    def _failure(self, command: str, result: pq.abc.PGresult) -> ServerError:
        reason = result.error_message.decode("utf-8", "replace").strip()
        return ServerError(f"the server does not answer {command}: {reason}", hint="see the server's log")


def _text(result: pq.abc.PGresult, column: int) -> str:
    return (result.get_value(0, column) or b"").decode("utf-8", "replace")


def _sqlstate(result: pq.abc.PGresult) -> str:
    return (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()


class _SqlSession:
    """The same questions over SQL."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    def version_num(self) -> int:
        return self._sql.info.server_version

    def identify(self) -> tuple[int, int]:
        identifier, timeline = _row(
            self._sql,
            "SELECT s.system_identifier, c.timeline_id FROM pg_control_system() s, pg_control_checkpoint() c",
        )
        # SQL has no unsigned numbers: a large identifier comes back negative.
        return int(identifier) % (1 << 64), int(timeline)

    def show(self, name: str) -> str | None:
        try:
            value = _row(self._sql, "SELECT current_setting(%s, true)", (name,))[0]
        except psycopg.errors.InsufficientPrivilege:
            return None
        return None if value is None else str(value)


def _row(sql: Sql, query: LiteralString, parameters: tuple[object, ...] = ()) -> tuple[Any, ...]:
    (row,) = sql.execute(query, parameters).fetchall()
    return row


def _role(sql: Sql) -> tuple[bool, bool]:
    replication, superuser = _row(sql, "SELECT rolreplication, rolsuper FROM pg_roles WHERE rolname = session_user")
    return bool(replication), bool(superuser)


def _wal_senders_in_use(sql: Sql, replication: pq.abc.PGconn | None) -> int:
    ours = 0 if replication is None else replication.backend_pid
    return int(_row(sql, "SELECT count(*) FROM pg_stat_get_wal_senders() WHERE pid <> %s", (ours,))[0])


def _size(sql: Sql) -> int | None:
    """Bytes of all databases, or None where the role may not see each of them."""
    hidden, total = _row(
        sql,
        "SELECT count(*) FILTER (WHERE NOT seen), "
        "sum(CASE WHEN seen THEN pg_database_size(oid) END)::bigint "
        "FROM (SELECT oid, has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE') AS seen "
        "FROM pg_database) AS databases",
    )
    return None if hidden else int(total)


def _tablespaces(sql: Sql) -> tuple[TablespaceFacts, ...]:
    rows = sql.execute(
        "SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> '' "
        "ORDER BY oid"
    ).fetchall()
    return tuple(TablespaceFacts(int(oid), str(name), str(location)) for oid, name, location in rows)


def _outside(data_directory: str, show: Callable[[str], str | None]) -> tuple[str, ...]:
    files = [show(name) for name in ("config_file", "hba_file", "ident_file")]
    return tuple(file for file in files if file and not PurePosixPath(file).is_relative_to(data_directory))
