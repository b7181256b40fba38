"""Writes the index of times while WAL arrives, so that no segment has to be read again for it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from pgkeep.postgres.timeline import TimelineHistory, history_name, parse_history
from pgkeep.postgres.wal_events import EventTable
from pgkeep.postgres.wal_records import WalRecordParser
from pgkeep.repository import Repository
from pgkeep.repository.store import Buffer
from pgkeep.wal.inventory import TimelineWal, WalInventory
from pgkeep.wal.segment_reader import SegmentReader, in_batches
from pgkeep.wal.segment_times import SegmentTimes, summarise
from pgkeep.wal.times_groups import GROUP_SEGMENTS, TimesGroups, complete_group

__all__ = ["TimesWriter"]

_MOST_REMEMBERED = 64 * GROUP_SEGMENTS
"""Summaries that wait for the rest of their group; what is forgotten is read again."""

Segment = tuple[int, int]
"""Timeline and start."""


class TimesWriter:
    """Takes whole segments once the repository has them, and creates each group when its last segment is there; safe for threads.

    Segments may come in any order, and again. What came before this writer began, the repository is asked for.
    """

    def __init__(self, repository: Repository, system_identifier: int, segment_size: int) -> None:
        self._archive = repository.wal(system_identifier)
        self._store = repository.store
        self._opens_wal = repository.keys.opens_boxes
        self._groups = TimesGroups(repository, system_identifier, segment_size)
        self._size = segment_size
        self._lock = threading.Lock()
        self._parser = WalRecordParser(segment_size)
        self._fed: Segment | None = None
        self._waiting: tuple[Segment, EventTable] | None = None
        """A segment whose last record goes on in the next one."""
        self._summaries: dict[Segment, SegmentTimes] = {}
        self._ended: set[Segment] = set()
        """Groups whose last segment has come."""
        self._asked: set[Segment] = set()
        """Groups before the first one that came, of which an earlier writer may have left the last."""

    def segment(self, timeline: int, start: int, data: Buffer | Iterable[Buffer]) -> list[str]:
        """Take a whole segment, all at once or in chunks; returns the names of the objects that were created.

        Raises DamageError for what is no WAL of this cluster, StoreError where the repository cannot be read or written; the next
        call tries again what has failed.
        """
        with self._lock:
            group = self._groups.group_of(start)
            before = (timeline, self._groups.group_of(group - 1)) if group else None
            if self._fed != (timeline, start) and before is not None and before not in self._asked:
                self._asked.add(before)
                self._ended.add(before)
            self._parse(timeline, start, [data] if isinstance(data, Buffer) else data)
            if start + self._size == self._groups.end_of(group):
                self._ended.add((timeline, group))
            elif (timeline, self._groups.end_of(group) - self._size) in self._summaries:
                # its last segment came before this one
                self._ended.add((timeline, group))
            written = [self._complete(*ended) for ended in sorted(self._ended)]
            return [name for name in written if name is not None]

    def _parse(self, timeline: int, start: int, chunks: Iterable[Buffer]) -> None:
        if self._fed != (timeline, start):
            # not what follows the segment before: its last record must be read from the repository
            self._parser = WalRecordParser(self._size)
            self._waiting = None
        # whoever gives the chunks may fail in the middle
        self._fed = None
        tables, lsn = [], start
        for data in in_batches(chunks):
            tables.append(self._parser.scan(lsn, data))
            lsn += len(data)
        self._fed = (timeline, start + self._size)
        events = EventTable.joined(tables)
        open_from = self._parser.open_lsn
        if self._waiting is not None:
            before, table = self._waiting
            if open_from is None or open_from >= start:
                self._remember(before, EventTable.joined([table, events.between(0, start)]))
            self._waiting = None
        own = events.between(start, start + self._size)
        if open_from is None:
            self._remember((timeline, start), own)
        elif open_from >= start:
            self._waiting = ((timeline, start), own)

    def _remember(self, segment: Segment, events: EventTable) -> None:
        self._summaries[segment] = summarise(events, *segment, self._size)
        while len(self._summaries) > _MOST_REMEMBERED:
            del self._summaries[next(iter(self._summaries))]

    def _complete(self, timeline: int, group: int) -> str | None:
        """Create a group, if it is complete; the name of its object where it is new."""
        last = self._groups.end_of(group) - self._size
        if self._waiting is not None and self._waiting[0] == (timeline, last):
            return None
        starts = list(range(group, last + 1, self._size))
        created = False
        if not self._groups.exists(timeline, group):
            if any((timeline, start) not in self._summaries for start in starts):
                inventory = self._inventory(timeline, group)
                starts = complete_group(inventory, timeline, group)
                if not self._read_missing(timeline, starts, inventory):
                    self._ended.discard((timeline, group))
                    return None
            segments = [self._summaries[timeline, start] for start in starts]
            created = self._groups.write(timeline, group, segments)
        self._ended.discard((timeline, group))
        for start in starts:
            self._summaries.pop((timeline, start), None)
        return self._groups.object_name(timeline, group) if created else None

    def _read_missing(self, timeline: int, starts: list[int], inventory: WalInventory) -> bool:
        """Read what is not remembered; whether everything is known then."""
        reader = SegmentReader(self._archive, inventory)
        for start in starts:
            if (timeline, start) not in self._summaries:
                if not self._opens_wal:
                    # in sealed mode, only who reads the repository can do it later
                    return False
                events, is_all = reader.read(timeline, start)
                if not is_all:
                    return False
                self._summaries[timeline, start] = summarise(events, timeline, start, self._size)
        return bool(starts)

    def _inventory(self, timeline: int, group: int) -> WalInventory:
        """Of the WAL around a group, and of the timeline's oldest, by a few short listings."""
        oldest = min((int(log, 16) for log in self._logs(timeline)), default=0)
        logs = sorted({oldest, group >> 32, (self._groups.end_of(group) - 1) >> 32, self._groups.end_of(group) >> 32})
        names = [name for log in logs for name, _ in self._archive.names(timeline, log)]
        histories: dict[int, TimelineHistory] = {}
        if self._archive.exists(history_name(timeline)):
            histories[timeline] = parse_history(timeline, self._archive.get(history_name(timeline)))
        return WalInventory(self._size, {timeline: TimelineWal.of(timeline, self._size, names)}, histories)

    def _logs(self, timeline: int) -> list[str]:
        folder = self._archive.object_name(history_name(timeline)).rpartition("/")[0]
        return [log for log in self._store.folders(f"{folder}/") if len(log) == 8]
