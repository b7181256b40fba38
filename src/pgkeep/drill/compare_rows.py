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
           convert_to(left({row}, {shown}), getdatabaseencoding())
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
        snapshot = Snapshot.parse(self._fingerprints.snapshots[table.database])
        changed = extra = looked = 0
        try:
            for each in ranges:
                unexplained: list[Difference] = []
                unchanged = 0
                for start, end in self._pieces(table, each):
                    looked += _PIECE
                    live, following = self._live(table, start, end)
                    here = self._here(table, start, end)
                    kept = {place: row for place, row in live.items() if snapshot.sees(row.xid, following)}
                    unchanged += len(kept)
                    for place in kept.keys() | here.keys():
                        this, that = kept.get(place), here.get(place)
                        if this is None and that is not None:
                            unexplained.append(Difference(key=that.key, live=None, restored=that.text))
                        elif this is not None and (that is None or that.total != this.total):
                            restored = None if that is None else that.text
                            found.differences.append(Difference(key=this.key, live=this.text, restored=restored))
                    del unexplained[self._examples :]
                    if len(found.differences) >= self._examples or looked > _MOST_BLOCKS:
                        break
                else:
                    if unchanged == each.rows:
                        # every row of that moment is still there: what else is restored never was
                        found.differences += unexplained
                        extra += len(unexplained)
                    elif not found.differences:
                        changed += 1
                if len(found.differences) >= self._examples or looked > _MOST_BLOCKS:
                    break
        except psycopg.Error as error:
            found.details.append(f"its rows cannot be shown: {error.diag.message_primary or error}")
        del found.differences[self._examples :]
        if changed and not found.differences:
            found.details.append("the rows that differ were changed on the source since, and cannot be shown")
        if looked > _MOST_BLOCKS and not found.differences:
            found.details.append(f"no row that differs was met in the first {format_size(_MOST_BLOCKS * 8192)}")
        if found.differences:
            keys = sorted(each.key for each in found.differences)
            what = f"by {', '.join(table.key)}" if table.key else "by place, since it has no primary key"
            found.details.append(f"rows that differ, {what}: {keys[0]}" + (f" to {keys[-1]}" if len(keys) > 1 else ""))
        return found

    def _pieces(self, table: TableFingerprint, each: RangeSum) -> Iterator[tuple[int, int | None]]:
        end = table.end_of(each.start)
        if table.range_blocks == 0:
            yield 0, None
            return
        limit = table.blocks if end is None else end
        for start in range(each.start, max(limit, each.start + 1), _PIECE):
            following = start + _PIECE
            yield start, (end if following >= limit else following)

    def _live(self, table: TableFingerprint, start: int, end: int | None) -> tuple[dict[str, _Row], int]:
        session = self._sessions.get(table.database)
        if session is None:
            session = self._sessions[table.database] = connect_to(self._source, table.database)
        rows = _read(session, table, start, end)
        row = session.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8").fetchone()
        assert row is not None
        return rows, row[0]

    def _here(self, table: TableFingerprint, start: int, end: int | None) -> dict[str, _Row]:
        with self._restored.transaction(table.database) as session:
            return _read(session, table, start, end)


def _read(session: Connection, table: TableFingerprint, start: int, end: int | None) -> dict[str, _Row]:
    key = sql.SQL("ROW({})::text").format(
        sql.SQL(", ").join(sql.SQL("r.") + sql.Identifier(column) for column in table.key)
    )
    query = sql.SQL(_ROWS).format(
        row=row_text(table.columns),
        key=key if table.key else sql.SQL("r.ctid::text"),
        shown=sql.Literal(_SHOWN_TEXT),
        table=sql.Identifier(table.schema, table.name),
        where=within(start, end, in_blocks=table.range_blocks > 0),
    )
    return {
        place: _Row(_text(key), _text(row), total, xid)
        for place, xid, total, key, row in session.execute(query.as_bytes(session))
    }


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
