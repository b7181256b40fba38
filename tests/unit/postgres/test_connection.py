"""What libpq and servers say of a connection that fails, and what pgkeep makes of it."""

from __future__ import annotations

import socket

import pytest

from pgkeep.errors import ConfigError, ServerError, ServerSettingError
from pgkeep.postgres.connection import connect_sql, explain_failure, open_replication, quote_role
from pgkeep.postgres.dsn import Endpoint

ENDPOINT = Endpoint(host="db.example", port="5432", user="backup", database="auth_db")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            'FATAL:  no pg_hba.conf entry for replication connection from host "10.0.0.7", user "backup", no encryption',
            "does not let role 'backup' in for replication",
            "-- host replication backup 10.0.0.7/32 scram-sha-256",
        ),
        (
            'FATAL:  no pg_hba.conf entry for replication connection from host "10.0.0.7", user "backup", SSL encryption',
            "does not let role 'backup' in for replication",
            "-- hostssl replication backup 10.0.0.7/32 scram-sha-256",
        ),
        (
            'FATAL:  pg_hba.conf rejects replication connection for host "fe80::1", user "backup", no encryption',
            "does not let role 'backup' in for replication",
            "-- host replication backup fe80::1/128 scram-sha-256",
        ),
        (
            'FATAL:  no pg_hba.conf entry for replication connection from host "[local]", user "backup", no encryption',
            "does not let role 'backup' in for replication",
            "-- local replication backup scram-sha-256",
        ),
        (
            "FATAL:  must be superuser or replication role to start walsender",
            "has no REPLICATION privilege",
            "ALTER ROLE backup WITH REPLICATION;",
        ),
        (
            "FATAL:  permission denied to start WAL sender\nDETAIL:  Only roles with the REPLICATION attribute may start one.",
            "has no REPLICATION privilege",
            "ALTER ROLE backup WITH REPLICATION;",
        ),
        (
            'FATAL:  role "backup" does not exist',
            "there is no role 'backup'",
            "CREATE ROLE backup WITH LOGIN REPLICATION",
        ),
        ('FATAL:  role "backup" is not permitted to log in', "may not log in", "ALTER ROLE backup WITH LOGIN;"),
        ('FATAL:  password authentication failed for user "backup"', "does not accept the password", "~/.pgpass"),
        ("fe_sendauth: no password supplied", "asks for a password", "db.example:5432:*:backup:PASSWORD"),
        ('FATAL:  Peer authentication failed for user "backup"', "operating system account", "pg_hba.conf"),
        ('FATAL:  database "auth_db" does not exist', "there is no database 'auth_db'", "dbname="),
        (
            'FATAL:  permission denied for database "auth_db"',
            "may not connect",
            "GRANT CONNECT ON DATABASE auth_db TO backup;",
        ),
        (
            'FATAL:  number of requested standby connections exceeds "max_wal_senders" (currently 10)',
            "no free WAL sender",
            "ALTER SYSTEM SET max_wal_senders",
        ),
        ("server does not support SSL, but SSL was required", "offers no TLS", "sslmode=prefer"),
        ("SSL error: certificate verify failed", "cannot be verified", "sslrootcert="),
    ],
)
def test_a_missing_privilege_or_setting_comes_with_the_line_that_mends_it(text: str, message: str, hint: str) -> None:
    error = explain_failure(
        f'connection to server at "db.example", port 5432 failed: {text}', ENDPOINT, replication=True
    )
    assert isinstance(error, ServerSettingError)
    assert message in str(error)
    assert hint in (error.hint or "")
    assert "db.example:5432" in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'could not translate host name "db.example" to address: Name or service not known',
            "no host named 'db.example'",
        ),
        ("Connection refused\n\tIs the server running on that host?", "nothing listens at db.example:5432"),
        ("timeout expired", "did not answer in time"),
        ("FATAL:  the database system is starting up", "is up but starting up"),
        ("FATAL:  sorry, too many clients already", "takes no more connections"),
        ("치명적오류:  알 수 없음", "치명적오류:  알 수 없음"),
        ("", "no reason given"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named(text: str, message: str) -> None:
    error = explain_failure(text, ENDPOINT, replication=False)
    assert type(error) is ServerError
    assert message in str(error)
    assert error.hint


def test_an_sql_connection_asks_for_its_own_pg_hba_line() -> None:
    text = 'FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "backup", database "auth_db", no encryption'
    error = explain_failure(text, ENDPOINT, replication=False)
    assert "-- host auth_db backup 10.0.0.7/32 scram-sha-256" in (error.hint or "")


@pytest.mark.parametrize("connect", [connect_sql, open_replication])
def test_nothing_listening_is_refused(connect: object) -> None:
    assert callable(connect)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match=r"nothing listens at 127\.0\.0\.1"):
            connect(f"host=127.0.0.1 port={unused.getsockname()[1]} user=u")


@pytest.mark.parametrize("connect", [connect_sql, open_replication])
def test_a_silent_server_is_given_up_in_time(connect: object) -> None:
    assert callable(connect)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"host=127.0.0.1 port={silent.getsockname()[1]} user=u connect_timeout=2"
        with pytest.raises(ServerError, match="did not answer in time"):
            connect(dsn)


@pytest.mark.parametrize("dsn", ["host=db nonsense", "host=db connect_timeout=soon"])
def test_a_dsn_that_is_none_is_a_config_error(dsn: str) -> None:
    with pytest.raises(ConfigError):
        open_replication(dsn)


@pytest.mark.parametrize(("name", "quoted"), [("backup", "backup"), ("Backup", '"Backup"'), ('a"b', '"a""b"')])
def test_role_names_are_quoted_where_sql_needs_it(name: str, quoted: str) -> None:
    assert quote_role(name) == quoted
