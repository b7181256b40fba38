"""Which tables of a cluster are compared, and how their rows are put into words that mean the same on both sides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgkeep.drill.fingerprint import Column, TableFingerprint
from pgkeep.errors import NotFoundError
from pgkeep.postgres.connection import connect_sql

__all__ = [
    "HEARTBEAT_SCHEMA",
    "Connection",
    "TableName",
    "TableState",
    "connect_to",
    "databases",
    "range_query",
    "row_text",
    "sequence_values",
    "table_states",
    "tables_of",
    "within",
]

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

HEARTBEAT_SCHEMA = "pgkeep"
"""Our own; its one row changes all the time."""

_SESSION = """
    SELECT set_config(name, value, false)
      FROM (VALUES ('extra_float_digits', '3'), ('DateStyle', 'ISO, YMD'), ('IntervalStyle', 'postgres'), ('TimeZone', 'UTC'),
                   ('bytea_output', 'hex'), ('lc_monetary', 'C'), ('xmloption', 'content'), ('row_security', 'off'),
                   ('quote_all_identifiers', 'off'), ('idle_in_transaction_session_timeout', '0'),
                   ('default_transaction_read_only', 'off'), ('jit', 'off')) AS wanted (name, value)
"""
_TRANSACTION_TIMEOUT = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'"

_DATABASES = """
    SELECT datname, has_database_privilege(oid, 'CONNECT') FROM pg_database
     WHERE datallowconn AND NOT datistemplate ORDER BY datname
"""
# Ordinary tables and leaves of partitioned ones; unlogged and temporary ones do not come back.
_TABLES = """
    SELECT n.nspname, c.relname, has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
           has_table_privilege(c.oid, %s)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'
       AND n.nspname NOT IN ('information_schema', %s)
     ORDER BY 1, 2
"""
_STATES = """
    SELECT n.nspname, c.relname, c.oid, c.relfilenode, coalesce(m.amname = 'heap', false),
           (SELECT coalesce(array_agg(a.attname ORDER BY a.attnum), '{}') FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'),
           (SELECT coalesce(array_agg(a.atttypid::oid::int8 ORDER BY a.attnum), '{}') FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'),
           (SELECT array_agg(a.attname ORDER BY k.n)
              FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n), pg_attribute a
             WHERE i.indrelid = c.oid AND i.indisprimary AND k.n <= i.indnkeyatts
               AND a.attrelid = c.oid AND a.attnum = k.attnum)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am m ON m.oid = c.relam
     WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'
       AND n.nspname NOT IN ('information_schema', %s)
"""
_SEQUENCES = """
    SELECT s.schemaname, s.sequencename, s.increment_by, s.last_value
      FROM pg_sequences s JOIN pg_namespace n ON n.nspname = s.schemaname
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.sequencename
     WHERE c.relpersistence = 'p' AND s.last_value IS NOT NULL AND NOT s.cycle
       AND s.schemaname !~ '^pg_' AND s.schemaname <> %s
"""

# regproc, regprocedure, regoper, regoperator, regclass, regtype, regrole, regnamespace, regconfig, regdictionary, regcollation, and
# regdatabase of PostgreSQL 19 (src/include/catalog/pg_type.dat)
_NAMES = frozenset({24, 2202, 2203, 2204, 2205, 2206, 4096, 4089, 3734, 3769, 4191, 8326})
_ARRAYS_OF_NAMES = frozenset({1008, 2207, 2208, 2209, 2210, 2211, 4097, 4090, 3735, 3770, 4192, 8327})


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table of a database."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Quoted for SQL."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class TableState:
    """How a table looks in a snapshot. ``filenode`` changes when it is truncated or rewritten."""

    table: TableName
    oid: int
    filenode: int
    in_blocks: bool
    columns: list[Column]
    key: list[str]


def connect_to(dsn: str, database: str) -> Connection:
    """A session in which a value's text depends on nothing but the value. Raises as `connect_sql` does."""
    connection = connect_sql(make_conninfo(dsn, dbname=database))
    connection.execute(_SESSION)
    connection.execute(_TRANSACTION_TIMEOUT)
    return connection


def databases(connection: Connection, wanted: Collection[str] | None) -> tuple[list[str], list[str]]:
    """The databases to compare, and a note for each that this role cannot look into. Raises NotFoundError for a wanted one."""
    found: dict[str, bool] = dict(connection.execute(_DATABASES))
    missing = sorted(set(wanted or ()) - set(found))
    if missing:
        raise NotFoundError(
            f"the source has no database {missing[0]!r}", hint=f"it has: {', '.join(sorted(found)) or 'none'}"
        )
    chosen = [name for name in found if wanted is None or name in wanted]
    notes = [f"database {name} was left out: the role may not connect to it" for name in chosen if not found[name]]
    return [name for name in chosen if found[name]], notes


def tables_of(connection: Connection) -> tuple[dict[TableName, bool], list[str]]:
    """The tables to compare with whether the role may lock them against writers, and a note for each that it cannot read."""
    # what LOCK TABLE asks for (src/backend/commands/lockcmds.c, LockTableAclCheck)
    rights = "UPDATE, DELETE, TRUNCATE" + (", MAINTAIN" if connection.info.server_version >= 170000 else "")
    tables, notes = {}, []
    for schema, name, may_read, may_lock in connection.execute(_TABLES, (rights, HEARTBEAT_SCHEMA)):
        if may_read:
            tables[TableName(schema, name)] = bool(may_lock)
        else:
            notes.append(f"table {schema}.{name} was left out: the role may not read it")
    return tables, notes


def table_states(connection: Connection) -> dict[TableName, TableState]:
    """Every table, as the connection's snapshot sees it: its catalogs, too, are of that moment."""
    found = {}
    for schema, name, oid, filenode, in_blocks, columns, types, key in connection.execute(_STATES, (HEARTBEAT_SCHEMA,)):
        table = TableName(schema, name)
        wanted = [Column(column, _cast(kind)) for column, kind in zip(columns, types, strict=True)]
        found[table] = TableState(table, oid, filenode, bool(in_blocks), wanted, list(key or ()))
    return found


def _cast(kind: int) -> Literal["", "::oid", "::oid[]"]:
    return "::oid" if kind in _NAMES else "::oid[]" if kind in _ARRAYS_OF_NAMES else ""


def sequence_values(connection: Connection) -> dict[tuple[str, str], tuple[int, int]]:
    """The increment and the last value of each sequence that was used, by schema and name; not of those that begin again."""
    # whoever alters one holds it up for moments; a second reading is as good as none then
    connection.execute("SET lock_timeout = '2s'")
    try:
        rows = connection.execute(_SEQUENCES, (HEARTBEAT_SCHEMA,)).fetchall()
    except psycopg.errors.LockNotAvailable:
        return {}
    finally:
        connection.execute("SET lock_timeout = 0")
    return {(schema, name): (increment, value) for schema, name, increment, value in rows}


def row_text(columns: Sequence[Column]) -> sql.Composed:
    """A row as text: the same for the same values, whatever was done to other columns since."""
    values = [sql.SQL("r.") + sql.Identifier(column.name) + sql.SQL(column.cast) for column in columns]
    return sql.SQL('ROW({})::text COLLATE "C"').format(sql.SQL(", ").join(values))


def within(start: int, end: int | None, *, in_blocks: bool) -> sql.Composed:
    """The condition for the rows of the blocks from ``start`` to ``end``; TID range scans serve it."""
    if not in_blocks:
        return sql.Composed([sql.SQL("true")])
    begin = sql.SQL("r.ctid >= {}::tid").format(sql.Literal(f"({start},0)"))
    return begin if end is None else begin + sql.SQL(" AND r.ctid < {}::tid").format(sql.Literal(f"({end},0)"))


def range_query(table: TableFingerprint, start: int) -> sql.Composed:
    """Counts and sums up one range of a table."""
    # hashtextextended is the same within a major version, and both sides are of one
    return sql.SQL(
        "SELECT count(*), coalesce(sum(hashtextextended({}, 0)), 0)::text FROM ONLY {} AS r WHERE {}"
    ).format(
        row_text(table.columns),
        sql.Identifier(table.schema, table.name),
        within(start, table.end_of(start), in_blocks=table.range_blocks > 0),
    )
