"""Which WAL is needed: spans of timelines, and of a listing of the repository what lies outside of them.

All WAL from the start of a *continuous* backup on, along every path that is still written or was within the window; of other
kept backups the WAL from start to stop. Nothing here grows with the number of WAL objects: folders that are needed whole are
not listed, and what is listed goes by one at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pgkeep.policy.retention import Held, lies_on
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import parse_segment_name
from pgkeep.repository.store import ObjectInfo, Store
from pgkeep.wal.times_groups import GROUP_SEGMENTS

__all__ = ["Need", "NeededWal", "needs_of", "superfluous"]

_LOG = 1 << 32
"""Bytes of WAL in a folder."""


@dataclass(frozen=True, slots=True)
class Need:
    """WAL of a timeline from ``start`` up to, not including, ``end``; None: all there will be."""

    timeline: int
    start: int
    end: int | None


def needs_of(
    continuous: Collection[Held], others: Iterable[Held], paths: Iterable[TimelineHistory], segment_size: int
) -> list[Need]:
    """What these backups need. A path on which no continuous backup lies needs nothing but what the others do."""
    needs = [Need(backup.timeline, backup.start_lsn, backup.stop_lsn) for backup in (*continuous, *others)]
    for path in paths:
        starts = [backup.start_lsn for backup in continuous if lies_on(path, backup)]
        if not starts:
            continue
        for timeline in path.timelines:
            begin, end = max(min(starts), path.start_of(timeline)), path.end_of(timeline)
            if end is None or begin < end:
                # recovery may take the segment of a switch from either timeline's file
                needs.append(Need(timeline, begin, None if end is None else _up(end, segment_size)))
    return needs


class NeededWal:
    """The union of needs, in whole segments."""

    def __init__(self, needs: Iterable[Need], segment_size: int) -> None:
        self.segment_size = segment_size
        self._spans: dict[int, list[tuple[int, int | None]]] = {}
        by_timeline: dict[int, list[tuple[int, int | None]]] = {}
        for need in needs:
            begin = need.start - need.start % segment_size
            # a backup that needs no byte of WAL needs its segment's first page all the same
            end = None if need.end is None else max(_up(need.end, segment_size), begin + segment_size)
            by_timeline.setdefault(need.timeline, []).append((begin, end))
        for timeline, spans in by_timeline.items():
            self._spans[timeline] = _merged(spans)

    def spans(self) -> Mapping[int, Sequence[tuple[int, int | None]]]:
        """Of each timeline, in order, not touching one another; an end of None is open."""
        return self._spans

    def touches(self, timeline: int, begin: int, end: int) -> bool:
        """Whether any byte of ``[begin, end)`` is needed."""
        span = self._last_before(timeline, end)
        return span is not None and (span[1] is None or span[1] > begin)

    def covers(self, timeline: int, begin: int, end: int) -> bool:
        """Whether all of ``[begin, end)`` is needed."""
        span = self._last_before(timeline, begin + 1)
        return span is not None and (span[1] is None or span[1] >= end)

    def _last_before(self, timeline: int, position: int) -> tuple[int, int | None] | None:
        spans = self._spans.get(timeline, [])
        index = bisect_left(spans, position, key=lambda span: span[0])
        return spans[index - 1] if index else None


def superfluous(
    store: Store, system_identifier: int, needed: NeededWal, *, stored_before: datetime, spared: Collection[int] = ()
) -> Iterator[ObjectInfo]:
    """WAL and index of times that nothing needs and that is there since before ``stored_before``, oldest first in each timeline.

    Of each folder the index comes first: it says of WAL that it is there. ``spared`` are timelines to leave alone. History
    files stay: they are small, and timelines without them mean nothing. Raises StoreError.
    """
    cluster = f"clusters/{system_identifier}/"
    timelines = sorted({*store.folders(f"{cluster}wal/"), *store.folders(f"{cluster}times/")})
    for folder in timelines:
        timeline = _number(folder)
        if timeline is None or timeline in spared:
            continue
        wal, times = f"{cluster}wal/{folder}/", f"{cluster}times/{folder}/"
        indexed = set(store.folders(times))
        for log in sorted({*store.folders(wal), *indexed}):
            number = _number(log)
            if number is None or needed.covers(timeline, number * _LOG, (number + 1) * _LOG):
                continue
            if log in indexed:
                group = GROUP_SEGMENTS * needed.segment_size
                yield from _outside(store, f"{times}{log}/", timeline, needed, group, stored_before)
            yield from _outside(store, f"{wal}{log}/", timeline, needed, needed.segment_size, stored_before)


def _outside(
    store: Store, prefix: str, timeline: int, needed: NeededWal, size: int, stored_before: datetime
) -> Iterator[ObjectInfo]:
    for info in store.list(prefix):
        name = info.name.rpartition("/")[2]
        try:
            own, start = parse_segment_name(name[:24], needed.segment_size)
        except ValueError:
            # not ours to judge
            continue
        if own == timeline and info.modified < stored_before and not needed.touches(timeline, start, start + size):
            yield info


def _number(folder: str) -> int | None:
    try:
        return int(folder, 16) if len(folder) == 8 else None
    except ValueError:
        return None


def _merged(spans: list[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    merged: list[tuple[int, int | None]] = []
    for begin, end in sorted(spans, key=lambda span: span[0]):
        if merged and (merged[-1][1] is None or merged[-1][1] >= begin):
            last = merged[-1][1]
            merged[-1] = (merged[-1][0], None if last is None or end is None else max(last, end))
        else:
            merged.append((begin, end))
    return merged


def _up(lsn: int, size: int) -> LSN:
    """The first boundary of a segment at ``lsn`` or behind."""
    return LSN(-(-lsn // size) * size)
