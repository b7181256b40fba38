"""What a server's catalogs say of a table: columns, key, foreign keys, sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg import sql

from pgkeep.errors import UsageError

__all__ = ["Connection", "ForeignKey", "SequenceFacts", "TableFacts", "find_table", "table_facts"]

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

_TABLES = """
    SELECT c.oid, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = %s AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
       AND (%s::text IS NULL OR n.nspname = %s)
"""
_COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
     WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
# The primary key first; then unique indexes that cover every row and hold no NULL, the smallest first.
_KEY = """
    SELECT array_agg(a.attname ORDER BY k.n)
      FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n), pg_attribute a
     WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
       AND k.n <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.attnum
     GROUP BY i.indexrelid, i.indisprimary, i.indnkeyatts
    HAVING bool_and(a.attnotnull) ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1
"""
_FOREIGN_KEYS = """
    SELECT c.conname, c.confrelid, n.nspname, p.relname,
           (SELECT array_agg(a.attname ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, n)
              JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum),
           (SELECT array_agg(a.attname ORDER BY k.n) FROM unnest(c.confkey) WITH ORDINALITY AS k (attnum, n)
              JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum)
      FROM pg_constraint c JOIN pg_class p ON p.oid = c.confrelid JOIN pg_namespace n ON n.oid = p.relnamespace
     WHERE c.conrelid = %s AND c.contype = 'f'
       -- not those that the server made for the partitions of a parent
       AND NOT EXISTS (SELECT FROM pg_constraint w WHERE w.oid = c.conparentid AND w.conrelid = c.conrelid)
     ORDER BY c.conname
"""
# Owned ones (serial and identity), and any other that a column's default calls.
_SEQUENCES = """
    SELECT DISTINCT a.attname, s.seqrelid, s.seqincrement, pg_sequence_last_value(s.seqrelid)
      FROM pg_attribute a
      LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
      JOIN pg_depend d ON (d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                           AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum)
                       OR (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass)
      JOIN pg_sequence s ON s.seqrelid = CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid ELSE d.refobjid END
     WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN (20, 21, 23)
"""
_DEFERRABLE = "SELECT FROM pg_index WHERE indrelid = %s AND NOT indimmediate"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A table's columns that name rows of a parent."""

    name: str
    columns: list[str]
    parent_oid: int
    parent_name: str
    parent: sql.Identifier
    parent_columns: list[str]


@dataclass(frozen=True, slots=True)
class SequenceFacts:
    """A sequence that fills a column; ``last_value`` None where it was never used."""

    oid: int
    increment: int
    last_value: int | None


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table. ``columns`` maps names to types, without generated ones; ``key`` is empty where no key tells all rows apart."""

    oid: int
    schema: str
    name: str
    columns: dict[str, str]
    key: list[str]
    foreign_keys: list[ForeignKey]
    sequences: dict[str, SequenceFacts]
    has_deferrable_key: bool

    @property
    def identifier(self) -> sql.Identifier:
        """Its name, quoted for SQL."""
        return sql.Identifier(self.schema, self.name)


def find_table(connection: Connection, schema: str | None, name: str) -> int | None:
    """The OID of a table, None where there is none. Raises UsageError where several schemas have one and none is named."""
    rows = connection.execute(_TABLES, (name, schema, schema)).fetchall()
    if len(rows) > 1:
        found = ", ".join(sorted(f"{row[1]}.{name}" for row in rows))
        raise UsageError(f"several tables are called {name}: {found}", hint="name its schema too")
    return int(rows[0][0]) if rows else None


def table_facts(connection: Connection, oid: int) -> TableFacts:
    """All that is needed to copy rows of a table."""
    row = connection.execute(
        "SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s", (oid,)
    ).fetchone()
    assert row is not None
    key = connection.execute(_KEY, (oid,)).fetchone()
    return TableFacts(
        oid=oid,
        schema=row[0],
        name=row[1],
        columns=dict(connection.execute(_COLUMNS, (oid,)).fetchall()),
        key=list(key[0]) if key else [],
        foreign_keys=[
            ForeignKey(name, columns, parent, f"{schema}.{table}", sql.Identifier(schema, table), parent_columns)
            for name, parent, schema, table, columns, parent_columns in connection.execute(_FOREIGN_KEYS, (oid,))
        ],
        sequences={
            column: SequenceFacts(sequence, increment, last)
            for column, sequence, increment, last in connection.execute(_SEQUENCES, (oid,))
        },
        has_deferrable_key=bool(connection.execute(_DEFERRABLE, (oid,)).fetchall()),
    )
