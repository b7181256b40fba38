"""Relations that were truncated, as WAL summaries tell, asked for over SQL; 17 and later.

An incremental base backup gets two things wrong about a relation that was cut off and grew again. Both were seen on 17.10
and 18.6, with pg_basebackup and pg_combinebackup alone.

* Blocks beyond the cut that no WAL tells of are taken from the older backup, although they are zeros by now: what the server
  names as the truncation block length is the present length (GetFileBackupMethod in basebackup_incremental.c), and a
  relation may grow by blocks of zeros without WAL (RelationAddBlocks in hio.c). Deleted rows come back.
* Blocks beyond the cut that were changed after it may be missing. The server merges summaries in the order in which the
  directory lists them (GetWalSummaries in walsummary.c), and a truncation makes it forget all blocks beyond it that it has
  seen so far (BlockRefTableEntrySetLimitBlock in blkreftable.c), those of later summaries too. Rows are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from pgkeep.errors import ServerError
from pgkeep.postgres.layout import RelationFile
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory

__all__ = ["Cut", "Truncations"]

_Relation = tuple[int, int, int]
"""Tablespace, database, relfilenode."""

_CUTS = """
SELECT c.reltablespace::bigint, c.reldatabase::bigint, c.relfilenode::bigint,
    min(c.relblocknumber), min(c.relblocknumber) FILTER (WHERE s.end_lsn < %s::pg_lsn)
FROM pg_available_wal_summaries() AS s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) AS c
WHERE s.tli = %s AND s.end_lsn > %s::pg_lsn AND s.start_lsn < %s::pg_lsn
    AND c.is_limit_block AND c.relforknumber = 0 AND c.relfilenode <> 0
GROUP BY 1, 2, 3
HAVING min(c.relblocknumber) > 0
"""

_COVERED = """
SELECT start_lsn - '0/0'::pg_lsn, end_lsn - '0/0'::pg_lsn FROM pg_available_wal_summaries()
WHERE tli = %s AND end_lsn > %s::pg_lsn AND start_lsn < %s::pg_lsn ORDER BY start_lsn
"""

_NEVER = 1 << 32
"""Beyond every block."""

_LAST_LSN = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Cut:
    """To how many blocks a relation was cut off, at its shortest; and the same of all summaries but the last, if any."""

    blocks: int
    earlier_blocks: int | None = None


class Truncations:
    """The cuts of main forks; relations that were created or cut off whole are left out: a server sends them whole anyway."""

    def __init__(self, cuts: dict[_Relation, Cut]) -> None:
        self._cuts = cuts

    @classmethod
    def between(
        cls, sql: psycopg.Connection[tuple[Any, ...]], history: TimelineHistory, start_lsn: int, stop_lsn: int
    ) -> Truncations:
        """Ask for those of the WAL from one LSN to another, along a path of timelines.

        Raises ServerError, also where the summaries do not cover all of it.
        """
        cuts: dict[_Relation, Cut] = {}
        with _explained():
            for timeline, start, stop in _ranges(history, start_lsn, stop_lsn):
                _ask(sql, cuts, timeline, start, stop, stop_lsn)
                # asked last: what is there now was there before
                covered = start
                for first, last in sql.execute(_COVERED, (timeline, str(LSN(start)), str(LSN(stop)))):
                    covered = max(covered, int(last)) if first <= covered else covered
                if covered < stop:
                    raise ServerError(f"WAL summaries of timeline {timeline} are missing from {LSN(covered)} on")
        return cls(cuts)

    @classmethod
    def so_far(cls, sql: psycopg.Connection[tuple[Any, ...]], history: TimelineHistory, start_lsn: int) -> Truncations:
        """Ask for those that the server has summarized since an LSN, whatever that covers. Raises ServerError."""
        cuts: dict[_Relation, Cut] = {}
        with _explained():
            for timeline, start, stop in _ranges(history, start_lsn, _LAST_LSN):
                _ask(sql, cuts, timeline, start, stop, _LAST_LSN)
        return cls(cuts)

    def kept_blocks(self, file: RelationFile, segment_blocks: int) -> int:
        """How many blocks of a segment, at most, may still be as they were before."""
        cut = self._cuts.get((file.tablespace, file.database, file.relfilenode))
        blocks = _NEVER if cut is None else cut.blocks
        return min(max(blocks - file.segment * segment_blocks, 0), segment_blocks)

    def is_cut(self, file: RelationFile, segment_blocks: int) -> bool:
        """Whether a segment was cut off, or lies beyond a cut."""
        return self.kept_blocks(file, segment_blocks) < segment_blocks

    def endangers_more_than(self, known: Truncations) -> bool:
        """Whether blocks may be missing of more than what is cut off in ``known``.

        A cut in the last summary does no harm: there is no later one whose blocks it could make the server forget.
        """
        return any(
            cut.earlier_blocks is not None
            and cut.earlier_blocks < (known._cuts[relation].blocks if relation in known._cuts else _NEVER)
            for relation, cut in self._cuts.items()
        )


def _ask(
    sql: psycopg.Connection[tuple[Any, ...]],
    cuts: dict[_Relation, Cut],
    timeline: int,
    start: int,
    stop: int,
    last_stop: int,
) -> None:
    """Add the cuts of one timeline's WAL; the last summary of all is the one that ends at ``last_stop``."""
    place = str(LSN(last_stop)), timeline, str(LSN(start)), str(LSN(stop))
    for tablespace, database, relfilenode, blocks, earlier_blocks in sql.execute(_CUTS, place):
        relation = tablespace, database, relfilenode
        before = cuts.get(relation, Cut(_NEVER))
        known = [number for number in (earlier_blocks, before.earlier_blocks) if number is not None]
        cuts[relation] = Cut(min(blocks, before.blocks), min(known) if known else None)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise ServerError(f"WAL summaries cannot be read: {reason}") from None


def _ranges(history: TimelineHistory, start_lsn: int, stop_lsn: int) -> Iterator[tuple[int, int, int]]:
    """The timelines that the WAL between two LSNs is on, and which part of it."""
    for timeline in history.timelines:
        end = history.end_of(timeline)
        start, stop = max(history.start_of(timeline), start_lsn), stop_lsn if end is None else min(end, stop_lsn)
        if start < stop:
            yield timeline, start, stop
