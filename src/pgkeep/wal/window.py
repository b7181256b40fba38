"""What can be reached now: for each timeline the spans of WAL positions and times, and the backup each would start from.

A *branch* is a timeline with the path that leads to it. A backup lies on it where its WAL is the path's own; from there
recovery goes on until the WAL has a gap, or ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import segment_start
from pgkeep.postgres.wal_events import WalEvent, WalRecord
from pgkeep.repository.manifests import Manifest
from pgkeep.wal.inventory import WalInventory, WalSpan
from pgkeep.wal.segment_times import SegmentTimes
from pgkeep.wal.times import WalTimes

__all__ = [
    "Branch",
    "PathTimes",
    "Start",
    "WalStamp",
    "Window",
    "WindowStart",
    "branches",
    "recovery_windows",
    "windows_of",
]

ENDS = frozenset({"commit", "abort"})
"""The events at which PostgreSQL looks whether a target time is passed (recoveryStopsBefore in xlogrecovery.c)."""

_LATEST = datetime.max.replace(tzinfo=UTC)

_CHECKPOINT_PRECISION = timedelta(seconds=1)
"""A checkpoint's time is in whole seconds, rounded down."""


@dataclass(frozen=True, slots=True)
class WalStamp:
    """At ``time``, by the server's clock, its WAL ended at ``lsn`` or before."""

    timeline: int
    lsn: LSN
    time: datetime


@dataclass(frozen=True, slots=True)
class Start:
    """A backup on a branch that can become consistent, in an unbroken stretch of WAL.

    The stretch goes from ``begin``, where its first backup starts, to ``reach``.
    """

    manifest: Manifest
    begin: LSN
    reach: LSN


@dataclass(frozen=True, slots=True)
class WindowStart:
    """From ``lsn`` on, and from ``time`` on, recovery starts from this backup, until the next one's turn."""

    backup: str
    lsn: LSN
    time: datetime


@dataclass(frozen=True, slots=True)
class Window:
    """An unbroken stretch of one timeline that can be reached, all of it; ends are included.

    ``starts`` are in the order of their LSNs, and of their times unless clocks were set back.
    ``gap`` is the WAL that is missing behind it, where there is more behind that; what lies there can be reached only where
    another window has it.
    """

    timeline: int
    path: TimelineHistory
    start_lsn: LSN
    end_lsn: LSN
    start_time: datetime
    end_time: datetime
    starts: tuple[WindowStart, ...]
    gap: WalSpan | None


class PathTimes:
    """What happened when along one path of timelines: `WalTimes` read through the eyes of a recovery."""

    def __init__(self, path: TimelineHistory, inventory: WalInventory, times: WalTimes) -> None:
        self.path = path
        self._inventory = inventory
        self._times = times
        self._summaries: dict[int, dict[int, SegmentTimes]] = {}

    def first_end_after(self, start: int, end: int, moment: datetime) -> WalEvent | None:
        """The first end of a transaction in ``[start, end)`` whose time is later than ``moment``."""
        event = self._times.first_commit_after(self.path, LSN(start), moment)
        return event if event is not None and event.lsn < end else None

    def find_xid(self, start: int, end: int, xid: int) -> WalEvent | None:
        """The first end of transaction ``xid`` in ``[start, end)``."""
        event = self._times.find_xid(self.path, LSN(start), xid)
        return event if event is not None and event.lsn < end else None

    def find_name(self, start: int, end: int, name: str) -> WalEvent | None:
        """The first restore point of that name in ``[start, end)``."""
        event = self._times.find_name(self.path, LSN(start), name)
        return event if event is not None and event.lsn < end else None

    def last_end_before(self, start: int, end: int) -> WalEvent | None:
        """The last end of a transaction in ``[start, end)``."""
        return self._times.last_commit_before(self.path, LSN(end), _LATEST, LSN(start))

    def first_timed(self, start: int, end: int) -> datetime | None:
        """The first time that a record in ``[start, end)`` names."""
        for begin in self._segments(start, end):
            for event in self._events(begin):
                if start <= event.lsn < end and event.time is not None:
                    return event.time
        return None

    def latest_end(self, start: int, end: int) -> datetime | None:
        """The latest time at which a transaction in ``[start, end)`` ended, wherever the clocks jumped."""
        return self._times.newest_time(self.path, LSN(start), LSN(end))

    def earliest_checkpoint(self, start: int, end: int) -> datetime | None:
        """The least time at which a checkpoint in ``[start, end)`` began, rounded up."""
        times = [
            event.time + _CHECKPOINT_PRECISION
            for event in self._backward(start, end)
            if event.kind == "checkpoint" and event.time is not None
        ]
        return min(times, default=None)

    def around_xid(self, start: int, end: int, xid: int) -> tuple[WalEvent | None, WalEvent | None]:
        """The ended transactions in ``[start, end)`` with the next lower and the next higher id."""
        below = self._closest(start, end, xid, -1)
        return below, self._closest(start, end, xid, 1)

    def _closest(self, start: int, end: int, xid: int, side: int) -> WalEvent | None:
        hopes = []
        for begin in self._segments(start, end):
            summary = self._summary(begin)
            if summary is None or summary.min_xid is None or summary.max_xid is None:
                continue
            near, far = (summary.max_xid, summary.min_xid) if side < 0 else (summary.min_xid, summary.max_xid)
            if (far - xid) * side > 0:
                # the least distance that a transaction of this segment can have
                hopes.append((max((near - xid) * side, 1), begin))
        best, distance = None, 1 << 32
        for least, begin in sorted(hopes):
            if distance <= least:
                break
            for event in self._events(begin):
                if start <= event.lsn < end and event.kind in ENDS and event.xid is not None:
                    apart = (event.xid - xid) * side
                    if 0 < apart < distance:
                        best, distance = event, apart
        return best

    def known_until(self, start: int, end: int) -> datetime | None:
        """Up to which time nothing is missing that was done on the server, as far as the WAL in ``[start, end)`` says.

        A transaction's end says so of its own time; a checkpoint of the time at which it began, since it is written after
        all that was committed before.
        """
        ended = self.last_end_before(start, end)
        since = start if ended is None else ended.lsn
        times = [event.time for event in self._backward(since, end) if event.time is not None]
        return max(times, default=None)

    def _backward(self, start: int, end: int) -> Iterator[WalEvent]:
        for begin in reversed(self._segments(start, end)):
            for event in reversed(self._events(begin)):
                if start <= event.lsn < end:
                    yield event

    def _segments(self, start: int, end: int) -> range:
        size = self._inventory.segment_size
        return range(segment_start(start, size), end, size)

    def _events(self, begin: int) -> Sequence[WalEvent]:
        """The events of a segment, from the file that recovery reads it from."""
        wal = self._inventory.source(self.path, begin)
        if wal is None or self._times.segment(wal.timeline, begin).is_empty:
            return ()
        return self._times.events(wal.timeline, LSN(begin))

    def _summary(self, begin: int) -> SegmentTimes | None:
        wal = self._inventory.source(self.path, begin)
        return None if wal is None else self._of_timeline(wal.timeline).get(begin)

    def _of_timeline(self, timeline: int) -> dict[int, SegmentTimes]:
        if timeline not in self._summaries:
            self._summaries[timeline] = {summary.start: summary for summary in self._times.segments(timeline)}
        return self._summaries[timeline]


class Branch:
    """A timeline, the path to it, and the backups that lie on the path and can become consistent, oldest first."""

    def __init__(
        self,
        path: TimelineHistory,
        starts: Sequence[Start],
        inventory: WalInventory,
        times: WalTimes,
        stamps: Sequence[WalStamp] = (),
    ) -> None:
        self.path = path
        self.starts = list(starts)
        self.times = PathTimes(path, inventory, times)
        self._records = times
        self._inventory = inventory
        self._stamps = stamps

    @property
    def timeline(self) -> int:
        """The newest timeline of the path."""
        return self.path.timeline

    def since(self, start: Start) -> datetime:
        """From when on the state at the backup's end was the cluster's."""
        manifest = start.manifest
        ended = self.times.latest_end(manifest.start_lsn, manifest.stop_lsn)
        if ended is not None:
            return ended
        # nothing ended while it was taken: it shows the state since the last end before it
        before = self.times.last_end_before(start.begin, manifest.start_lsn)
        quiet_from = start.begin if before is None else LSN(manifest.start_lsn)
        # a checkpoint's time is to the second; the first end after the backup may say it better
        following = self.times.first_end_after(manifest.stop_lsn, start.reach, datetime.min.replace(tzinfo=UTC))
        signs = (
            None if before is None else before.time,
            None if following is None else following.time,
            self.times.earliest_checkpoint(quiet_from, manifest.stop_lsn),
        )
        return min((sign for sign in signs if sign is not None), default=manifest.started.astimezone(UTC))

    def known_until(self, start: Start) -> datetime:
        """Up to when everything is known that was done on the server, going on from this backup."""
        times = [self.since(start)]
        seen = self.times.known_until(start.begin, start.reach)
        if seen is not None:
            times.append(seen)
        times += [
            stamp.time for stamp in self._stamps if stamp.lsn <= start.reach and self._holds(stamp.timeline, stamp.lsn)
        ]
        return max(times)

    def born(self, timeline: int) -> datetime | None:
        """When a timeline of the path began to be written; None where no record says."""
        begin = self.path.start_of(timeline)
        end = self.path.end_of(timeline)
        return self.times.first_timed(begin, end if end is not None else self._inventory.reach(self.path, begin))

    def record_from(self, lsn: int) -> WalRecord | None:
        """The first record that begins at ``lsn`` or later."""
        return self._records.record_from(self.path, LSN(lsn))

    def last_record(self, start: Start) -> WalRecord | None:
        """The last record that can be replayed, from this backup on."""
        return self._records.last_record(self.path, LSN(start.manifest.start_lsn), start.reach)

    def last_record_end(self, start: Start) -> LSN:
        """Where the last record ends that can be replayed, from this backup on."""
        record = self.last_record(start)
        return LSN(start.manifest.stop_lsn) if record is None else max(record.end_lsn, LSN(start.manifest.stop_lsn))

    def gap_after(self, reach: int) -> WalSpan | None:
        """What is missing behind ``reach``, where the path has more WAL behind that."""
        for timeline in self.path.timelines:
            end = self.path.end_of(timeline)
            for span in self._spans(timeline):
                begins = max(span.start, self.path.start_of(timeline))
                if begins > reach and (end is None or begins < end) and span.end > begins:
                    return WalSpan(LSN(reach), begins)
        return None

    def restore_points(self) -> list[WalEvent]:
        """All that the repository's WAL holds, on whatever timeline."""
        return list(self._records.restore_points())

    @property
    def first_wal(self) -> LSN:
        """The first byte of the path's WAL that the repository has."""
        spans = [span for timeline in self.path.timelines for span in self._spans(timeline)]
        return min((span.start for span in spans), default=LSN(0))

    def _spans(self, timeline: int) -> list[WalSpan]:
        wal = self._inventory.timelines.get(timeline)
        return [] if wal is None else wal.spans

    def _holds(self, timeline: int, lsn: int) -> bool:
        return timeline in self.path.timelines and self.path.timeline_of(lsn - 1) == timeline


def branches(
    manifests: Iterable[Manifest], inventory: WalInventory, times: WalTimes, stamps: Sequence[WalStamp] = ()
) -> list[Branch]:
    """The branches that have a backup, the newest timeline first. ``manifests`` are one cluster's.

    A timeline whose history file is missing has no path, and so no branch.
    """
    ordered = sorted(manifests, key=lambda manifest: (manifest.start_lsn, manifest.stop_lsn, manifest.id))
    found = []
    for timeline in sorted(inventory.timelines, reverse=True):
        if not inventory.has_history(timeline):
            continue
        path = inventory.history(timeline)
        starts: list[Start] = []
        for manifest in ordered:
            if not _lies_on(path, manifest):
                continue
            if starts and manifest.start_lsn < starts[-1].reach:
                # in the same stretch as the backup before
                begin, reach = starts[-1].begin, starts[-1].reach
            else:
                begin, reach = LSN(manifest.start_lsn), inventory.reach(path, manifest.start_lsn)
            if reach >= manifest.stop_lsn:
                starts.append(Start(manifest, begin, reach))
        if starts:
            found.append(Branch(path, starts, inventory, times, stamps))
    return found


def recovery_windows(
    manifests: Iterable[Manifest], inventory: WalInventory, times: WalTimes, stamps: Sequence[WalStamp] = ()
) -> list[Window]:
    """What can be reached now, the oldest timeline first, each position on the timeline that wrote it."""
    found = branches(manifests, inventory, times, stamps)
    return [window for branch in reversed(found) for window in windows_of(branch)]


def windows_of(branch: Branch, *, whole_path: bool = False) -> list[Window]:
    """The windows of one branch: on its timeline alone, or on all of its path."""
    begin = LSN(0) if whole_path else branch.path.start_of(branch.timeline)
    stretches = [list(group) for _, group in groupby(branch.starts, key=lambda start: start.reach)]
    return [
        _window(branch, starts, begin)
        for starts in stretches
        if starts[-1].reach > begin or starts[-1].manifest.timeline == branch.timeline
    ]


def _lies_on(path: TimelineHistory, manifest: Manifest) -> bool:
    """As the server asks: its checkpoint and its end must be the path's own (validateRecoveryParameters, StartupXLOG)."""
    return (
        manifest.timeline in path.timelines
        and path.timeline_of(manifest.start_lsn) == manifest.timeline
        and path.timeline_of(manifest.stop_lsn - 1) == manifest.timeline
    )


def _window(branch: Branch, starts: Sequence[Start], begin: LSN) -> Window:
    entries = []
    before = [start for start in starts if start.manifest.stop_lsn <= begin]
    if before:
        known = (branch.born(branch.timeline), branch.since(before[-1]))
        since = max(moment for moment in known if moment is not None)
        entries.append(WindowStart(before[-1].manifest.id, begin, since))
    entries += [
        WindowStart(start.manifest.id, LSN(start.manifest.stop_lsn), branch.since(start))
        for start in starts[len(before) :]
    ]
    first = entries[0]
    start_time = min(entry.time for entry in entries)
    return Window(
        timeline=branch.timeline,
        path=branch.path,
        start_lsn=first.lsn,
        end_lsn=max(first.lsn, branch.last_record_end(starts[-1])),
        start_time=start_time,
        end_time=max(start_time, branch.known_until(starts[-1])),
        starts=tuple(entries),
        gap=branch.gap_after(starts[-1].reach),
    )
