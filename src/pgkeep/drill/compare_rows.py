"""From a range of blocks that differs to the rows that do: both sides read side by side, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from pgkeep.drill.fingerprint import RangeSum, SourceFingerprints, TableFingerprint
from pgkeep.drill.fingerprint_ranges import Readers
from pgkeep.drill.fingerprint_tables import Connection, connect_to, row_text, within
from pgkeep.drill.record import Difference
from pgkeep.units import format_size

__all__ = ["Finder", "RowDifferences", "Snapshot"]

_PIECE = 64
"""Blocks that are read at once from each side."""
_MOST_BLOCKS = 1 << 16
"""Blocks that are looked through in one table (512 MiB): beyond them the ranges must do."""
_SHOWN_TEXT = 300

_ROWS = """
    SELECT r.ctid::text, r.xmin::text::int8, hashtextextended({row}, 0), convert_to(left({key}, {shown}), getdatabaseencoding()),
           convert_to(left({row}, {shown}), getdatabaseencoding()), ARRAY[{values}]::text[]
      FROM ONLY {table} AS r WHERE {where}
"""


@dataclass
class RowDifferences:
    """The rows found, and sentences on what could not be shown."""

    differences: list[Difference] = field(default_factory=list)
    details: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``pg_current_snapshot()`` said: transactions below ``xmin`` had ended, from ``xmax`` on had not begun."""

    xmin: int
    xmax: int
    open: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """``xmin:xmax:xid,xid``."""
        low, high, listed = text.split(":")
        return cls(int(low), int(high), frozenset(int(each) for each in listed.split(",") if each))

    def sees(self, xid: int, following: int) -> bool:
        """Whether it saw what transaction ``xid`` (32 bits) did; ``following`` is the next id to be given out (64 bits)."""
        if xid < 3:
            return True  # BootstrapTransactionId, FrozenTransactionId (src/include/access/transam.h)
        full = (following >> 32 << 32) | xid
        if full >= following:
            full -= 1 << 32
        return full < self.xmin or (full < self.xmax and full not in self.open)


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    text: str
    total: int
    xid: int
    values: tuple[str, ...]
    """Of the key's columns."""


class Finder:
    """Looks for rows on the running source and in the restored cluster."""

    def __init__(self, source: str, restored: Readers, fingerprints: SourceFingerprints, examples: int) -> None:
        self._source = source
        self._restored = restored
        self._fingerprints = fingerprints
        self._examples = examples
        self._sessions: dict[str, Connection] = {}

    def close(self) -> None:
        """End its sessions on the source."""
        for session in self._sessions.values():
            session.close()

    def find(self, table: TableFingerprint, ranges: Sequence[RangeSum]) -> RowDifferences:
        """The first rows that differ in these ranges."""
        found = RowDifferences()
        pairs: list[_Pair] = []
        try:
            all_shown = self._search(table, ranges, pairs, found)
            shown = [self._other_side(table, pair) for pair in pairs[: self._examples]]
            # a row that was changed is met twice where its new version has another place
            found.differences = list({each.key: each for each in shown}.values())
        except (psycopg.Error, UnicodeError) as error:
            found.details.append(f"its rows cannot be shown: {error}")
            return found
        if found.differences:
            keys = [each.key for each in found.differences]
            what = f"by {', '.join(table.key)}" if table.key else "by place, since it has no primary key"
            found.details.append(f"rows that differ, {what}: {', '.join(keys)}")
        elif not all_shown:
            found.details.append("the rows that differ were changed on the source since, and cannot be shown")
        return found

    def _search(
        self, table: TableFingerprint, ranges: Sequence[RangeSum], pairs: list[_Pair], found: RowDifferences
    ) -> bool:
        """Fill ``pairs`` from one range after the other; whether every range could be explained."""
        snapshot = Snapshot.parse(self._fingerprints.snapshots[table.database])
        looked, explained = 0, True
        for each in ranges:
            unchanged, differing = 0, len(pairs)
            extra: list[_Pair] = []
            for start, end in self._pieces(table, each):
                if len(pairs) >= self._examples:
                    return explained
                if looked >= _MOST_BLOCKS:
                    found.details.append(f"only the first {format_size(looked * 8192)} of what differs was searched")
                    return explained
                looked += _PIECE
                live, following = self._live(table, start, end)
                here = self._here(table, start, end)
                kept = {place: row for place, row in live.items() if snapshot.sees(row.xid, following)}
                unchanged += len(kept)
                pairs += [
                    _Pair(row, here.get(place))
                    for place, row in kept.items()
                    if place not in here or here[place].total != row.total
                ]
                extra += [_Pair(None, row) for place, row in here.items() if place not in kept]
                del extra[self._examples :]
            if unchanged == each.rows:
                # every row of that moment is still there: what else is restored never was
                pairs += extra
            elif len(pairs) == differing:
                explained = False
        return explained

    def _other_side(self, table: TableFingerprint, pair: _Pair) -> Difference:
        """With the row of the same key on the side that has none in that place."""
        live, here = pair.live, pair.restored
        row = live or here
        assert row is not None
        if table.key and live is None:
            live = next(iter(_read(self._session(table), table, _has_key(table, row)).values()), None)
        if table.key and here is None:
            with self._restored.transaction(table.database) as session:
                here = next(iter(_read(session, table, _has_key(table, row)).values()), None)
        return Difference(
            key=row.key, live=None if live is None else live.text, restored=None if here is None else here.text
        )

    def _pieces(self, table: TableFingerprint, each: RangeSum) -> Iterator[tuple[int, int | None]]:
        if table.range_blocks == 0:
            yield 0, None
            return
        end = table.end_of(each.start)
        limit = table.blocks if end is None else end
        for start in range(each.start, max(limit, each.start + 1), _PIECE):
            following = start + _PIECE
            yield start, (end if following >= limit else following)

    def _session(self, table: TableFingerprint) -> Connection:
        if table.database not in self._sessions:
            self._sessions[table.database] = connect_to(self._source, table.database)
        return self._sessions[table.database]

    def _live(self, table: TableFingerprint, start: int, end: int | None) -> tuple[dict[str, _Row], int]:
        session = self._session(table)
        rows = _read(session, table, within(start, end, in_blocks=table.range_blocks > 0))
        row = session.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8").fetchone()
        assert row is not None
        return rows, row[0]

    def _here(self, table: TableFingerprint, start: int, end: int | None) -> dict[str, _Row]:
        with self._restored.transaction(table.database) as session:
            return _read(session, table, within(start, end, in_blocks=table.range_blocks > 0))


@dataclass(frozen=True, slots=True)
class _Pair:
    """A row of the source that is unchanged since the moment, and a restored one; None where there is none in its place."""

    live: _Row | None
    restored: _Row | None


def _has_key(table: TableFingerprint, row: _Row) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("r.{} = {}").format(sql.Identifier(column), sql.Literal(value))
        for column, value in zip(table.key, row.values, strict=True)
    )


def _read(session: Connection, table: TableFingerprint, where: sql.Composed) -> dict[str, _Row]:
    columns = [sql.SQL("r.") + sql.Identifier(column) for column in table.key]
    key = sql.SQL("ROW({})::text").format(sql.SQL(", ").join(columns))
    query = sql.SQL(_ROWS).format(
        row=row_text(table.columns),
        key=key if table.key else sql.SQL("r.ctid::text"),
        shown=sql.Literal(_SHOWN_TEXT),
        values=sql.SQL(", ").join([column + sql.SQL("::text") for column in columns]),
        table=sql.Identifier(table.schema, table.name),
        where=where,
    )
    return {
        place: _Row(_text(key), _text(row), total, xid, tuple(values))
        for place, xid, total, key, row, values in session.execute(query.as_bytes(session))
    }


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
