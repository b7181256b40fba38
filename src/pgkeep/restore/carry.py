"""Rows that were written after the moment a server was recovered to, brought into it from a later copy of the same cluster.

Meant for tables that rows are appended to and stay in, such as a list of revoked tokens: a row of the later copy is brought
when the recovered table has none with its key. Rows that were changed or deleted later stay as they are at the recovered
moment, and are counted.

The rows come as they were, the way replication applies them (``session_replication_role = replica``): triggers do not act a
second time on what they acted on when the row was first written. Foreign keys are not checked by the server then, so a row
whose parent is not there is left out here, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgkeep.errors import NotFoundError, RecoveryError, UsageError
from pgkeep.progress import Progress
from pgkeep.restore.table_facts import Connection, ForeignKey, TableFacts, find_table, table_facts

__all__ = ["CarriedTable", "SkippedRows", "TableName", "carry_table", "parse_table_name"]

_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^".\s]+))\s*')
_EXAMPLES = 3
_STAGE = sql.Identifier("pg_temp", "pgkeep_carried")
_NUMBER = sql.Identifier("pgkeep_row")


@dataclass(frozen=True, slots=True)
class TableName:
    """A table as an operator names it; database and schema may be left out."""

    table: str
    schema: str | None = None
    database: str | None = None

    def __str__(self) -> str:
        return ".".join(part for part in (self.database, self.schema, self.table) if part is not None)


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """Rows that were not brought, why, and the keys of some of them."""

    count: int
    reason: str
    examples: list[str]


@dataclass(frozen=True, slots=True)
class CarriedTable:
    """What was done for one table: ``found`` rows in the later copy, ``there`` of them in the recovered table already.

    ``inserted`` + the counts of ``skipped`` + ``there`` are ``found``. ``changed`` of those that were there had other values
    later. ``key`` are the columns by which rows were told apart; empty: whole rows.
    """

    name: str
    key: list[str]
    found: int
    there: int
    inserted: int
    changed: int
    skipped: list[SkippedRows] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse_table_name(text: str) -> TableName:
    """``table``, ``schema.table`` or ``database.schema.table``; double quotes as in SQL. Raises UsageError."""
    parts: list[str] = []
    position = 0
    while match := _PART.match(text, position):
        # as in SQL, a name without quotes is folded
        parts.append(match[1].replace('""', '"') if match[1] is not None else match[2].lower())
        position = match.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    if position != len(text) or not 1 <= len(parts) <= 3 or text.endswith("."):
        raise UsageError(f"not a table's name: {text!r}", hint="write table, schema.table or database.schema.table")
    return TableName(*reversed(parts))


def carry_table(later_dsn: str, recovered_dsn: str, name: TableName, database: str, progress: Progress) -> CarriedTable:
    """Bring a table's later rows, in one transaction of the recovered server; both DSNs are of superusers.

    ``database`` is the one where the name has none. Raises NotFoundError where the table is missing on a side, RecoveryError
    where the rows cannot be brought; nothing is changed then.
    """
    words = {"dbname": name.database or database, "application_name": "pgkeep carry", "client_encoding": "UTF8"}
    progress.phase(f"carrying {name}")
    try:
        with (
            psycopg.connect(make_conninfo(later_dsn, **words)) as later,
            psycopg.connect(make_conninfo(recovered_dsn, **words)) as recovered,
        ):
            return _Carry(later, recovered, name, progress).run()
    except psycopg.Error as error:
        raise RecoveryError(
            f"the later rows of {name} cannot be brought: {' '.join(str(error).split())}",
            hint="nothing of them was; the two copies of the table must fit each other",
        ) from None


class _Carry:
    def __init__(self, later: Connection, recovered: Connection, name: TableName, progress: Progress) -> None:
        self._later, self._recovered, self._name, self._progress = later, recovered, name, progress
        self._notes: list[str] = []
        self._skipped: list[SkippedRows] = []

    def run(self) -> CarriedTable:
        for connection in (self._later, self._recovered):
            connection.execute("SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0")
        self._target = self._find(self._recovered, "at the recovered moment")
        self._source = self._find(self._later, "at the later moment")
        self._columns = self._common_columns()
        self._key = self._common_key()
        found = self._stage()
        changed, there = self._drop_known()
        for key in self._target.foreign_keys:
            self._drop_orphans(key)
        inserted = self._insert()
        self._advance_sequences()
        self._recovered.commit()
        return CarriedTable(
            name=f"{self._target.schema}.{self._target.name}",
            key=self._key,
            found=found,
            there=there,
            inserted=inserted,
            changed=changed,
            skipped=self._skipped,
            notes=self._notes,
        )

    def _find(self, connection: Connection, when: str) -> TableFacts:
        oid = find_table(connection, self._name.schema, self._name.table)
        if oid is None:
            later = connection is self._later
            raise NotFoundError(
                f"there is no table {self._name} in database {connection.info.dbname} {when}",
                hint="it was dropped or renamed by then: name an earlier moment with --carry-until TIME|LSN"
                if later
                else "it was not made yet, so there is nothing that its rows could be brought into",
            )
        return table_facts(connection, oid)

    def _common_columns(self) -> list[str]:
        """Those that both have and that a value can be given to."""
        there = self._source.columns
        common = [name for name in self._target.columns if name in there]
        for missing, words in (
            ([name for name in there if name not in self._target.columns], "came later and are left out"),
            ([name for name in self._target.columns if name not in there], "were gone later and take their defaults"),
        ):
            if missing:
                self._notes.append(f"columns that {words}: {', '.join(missing)}")
        retyped = [name for name in common if there[name] != self._target.columns[name]]
        if retyped:
            self._notes.append(f"columns that had another type later: {', '.join(retyped)}")
        if not common:
            raise RecoveryError(f"the two copies of {self._name} have no column in common")
        return common

    def _common_key(self) -> list[str]:
        """The key by which rows are told apart; none: whole rows."""
        key = self._target.key
        if not key:
            self._notes.append("it has no primary key and no other that fits: whole rows were compared")
            return []
        if key != self._source.key or any(
            self._source.columns.get(name) != self._target.columns.get(name) for name in key
        ):
            raise RecoveryError(
                f"{self._name} was given another key later: ({', '.join(self._source.key)}) instead of ({', '.join(key)})",
                hint="name a moment before that with --carry-until TIME|LSN",
            )
        return key

    def _stage(self) -> int:
        """The later rows, in a temporary table with the recovered table's types."""
        names = self._list(self._columns)
        self._recovered.execute(
            sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(
                _STAGE, names, self._target.identifier
            )
        )
        with (
            self._later.cursor().copy(
                # a partitioned table, and the children of an inheritance, answer to a query only
                sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(names, self._source.identifier)
            ) as rows,
            self._recovered.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(_STAGE, names)) as stage,
        ):
            for data in rows:
                stage.write(data)
                self._progress.advance(len(data))
        self._recovered.execute(
            sql.SQL("ALTER TABLE {} ADD COLUMN {} bigint GENERATED ALWAYS AS IDENTITY").format(_STAGE, _NUMBER)
        )
        self._recovered.execute(sql.SQL("ANALYZE {}").format(_STAGE))
        return int(self._value(sql.SQL("SELECT count(*) FROM {}").format(_STAGE)))

    def _drop_known(self) -> tuple[int, int]:
        """Leave out what the recovered table has; how many of those have other values there, and how many they are."""
        if not self._key:
            return 0, self._drop_known_rows()
        same_key = sql.SQL(" AND ").join(sql.SQL("s.{0} = t.{0}").format(sql.Identifier(name)) for name in self._key)
        texts = [self._row_text(alias) for alias in ("s", "t")]
        changed = self._value(
            sql.SQL("SELECT count(*) FROM {} s JOIN {} t ON {} WHERE {} <> {}").format(
                _STAGE, self._target.identifier, same_key, *texts
            )
        )
        there = self._recovered.execute(
            sql.SQL("DELETE FROM {} s USING {} t WHERE {}").format(_STAGE, self._target.identifier, same_key)
        ).rowcount
        return int(changed), there

    def _drop_known_rows(self) -> int:
        """Whole rows, each as often as it is there."""
        return self._recovered.execute(
            sql.SQL(
                "DELETE FROM {stage} USING ("
                " SELECT {number}, row_number() OVER (PARTITION BY {stage_text} ORDER BY {number}) AS nth, {stage_text} AS text"
                " FROM {stage} s) later"
                " JOIN (SELECT {table_text} AS text, count(*) AS often FROM {table} t GROUP BY 1) there USING (text)"
                " WHERE {stage}.{number} = later.{number} AND later.nth <= there.often"
            ).format(
                stage=_STAGE,
                number=_NUMBER,
                table=self._target.identifier,
                stage_text=self._row_text("s"),
                table_text=self._row_text("t"),
            )
        ).rowcount

    def _drop_orphans(self, key: ForeignKey) -> None:
        """Leave out rows whose parent is neither there nor, in a table that refers to itself, among those that come."""
        if not set(key.columns) <= set(self._columns):
            return
        pairs = list(zip(key.columns, key.parent_columns, strict=True))
        names = [sql.Identifier(name) for name in key.columns]
        is_set = sql.SQL(" AND ").join(sql.SQL("s.{} IS NOT NULL").format(name) for name in names)

        def parent(where: sql.Identifier) -> sql.Composed:
            matches = [
                sql.SQL("p.{} = s.{}").format(sql.Identifier(there), sql.Identifier(here)) for here, there in pairs
            ]
            return sql.SQL("EXISTS (SELECT FROM {} p WHERE {})").format(where, sql.SQL(" AND ").join(matches))

        known = parent(key.parent)
        if key.parent_oid == self._target.oid and set(key.parent_columns) <= set(self._columns):
            known = sql.SQL("({} OR {})").format(known, parent(_STAGE))
        shown = sql.SQL("concat_ws(', ', {})").format(
            sql.SQL(", ").join(sql.SQL("s.{}").format(name) for name in names)
        )
        lost: list[str] = []
        # what was left out may be the parent of others that come
        while rows := self._recovered.execute(
            sql.SQL("DELETE FROM {} s WHERE {} AND NOT {} RETURNING {}").format(_STAGE, is_set, known, shown)
        ).fetchall():
            lost += [str(row[0]) for row in rows]
        if lost:
            columns = ", ".join(key.columns)
            reason = (
                f"({columns}) names rows of {key.parent_name} that are not there at the recovered moment ({key.name})"
            )
            examples = [f"({columns}) = ({value})" for value in sorted(set(lost))[:_EXAMPLES]]
            self._skipped.append(SkippedRows(len(lost), reason, examples))

    def _insert(self) -> int:
        names = self._list(self._columns)
        left = int(self._value(sql.SQL("SELECT count(*) FROM {}").format(_STAGE)))
        # the server refuses to look at keys that are checked late; such a conflict fails the whole table, at its end
        on_conflict = sql.SQL("" if self._target.has_deferrable_key else "ON CONFLICT DO NOTHING")
        self._recovered.execute("SET LOCAL session_replication_role = replica")
        inserted = self._recovered.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} ORDER BY {} {}").format(
                self._target.identifier, names, names, _STAGE, _NUMBER, on_conflict
            )
        ).rowcount
        self._recovered.execute("SET LOCAL session_replication_role = origin")
        if inserted < left:
            reason = "a row with the same value of another unique key is there"
            self._skipped.append(SkippedRows(left - inserted, reason, []))
        return inserted

    def _advance_sequences(self) -> None:
        """Move the sequences behind the columns past every value that was ever given out: here, later, or in the table."""
        for column, sequence in self._target.sequences.items():
            ahead = ">" if sequence.increment > 0 else "<"
            extreme = sql.SQL("max" if sequence.increment > 0 else "min")
            wanted = [
                self._value(
                    sql.SQL("SELECT {}({}) FROM {}").format(extreme, sql.Identifier(column), self._target.identifier)
                )
            ]
            later = self._source.sequences.get(column)
            if later is not None and later.increment == sequence.increment:
                wanted.append(later.last_value)
            values = [int(value) for value in wanted if value is not None]
            if not values:
                continue
            value = max(values) if sequence.increment > 0 else min(values)
            now = sequence.last_value
            if now is None or (value > now if ahead == ">" else value < now):
                self._recovered.execute("SELECT setval(%s::oid::regclass, %s)", (sequence.oid, value))

    def _row_text(self, alias: str) -> sql.Composed:
        columns = sql.SQL(", ").join(
            sql.SQL("{}.{}").format(sql.Identifier(alias), sql.Identifier(name)) for name in self._columns
        )
        return sql.SQL("ROW({})::text").format(columns)

    def _value(self, query: sql.Composed) -> Any:
        row = self._recovered.execute(query).fetchone()
        assert row is not None
        return row[0]

    @staticmethod
    def _list(names: Sequence[str]) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, names))
