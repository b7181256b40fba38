"""An incident of the drill's own on the live server, to be recovered from: a table that is dropped, a migration that goes wrong.

It happens to a table of the drill's own, in a schema of its own, which goes with the drill; a schema whose drill was killed goes with the
next one. A session holds an advisory lock on the schema's name, by which it is known that its drill lives.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC

import psycopg
from psycopg import sql

from pgkeep.drill.checks.found import failed, passed
from pgkeep.drill.record import Check
from pgkeep.drill.session import Connection, Copy, reason_of
from pgkeep.errors import ServerSettingError
from pgkeep.postgres.connection import connect_sql, quote_role
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.restore.target import RecoveryTarget

__all__ = ["Incident", "staged_incident"]

_PREFIX = "pgkeep_drill_staged_"
_ROWS = 1000
_LEFTOVERS = r"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgkeep\_drill\_staged\_%'"
_CLOCK_STEP = 0.01
"""Seconds between the moment and the incident: commits have their times to the microsecond."""


@dataclass(frozen=True, slots=True)
class Incident:
    """``target`` is where to recover to, ``done`` what was done, in SQL."""

    database: str
    schema: str
    target: RecoveryTarget
    done: str

    def check(self, copy: Copy) -> Check:
        """Whether the restored table is as it was before."""
        name = f"{self.schema}.account"
        query = sql.SQL("SELECT count(*), count(*) FILTER (WHERE balance = id) FROM {}").format(
            sql.Identifier(self.schema, "account")
        )
        try:
            with copy.connect(self.database) as connection:
                row = connection.execute(query).fetchone()
        except psycopg.Error as error:
            return self._failed(f"table {name} did not come back: {reason_of(error)}")
        if row != (_ROWS, _ROWS):
            return self._failed(f"table {name} came back with {row}, and had {_ROWS} rows, all of them right")
        return _named(passed("assertion", f"table {name} is as it was before, with {_ROWS} rows", 1, "queries"))

    @staticmethod
    def _failed(problem: str) -> Check:
        remedy = "see which moment was recovered: pgkeep drill report latest"
        return _named(failed("assertion", [problem], remedy, 1, "queries"))


def _named(check: Check) -> Check:
    import msgspec

    return msgspec.structs.replace(check, name="what was lost is back")


@contextmanager
def staged_incident(dsn: str, drill: str, *, drops: bool) -> Iterator[Incident]:
    """Let it happen. ``drops``: a table is dropped, and the target is a time; else rows are spoiled, and it is a transaction.

    Raises ServerError, ServerSettingError where the role may not make a schema.
    """
    schema = _PREFIX + drill.rpartition("-")[2]
    endpoint = endpoint_of(dsn)
    with connect_sql(dsn) as connection:
        _drop_leftovers(connection)
        try:
            target, done = _happen(connection, schema, drops=drops)
            _switch(connection)
            yield Incident(connection.info.dbname, schema, target, done)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
            raise ServerSettingError(
                f"the incident cannot be made at {endpoint}: {reason_of(error)}",
                hint=f"on the primary: GRANT CREATE ON DATABASE {quote_role(endpoint.database)} TO {quote_role(endpoint.user)};",
            ) from None
        finally:
            with contextlib.suppress(psycopg.Error):
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def _happen(connection: Connection, schema: str, *, drops: bool) -> tuple[RecoveryTarget, str]:
    connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (schema,))
    table = sql.Identifier(schema, "account")
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    connection.execute(
        sql.SQL("CREATE TABLE {} AS SELECT id, id AS balance FROM generate_series(1, {}) AS id").format(
            table, sql.Literal(_ROWS)
        )
    )
    if drops:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        moment = row[0].astimezone(UTC).isoformat(timespec="microseconds")
        time.sleep(_CLOCK_STEP)
        connection.execute(sql.SQL("DROP TABLE {}").format(table))
        return RecoveryTarget(kind="time", value=moment), f"DROP TABLE {schema}.account"
    with connection.transaction():
        row = connection.execute("SELECT (pg_current_xact_id()::text::numeric % 4294967296)::text").fetchone()
        connection.execute(sql.SQL("UPDATE {} SET balance = 0").format(table))
    assert row is not None
    return RecoveryTarget(kind="xid", value=str(row[0]), exclusive=True), f"UPDATE {schema}.account without a WHERE"


def _switch(connection: Connection) -> None:
    """End the segment, so that archiving takes it; where that is not allowed, it comes when it is full."""
    with contextlib.suppress(psycopg.Error):
        connection.execute("SELECT pg_switch_wal()")


def _drop_leftovers(connection: Connection) -> None:
    for (schema,) in connection.execute(_LEFTOVERS).fetchall():
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (schema,)).fetchone()
        if row == (True,):
            with contextlib.suppress(psycopg.Error):
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (schema,))
