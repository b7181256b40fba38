"""What is known of segments' times: from the index where it has them, else from the WAL itself, each asked for once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pgkeep.errors import DamageError
from pgkeep.postgres.wal_events import EventTable
from pgkeep.repository import Repository
from pgkeep.repository.store import ObjectMissing
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.segment_reader import SegmentReader
from pgkeep.wal.segment_times import SegmentTimes, summarise
from pgkeep.wal.times_groups import TimesGroups

__all__ = ["KnownTimes", "Segment"]

_MOST_EVENTS = 2_000_000
"""Events that are kept as tables, some 30 bytes each: those of the 50 busiest segments of 16 MiB."""

_BIG_SEGMENT = 64 << 20
"""From this size on, segments are read one at a time."""

_AHEAD_EACH = 2
"""Segments that each reader reads ahead on the way to what is looked for."""

_FEW_LOGS = 4
"""Folders that are listed one by one, and not the timeline as a whole."""

Segment = tuple[int, int]
"""A timeline, as the file's name says it, and the segment's start."""


class KnownTimes:
    """Summaries and events of segments that the inventory has; safe for threads."""

    def __init__(
        self, repository: Repository, system_identifier: int, inventory: WalInventory, jobs: int | None = None
    ) -> None:
        self.notes: list[str] = []
        self.reader = SegmentReader(repository.wal(system_identifier), inventory)
        self.groups = TimesGroups(repository, system_identifier, inventory.segment_size)
        self._inventory = inventory
        self._jobs = jobs or min(os.cpu_count() or 1, 8)
        self._lock = threading.Lock()
        self._there: dict[int, set[int]] = {}
        self._starts: dict[int, list[int]] = {}
        self._summaries: dict[Segment, SegmentTimes] = {}
        self._tables: OrderedDict[Segment, EventTable] = OrderedDict()
        self._in_part: set[Segment] = set()
        self._asked: set[Segment] = set()
        """Groups that were read, or could not be."""

    def starts(self, timeline: int) -> list[int]:
        """Where the segments start of which there is anything, in order."""
        if timeline not in self._starts:
            wal = self._inventory.timelines[timeline]
            starts = sorted(wal.whole | wal.pieces.keys() | wal.partial)
            self._starts[timeline] = [start for start in starts if wal.end_in(start) > 0]
        return self._starts[timeline]

    def summaries(self, segments: Iterable[Segment]) -> list[SegmentTimes]:
        """Of these segments, in their order; objects are read side by side. Raises DamageError, NotFoundError, StoreError."""
        wanted = list(segments)
        self.ask_index(wanted)
        self._side_by_side(self._read, [segment for segment in wanted if segment not in self._summaries])
        return [self._summaries[segment] for segment in wanted]

    def each_summary(self, segments: Sequence[Segment]) -> Iterator[SegmentTimes]:
        """`summaries` for one who may not need them all: of the WAL itself, little is read ahead."""
        self.ask_index(segments)
        ahead = 1
        for number, segment in enumerate(segments):
            if segment not in self._summaries:
                unknown = (other for other in segments[number:] if other not in self._summaries)
                self._side_by_side(self._read, list(islice(unknown, ahead)))
                ahead = min(2 * ahead, _AHEAD_EACH * self._jobs)
            yield self._summaries[segment]

    def ask_index(self, segments: Iterable[Segment]) -> None:
        """Read what the index has of these segments."""
        groups = {
            (timeline, group)
            for timeline, start in segments
            if (timeline, start) not in self._summaries
            and start in self._inventory.timelines[timeline].whole
            and (group := self.groups.group_of(start)) in self._groups_of(timeline)
        } - self._asked
        self._side_by_side(self._load_group, sorted(groups))

    def table(self, segment: Segment) -> EventTable:
        """The events of a segment."""
        with self._lock:
            if segment in self._tables:
                self._tables.move_to_end(segment)
                return self._tables[segment]
        return self._read(segment)

    def is_in_part(self, segment: Segment) -> bool:
        """Whether a segment was read of which more may come."""
        return segment in self._in_part

    def _groups_of(self, timeline: int) -> set[int]:
        if timeline not in self._there:
            logs = {self.groups.group_of(start) >> 32 for start in self._inventory.timelines[timeline].whole}
            self._there[timeline] = self.groups.there(timeline, logs if len(logs) <= _FEW_LOGS else None)
        return self._there[timeline]

    def _side_by_side(self, call: Callable[[Segment], object], items: Sequence[Segment]) -> None:
        jobs = 1 if self._inventory.segment_size >= _BIG_SEGMENT else min(self._jobs, len(items))
        if jobs < 2:
            for item in items:
                call(item)
            return
        with ThreadPoolExecutor(jobs, thread_name_prefix="times") as executor:
            for _ in executor.map(call, items):
                pass

    def _load_group(self, place: Segment) -> None:
        timeline, group = place
        self._asked.add(place)
        try:
            summaries = self.groups.read(timeline, group)
        except ObjectMissing:
            # expired since the listing
            return
        except DamageError as error:
            with self._lock:
                self.notes.append(f"{error}; the times of its WAL were read from the WAL itself, which takes longer")
            return
        whole = self._inventory.timelines[timeline].whole
        with self._lock:
            for summary in summaries:
                if summary.start in whole:
                    self._summaries.setdefault((timeline, summary.start), summary)

    def _read(self, segment: Segment) -> EventTable:
        timeline, start = segment
        table, is_all = self.reader.read(timeline, start)
        summary = summarise(table, timeline, start, self._inventory.segment_size)
        with self._lock:
            self._tables[segment] = table
            while len(self._tables) > 1 and sum(map(len, self._tables.values())) > _MOST_EVENTS:
                self._tables.popitem(last=False)
            self._summaries.setdefault(segment, summary)
            if not is_all:
                self._in_part.add(segment)
        return table
