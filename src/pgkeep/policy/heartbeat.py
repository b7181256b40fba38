"""A commit every few seconds, so that the newest recoverable moment has a date even where nobody else writes.

A row of our own table where the role may write one: it tells a restored cluster's own date, too. Else a transaction that holds nothing
but a message in the WAL, which needs no privilege and leaves nothing behind; its commit is dated all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg

from pgkeep.errors import PgkeepError
from pgkeep.postgres.connection import connect_sql

__all__ = ["SCHEMA", "beat", "beating", "read_beat"]

SCHEMA = "pgkeep"

_ALLOWED = """
    SELECT pg_is_in_recovery(), count(*) > 0,
           coalesce(bool_and(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
                             AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')), false),
           has_database_privilege(current_database(), 'CREATE')
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pgkeep' AND c.relname = 'heartbeat'
"""
_CREATE = """
    BEGIN;
    CREATE SCHEMA IF NOT EXISTS pgkeep;
    CREATE TABLE IF NOT EXISTS pgkeep.heartbeat (one bool PRIMARY KEY DEFAULT true CHECK (one), beat timestamptz NOT NULL)
        WITH (fillfactor = 10);
    COMMENT ON TABLE pgkeep.heartbeat IS 'pgkeep dates the newest moment that a restore can reach by it';
    COMMIT
"""
_BEAT = """
    INSERT INTO pgkeep.heartbeat (beat) VALUES (clock_timestamp())
        ON CONFLICT (one) DO UPDATE SET beat = excluded.beat RETURNING beat
"""
_MESSAGE = "SELECT pg_logical_emit_message(true, 'pgkeep', 'heartbeat'), clock_timestamp()"


def beat(connection: psycopg.Connection[tuple[Any, ...]]) -> datetime | None:
    """Commit one; the server's time of it, None on a standby, which has the primary's. Raises psycopg.Error."""
    row = connection.execute(_ALLOWED).fetchone()
    assert row is not None
    in_recovery, is_there, may_write, may_create = row
    if in_recovery:
        return None
    if not is_there and may_create:
        connection.execute(_CREATE)
        may_write = True
    answer = connection.execute(_BEAT if may_write else _MESSAGE).fetchone()
    assert answer is not None
    moment: datetime = answer[-1]
    return moment


def read_beat(dsn: str) -> datetime | None:
    """The newest heartbeat that a cluster holds; None where it holds none."""
    with connect_sql(dsn) as connection:
        state = connection.execute(_ALLOWED).fetchone()
        assert state is not None
        if not state[1]:
            return None
        row = connection.execute("SELECT max(beat) FROM pgkeep.heartbeat").fetchone()
    return None if row is None else row[0]


@contextmanager
def beating(dsn: str, every: float | None, on_error: Callable[[str], None]) -> Iterator[None]:
    """Commit one every so many seconds in a thread, None for never; the server's absence is told once, and waited out."""
    if every is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(dsn, every, on_error, ended), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # a daemon: a server that does not answer keeps nobody
        thread.join(2)


def _beat_until(dsn: str, every: float, on_error: Callable[[str], None], ended: threading.Event) -> None:
    told = ""
    while not ended.is_set():
        try:
            with connect_sql(dsn) as connection:
                connection.execute("SET lock_timeout = '5s'")
                connection.execute("SET synchronous_commit = off")
                while True:
                    beat(connection)
                    told = ""
                    if ended.wait(every):
                        return
        except (psycopg.Error, PgkeepError) as error:
            reason = " ".join(str(error).split())
            if reason != told:
                on_error(f"no heartbeat: {reason}")
                told = reason
        ended.wait(max(every, 1.0))
