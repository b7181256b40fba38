"""When things happened in one WAL segment, in a few numbers: enough to pass over segments that cannot hold what is looked for."""

from __future__ import annotations

import msgspec
import numpy as np

from pgkeep.postgres.wal import segment_name
from pgkeep.postgres.wal_events import NO_TIME, EventTable
from pgkeep.postgres.xact_records import ABORT, CHECKPOINT, COMMIT, RESTORE_POINT

__all__ = ["NamedPoint", "SegmentTimes", "summarise"]


class NamedPoint(msgspec.Struct, frozen=True):
    """A restore point: its name's bytes, where its record starts, where the next one can, and its time."""

    name: bytes
    lsn: int
    end_lsn: int
    time: int


class SegmentTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The records that start in a segment. Times are microseconds since 1970, UTC; LSNs are numbers.

    ``events`` counts all records that are events of `pgkeep.postgres.wal_records`, ``commits`` and ``aborts`` the ends of
    transactions among them; from ``first_lsn`` to ``max_xid`` all is about those, and None where there is none. Xids are
    compared as plain numbers. ``checkpoint_time`` is that of the last checkpoint.
    """

    segment: str
    start: int
    events: int = 0
    commits: int = 0
    aborts: int = 0
    first_lsn: int | None = None
    last_lsn: int | None = None
    min_time: int | None = None
    max_time: int | None = None
    min_xid: int | None = None
    max_xid: int | None = None
    restore_points: list[NamedPoint] = []
    checkpoint_time: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no event's record starts in it."""
        return self.events == 0


def summarise(events: EventTable, timeline: int, start: int, segment_size: int) -> SegmentTimes:
    """The summary of the segment at ``start``, from all events whose records start in it."""
    ends = events.chosen(events.ends)
    times = ends.times[ends.times != NO_TIME]
    xids = ends.xids[ends.xids != 0]
    points = events.chosen(events.kinds == RESTORE_POINT)
    checkpoints = events.times[(events.kinds == CHECKPOINT) & (events.times != NO_TIME)]
    return SegmentTimes(
        segment=segment_name(timeline, start, segment_size),
        start=int(start),
        events=len(events),
        commits=int(np.count_nonzero(ends.kinds == COMMIT)),
        aborts=int(np.count_nonzero(ends.kinds == ABORT)),
        first_lsn=int(ends.lsns[0]) if len(ends) else None,
        last_lsn=int(ends.lsns[-1]) if len(ends) else None,
        min_time=int(times.min()) if len(times) else None,
        max_time=int(times.max()) if len(times) else None,
        min_xid=int(xids.min()) if len(xids) else None,
        max_xid=int(xids.max()) if len(xids) else None,
        restore_points=[
            NamedPoint(points.names[lsn], lsn, end_lsn, time)
            for lsn, end_lsn, time in zip(
                points.lsns.tolist(), points.end_lsns.tolist(), points.times.tolist(), strict=True
            )
            if lsn in points.names
        ],
        checkpoint_time=int(checkpoints[-1]) if len(checkpoints) else None,
    )
