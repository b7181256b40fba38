"""When things happened in a repository's WAL: transactions by time and id, restore points by name, along paths of timelines.

Whole groups of segments are known from the index (`pgkeep.wal.times_groups`); the rest is read from the WAL itself. Summaries say
which segments can hold what is looked for, and only those are read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import segment_start
from pgkeep.postgres.wal_events import NO_TIME, EventTable, WalEvent, WalRecord, from_microseconds, to_microseconds
from pgkeep.repository import Repository
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.known_times import KnownTimes, Segment
from pgkeep.wal.segment_times import NamedPoint, SegmentTimes, summarise
from pgkeep.wal.times_groups import complete_group
from pgkeep.wal.times_writer import TimesWriter

__all__ = ["NamedPoint", "PathEvent", "SegmentTimes", "TimesWriter", "WalTimes", "summarise"]

_AHEAD_FIRST, _AHEAD = 16, 512
"""Segments that the index is asked for at once on the way along a path: few at first, since the first may be enough."""

_EVERYTHING = 1 << 63


class PathEvent(WalEvent, frozen=True, kw_only=True, gc=False):
    """An event and the timeline that wrote it."""

    timeline: int


class Place(NamedTuple):
    """Positions ``[begin, end)`` in a segment's file."""

    segment: Segment
    begin: int
    end: int


class Step(NamedTuple):
    """A `Place` on the way along a path, and what is known of its segment."""

    path: TimelineHistory
    segment: Segment
    begin: int
    end: int
    summary: SegmentTimes


May = Callable[[SegmentTimes], bool]
Choose = Callable[[EventTable], npt.NDArray[np.bool_]]


class WalTimes:
    """What the WAL of one cluster in one repository says, as the inventory knows it; safe for threads.

    All methods raise DamageError where WAL is damaged, and StoreError; ``jobs`` is how many objects are read at once.
    """

    def __init__(
        self, repository: Repository, system_identifier: int, inventory: WalInventory, *, jobs: int | None = None
    ) -> None:
        self._inventory = inventory
        self._size = inventory.segment_size
        self._known = KnownTimes(repository, system_identifier, inventory, jobs)

    @property
    def notes(self) -> list[str]:
        """Parts of the index that are damaged, a sentence each: the WAL itself was read instead."""
        return self._known.notes

    def segments(self, timeline: int) -> list[SegmentTimes]:
        """The summaries of a timeline's segments, in order; its first one has what its parent wrote of it, too."""
        return self._known.summaries((timeline, start) for start in self._known.starts(timeline))

    def segment(self, timeline: int, start: int) -> SegmentTimes:
        """What the segment at ``start`` has; of other segments nothing is read but what the index has beside it.

        Raises NotFoundError where the repository has nothing of it.
        """
        return self._known.summaries([(timeline, start)])[0]

    def events(self, timeline: int, start: int) -> list[WalEvent]:
        """The events whose records start in the segment at ``start``, in a timeline's file of it.

        Raises NotFoundError where the repository has nothing of it.
        """
        return self._known.table((timeline, start)).events()

    def restore_points(self) -> list[PathEvent]:
        """All there are, by timeline and position; names may repeat, and recovery stops at the first one after its start."""
        found: dict[tuple[int, int], PathEvent] = {}
        for timeline in sorted(self._inventory.timelines):
            path = self._inventory.history(timeline) if self._inventory.has_history(timeline) else None
            for summary in self.segments(timeline):
                for point in summary.restore_points:
                    wrote = path.timeline_of(point.lsn) if path is not None else timeline
                    found[wrote, point.lsn] = _restore_point(point, wrote)
        return [found[place] for place in sorted(found)]

    def first_commit_after(
        self, path: TimelineHistory, from_lsn: int, moment: datetime, *, exclusive: bool = False
    ) -> PathEvent | None:
        """The first end of a transaction, committed or aborted, later than ``moment``: where recovery to that time stops.

        It stops before this record (recoveryStopsBefore in xlogrecovery.c), wherever the clock has jumped; ``exclusive``: at a
        record of that very time too. This and the other searches go on over gaps.
        """
        limit = to_microseconds(moment) - int(exclusive)
        return self._first(
            self._walk(path, from_lsn, _EVERYTHING),
            lambda summary: summary.max_time is not None and summary.max_time > limit,
            lambda table: table.ends & (table.times > limit),
        )

    def last_commit_before(
        self, path: TimelineHistory, upto_lsn: int, moment: datetime, from_lsn: int = 0
    ) -> PathEvent | None:
        """The last end of a transaction that starts before ``upto_lsn`` and is not later than ``moment``."""
        limit = to_microseconds(moment)
        return self._first(
            self._walk(path, from_lsn, upto_lsn, backward=True),
            lambda summary: summary.min_time is not None and summary.min_time <= limit,
            lambda table: table.ends & (table.times <= limit) & (table.times != NO_TIME),
            last=True,
        )

    def find_xid(self, path: TimelineHistory, from_lsn: int, xid: int) -> PathEvent | None:
        """The first end of transaction ``xid``, prepared or not: where recovery to it stops.

        Numbers come again, some 4 thousand million transactions later.
        """
        return self._first(
            self._walk(path, from_lsn, _EVERYTHING),
            lambda summary: summary.min_xid is not None and summary.min_xid <= xid <= (summary.max_xid or 0),
            lambda table: table.ends & (table.xids == xid),
        )

    def find_name(self, path: TimelineHistory, from_lsn: int, name: str) -> PathEvent | None:
        """The first restore point of that name: where recovery to it stops."""
        encoded = name.encode("utf-8", "surrogateescape")
        for step in self._walk(path, from_lsn, _EVERYTHING):
            for point in step.summary.restore_points:
                if point.name == encoded and step.begin <= point.lsn < step.end:
                    return _restore_point(point, path.timeline_of(point.lsn))
        return None

    def span(self, path: TimelineHistory, from_lsn: int, to_lsn: int) -> tuple[datetime | None, datetime | None]:
        """The times of the first and of the last transaction that ends in ``[from_lsn, to_lsn)``, in the order of the WAL."""
        ends = [
            self._first(
                self._walk(path, from_lsn, to_lsn, backward=backward),
                lambda summary: summary.min_time is not None,
                lambda table: table.ends & (table.times != NO_TIME),
                last=backward,
            )
            for backward in (False, True)
        ]
        first, last = (event.time if event is not None else None for event in ends)
        return first, last

    def earliest_time(self, path: TimelineHistory, from_lsn: int, to_lsn: int = _EVERYTHING) -> datetime | None:
        """The least time of a transaction's end in ``[from_lsn, to_lsn)``, wherever it stands."""
        return self._extreme(path, from_lsn, to_lsn, newest=False)

    def newest_time(self, path: TimelineHistory, from_lsn: int, to_lsn: int = _EVERYTHING) -> datetime | None:
        """The greatest time of a transaction's end in ``[from_lsn, to_lsn)``, wherever it stands."""
        return self._extreme(path, from_lsn, to_lsn, newest=True)

    def record_from(self, path: TimelineHistory, lsn: int) -> WalRecord | None:
        """The first whole record of any kind that starts at ``lsn`` or behind; None where there is none before a gap."""
        limit = self._inventory.reach(path, lsn)
        for (timeline, start), begin, end in self._places(path, lsn, limit):
            for table in self._known.reader.records(timeline, start, begin):
                found = table.between(begin, end)
                if len(found):
                    return _record(found, 0, path)
        return None

    def last_record(self, path: TimelineHistory, from_lsn: int, upto_lsn: int) -> WalRecord | None:
        """The last whole record of any kind that starts at ``from_lsn`` or behind and ends at ``upto_lsn`` or before."""
        for (timeline, start), begin, end in reversed(self._places(path, from_lsn, upto_lsn)):
            last = None
            for table in self._known.reader.records(timeline, start, begin):
                found = table.chosen((table.lsns >= begin) & (table.lsns < end) & (table.end_lsns <= upto_lsn))
                last = _record(found, -1, path) if len(found) else last
            if last is not None:
                return last
        return None

    def write_missing_groups(self) -> list[str]:
        """Create the groups that are complete and not in the index yet; returns their objects' names.

        Any writer may call it at any time, two at once too.
        """
        written = []
        for timeline, wal in sorted(self._inventory.timelines.items()):
            groups = self._known.groups
            for group in sorted({groups.group_of(start) for start in wal.whole} - groups.there(timeline)):
                segments = [(timeline, start) for start in complete_group(self._inventory, timeline, group)]
                summaries = self._known.summaries(segments)
                if any(self._known.is_in_part(segment) for segment in segments):
                    continue
                if summaries and groups.write(timeline, group, summaries):
                    written.append(groups.object_name(timeline, group))
        return written

    def _first(self, walk: Iterable[Step], may: May, choose: Choose, *, last: bool = False) -> PathEvent | None:
        """The first (last) event that is chosen, of the first segment on the way that may have one and has."""
        for step in walk:
            if may(step.summary):
                table = self._known.table(step.segment).between(step.begin, step.end)
                found = np.flatnonzero(choose(table))
                if len(found):
                    return _on_path(table.event(int(found[-1 if last else 0])), step.path)
        return None

    def _extreme(self, path: TimelineHistory, from_lsn: int, to_lsn: int, *, newest: bool) -> datetime | None:
        best: int | None = None
        for step in self._walk(path, from_lsn, to_lsn):
            time = step.summary.max_time if newest else step.summary.min_time
            if time is None or (best is not None and (time <= best if newest else time >= best)):
                continue
            if step.end - step.begin < self._size:
                table = self._known.table(step.segment).between(step.begin, step.end)
                times = table.times[table.ends & (table.times != NO_TIME)]
                if not len(times):
                    continue
                time = int(times.max() if newest else times.min())
            best = time if best is None else max(best, time) if newest else min(best, time)
        return None if best is None else from_microseconds(best)

    def _walk(self, path: TimelineHistory, from_lsn: int, to_lsn: int, *, backward: bool = False) -> Iterator[Step]:
        places = self._places(path, from_lsn, to_lsn)
        if backward:
            places.reverse()
        ahead = _AHEAD_FIRST
        while places:
            now, places = places[:ahead], places[ahead:]
            ahead = min(2 * ahead, _AHEAD)
            summaries = self._known.each_summary([place.segment for place in now])
            for place, summary in zip(now, summaries, strict=True):
                yield Step(path, place.segment, place.begin, place.end, summary)

    def _places(self, path: TimelineHistory, from_lsn: int, to_lsn: int) -> list[Place]:
        """The segments with records of ``[from_lsn, to_lsn)`` on the path, each from the file that recovery reads it from.

        That is the newest timeline's that has it, as `WalInventory.source` says. What an older one wrote behind its end on the
        path is left out.
        """
        files: dict[int, int] = {}
        first = segment_start(from_lsn, self._size)
        for timeline in path.timelines:
            if timeline in self._inventory.timelines:
                oldest = max(first, segment_start(path.start_of(timeline), self._size))
                starts = self._known.starts(timeline)
                for start in starts[bisect_left(starts, oldest) :]:
                    files[start] = timeline
        places = []
        for start in sorted(files):
            end = path.end_of(files[start])
            begin, stop = max(start, from_lsn), min(start + self._size, to_lsn, end if end is not None else to_lsn)
            if begin < stop:
                places.append(Place((files[start], start), begin, stop))
        return places


def _on_path(event: WalEvent, path: TimelineHistory) -> PathEvent:
    return PathEvent(
        event.kind, event.lsn, event.end_lsn, event.time, event.xid, event.name, timeline=path.timeline_of(event.lsn)
    )


def _restore_point(point: NamedPoint, timeline: int) -> PathEvent:
    name = point.name.decode("utf-8", "surrogateescape")
    time = from_microseconds(point.time)
    return PathEvent("restore_point", LSN(point.lsn), LSN(point.end_lsn), time, None, name, timeline=timeline)


def _record(table: EventTable, index: int, path: TimelineHistory) -> WalRecord:
    lsn = LSN(table.lsns[index])
    return WalRecord(path.timeline_of(lsn), lsn, LSN(table.end_lsns[index]))
