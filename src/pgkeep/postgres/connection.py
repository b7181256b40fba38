"""Connections to a server, for SQL and for the replication protocol, and what to do when one cannot be made.

libpq gives no SQLSTATE for a connection that fails, only text, so the text is what is read here. A server that speaks
another language than English gets its message passed on as it is.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from pgkeep.errors import ConfigError, ServerError, ServerSettingError
from pgkeep.postgres.dsn import Endpoint, endpoint_of, parse_dsn

__all__ = ["connect_sql", "explain_failure", "open_replication", "quote_role"]

CONNECT_TIMEOUT = 10
"""Seconds for a connection to come about; long enough for a name server and TLS across an ocean."""

# A peer that vanished is noticed after a minute instead of the two hours that Linux takes.
_KEEPALIVES = {"keepalives": "1", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


def connect_sql(dsn: str) -> psycopg.Connection[tuple[Any, ...]]:
    """An SQL connection in autocommit, with no time limits and nothing but ``pg_catalog`` on its search path.

    Raises ConfigError for a DSN that cannot be, ServerError or ServerSettingError where it does not lead to a session.
    """
    conninfo, endpoint = _conninfo(dsn)
    try:
        connection = psycopg.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise explain_failure(str(error), endpoint, replication=False) from None
    # As pg_dump does: a role's or database's own settings must neither cut a long question off nor swap a function.
    connection.execute(
        "SELECT pg_catalog.set_config('search_path', 'pg_catalog', false), "
        "pg_catalog.set_config('statement_timeout', '0', false), pg_catalog.set_config('lock_timeout', '0', false), "
        "pg_catalog.set_config('idle_session_timeout', '0', false)"
    )
    return connection


def open_replication(dsn: str) -> pq.abc.PGconn:
    """A connection to a walsender, for physical replication. The caller calls ``finish()``.

    Raises as ``connect_sql`` does. Signals are handled while it waits.
    """
    conninfo, endpoint = _conninfo(dsn, replication="true")
    options = parse_dsn(conninfo)
    hosts = (options.get("host") or options.get("hostaddr", "")).count(",") + 1
    seconds = float(options["connect_timeout"])
    # As in libpq: zero waits for ever, and every host of several has its own time.
    deadline = time.monotonic() + seconds * hosts if seconds > 0 else None
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        reason = _finish_connecting(pgconn, deadline)
    except BaseException:
        pgconn.finish()
        raise
    if reason is not None:
        pgconn.finish()
        raise explain_failure(reason, endpoint, replication=True)
    return pgconn


def _finish_connecting(pgconn: pq.abc.PGconn, deadline: float | None) -> str | None:
    """Follow PostgreSQL docs, 34.1 "PQconnectPoll", until connected; returns libpq's reason where that fails."""
    status = pq.PollingStatus.WRITING
    while pgconn.status != pq.ConnStatus.BAD:
        if status == pq.PollingStatus.OK:
            return None
        if status == pq.PollingStatus.FAILED:
            break
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
        if not poll.poll(None if deadline is None else max(deadline - time.monotonic(), 0) * 1000):
            return "timeout expired"
        status = pq.PollingStatus(pgconn.connect_poll())
    return pgconn.error_message.decode("utf-8", "replace")


def _conninfo(dsn: str, **options: str) -> tuple[str, Endpoint]:
    try:
        given, endpoint = parse_dsn(dsn), endpoint_of(dsn)
    except ValueError as error:
        raise ConfigError(
            f"the DSN {error}", hint="write it like 'host=db.example port=5432 user=replication_user dbname=auth_db'"
        ) from None
    timeout = given.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT") or str(CONNECT_TIMEOUT)
    if re.fullmatch(r"-?\d{1,9}", timeout) is None:
        raise ConfigError(
            f"connect_timeout {timeout!r} is not a number of seconds", hint="write it like connect_timeout=10"
        )
    defaults = {
        "application_name": "pgkeep",
        "connect_timeout": timeout,
        "client_encoding": "UTF8",
        **_KEEPALIVES,
    }
    return make_conninfo("", **{**defaults, **given, **options}), endpoint


def quote_role(name: str) -> str:
    """The role's name as SQL and ``pg_hba.conf`` take it."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class _Failure:
    """What libpq said, and everything a hint may need."""

    text: str
    endpoint: Endpoint
    replication: bool

    @property
    def role(self) -> str:
        return quote_role(self.endpoint.user)

    def hba_line(self) -> str:
        """The ``pg_hba.conf`` line that lets this connection in, made from the server's own words about it."""
        database = "replication" if self.replication else quote_role(self.endpoint.database)
        client = re.search(r'host "([^"]+)"', self.text)
        address = client[1] if client else "the-address-of-this-host"
        if address == "[local]" or (client is None and self.endpoint.is_local):
            return f"local {database} {self.role} scram-sha-256"
        encrypted = re.search(r"SSL on|SSL encryption|GSS encryption", self.text) is not None
        kind = "hostssl" if encrypted else "host"
        length = 128 if ":" in address else 32
        return f"{kind} {database} {self.role} {address}/{length} scram-sha-256"


_Explain = Callable[[_Failure], tuple[str, str]]


def _unknown_host(f: _Failure) -> tuple[str, str]:
    return f"there is no host named {f.endpoint.host!r}", "mend host= in the DSN, or the name server: getent hosts NAME"


def _refused(f: _Failure) -> tuple[str, str]:
    return (
        f"nothing listens at {f.endpoint}",
        "start the server, and see that listen_addresses and port in postgresql.conf fit the DSN",
    )


def _no_socket(f: _Failure) -> tuple[str, str]:
    return (
        f"there is no server behind the socket in {f.endpoint.host or 'the default directory'}, port {f.endpoint.port}",
        "start the server, or see its unix_socket_directories and port",
    )


def _timeout(f: _Failure) -> tuple[str, str]:
    return (
        f"{f.endpoint} did not answer in time",
        "look for a firewall in between; connect_timeout= in the DSN gives it longer",
    )


def _wrong_password(f: _Failure) -> tuple[str, str]:
    return (
        f"{f.endpoint} does not accept the password of role {f.endpoint.user!r}",
        f"mend it in ~/.pgpass or PGPASSWORD, or set a new one: ALTER ROLE {f.role} WITH PASSWORD '...';",
    )


def _no_password(f: _Failure) -> tuple[str, str]:
    host, port = f.endpoint.passfile_place()
    return (
        f"{f.endpoint} asks for a password of role {f.endpoint.user!r} and none is known",
        f"add this line to ~/.pgpass (mode 0600): {host}:{port}:*:{f.endpoint.user}:PASSWORD",
    )


def _no_hba_entry(f: _Failure) -> tuple[str, str]:
    what = "replication" if f.replication else f"database {f.endpoint.database!r}"
    return (
        f"pg_hba.conf of {f.endpoint} does not let role {f.endpoint.user!r} in for {what}",
        f"add this line to its pg_hba.conf, then SELECT pg_reload_conf(); -- {f.hba_line()}",
    )


def _peer(f: _Failure) -> tuple[str, str]:
    return (
        f"{f.endpoint} lets role {f.endpoint.user!r} in only for an operating system account that maps to it",
        f"run pgkeep as that account, or put this line before the other in pg_hba.conf: {f.hba_line()}",
    )


def _no_replication(f: _Failure) -> tuple[str, str]:
    return (
        f"role {f.endpoint.user!r} at {f.endpoint} has no REPLICATION privilege",
        f"ALTER ROLE {f.role} WITH REPLICATION;",
    )


def _no_role(f: _Failure) -> tuple[str, str]:
    return (
        f"there is no role {f.endpoint.user!r} at {f.endpoint}",
        f"CREATE ROLE {f.role} WITH LOGIN REPLICATION PASSWORD '...';",
    )


def _no_login(f: _Failure) -> tuple[str, str]:
    return f"role {f.endpoint.user!r} at {f.endpoint} may not log in", f"ALTER ROLE {f.role} WITH LOGIN;"


def _no_database(f: _Failure) -> tuple[str, str]:
    return (
        f"there is no database {f.endpoint.database!r} at {f.endpoint}",
        "name one that is there, with dbname= in the DSN; dbname=postgres always is",
    )


def _no_connect(f: _Failure) -> tuple[str, str]:
    return (
        f"role {f.endpoint.user!r} may not connect to database {f.endpoint.database!r} at {f.endpoint}",
        f"GRANT CONNECT ON DATABASE {quote_role(f.endpoint.database)} TO {f.role};",
    )


def _no_sender_free(f: _Failure) -> tuple[str, str]:
    return (
        f"{f.endpoint} has no free WAL sender",
        "ALTER SYSTEM SET max_wal_senders = 10; -- a higher number than now, then restart the server",
    )


def _too_many(f: _Failure) -> tuple[str, str]:
    return f"{f.endpoint} takes no more connections of this role", "wait, or raise max_connections or the role's limit"


def _not_ready(f: _Failure) -> tuple[str, str]:
    state = re.search(r"starting up|shutting down|not accepting connections|in recovery mode", f.text)
    return f"{f.endpoint} is up but {state[0] if state else 'not ready'}", "try again when its log says it is ready"


def _no_tls(f: _Failure) -> tuple[str, str]:
    return (
        f"{f.endpoint} offers no TLS, and sslmode asks for it",
        "set ssl = on on the server, or sslmode=prefer in the DSN",
    )


def _bad_certificate(f: _Failure) -> tuple[str, str]:
    return (
        f"the certificate of {f.endpoint} cannot be verified: {_last_line(f.text)}",
        "name its authority with sslrootcert= in the DSN, and the host as the certificate does",
    )


_KNOWN: tuple[tuple[str, type[ServerError], _Explain], ...] = (
    (r"could not translate host name|failed to resolve host|[Nn]ame or service not known", ServerError, _unknown_host),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", ServerSettingError, _no_hba_entry),
    (r"(?i)\b(peer|ident) authentication failed", ServerSettingError, _peer),
    (r"password authentication failed|authentication failed for user", ServerSettingError, _wrong_password),
    (r"no password supplied", ServerSettingError, _no_password),
    (
        r"must be superuser or replication role|permission denied to start WAL sender",
        ServerSettingError,
        _no_replication,
    ),
    (r'role "[^"]*" is not permitted to log in', ServerSettingError, _no_login),
    (r'role "[^"]*" does not exist', ServerSettingError, _no_role),
    (r'database "[^"]*" does not exist', ServerSettingError, _no_database),
    (r'permission denied for database "', ServerSettingError, _no_connect),
    (r"number of requested standby connections exceeds", ServerSettingError, _no_sender_free),
    (r"too many (clients|connections)|remaining connection slots are reserved", ServerError, _too_many),
    (r"the database system is ", ServerError, _not_ready),
    (r"does not support SSL|server does not support TLS", ServerSettingError, _no_tls),
    (
        r"certificate verify failed|root certificate file|server certificate for|SSL error",
        ServerSettingError,
        _bad_certificate,
    ),
    (r"[Cc]onnection refused", ServerError, _refused),
    (r"timeout expired|[Tt]imed out", ServerError, _timeout),
    (r"No such file or directory", ServerError, _no_socket),
)


def explain_failure(text: str, endpoint: Endpoint, *, replication: bool) -> ServerError:
    """The error for what libpq said of a failed connection: one sentence naming host, port and role, and what mends it."""
    failure = _Failure(text, endpoint, replication)
    for pattern, kind, explain in _KNOWN:
        if re.search(pattern, text):
            message, hint = explain(failure)
            return kind(message, hint=hint)
    return ServerError(
        f"no connection to {endpoint} as role {endpoint.user!r}: {_last_line(text)}",
        hint="the server's log may say more",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^.*?(FATAL|ERROR):\s*", "", lines[-1]) if lines else "no reason given"
