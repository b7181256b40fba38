"""A small world of WAL for tests of planning: timelines, records, backups, gaps; and a server that recovers in it.

`recover` does what PostgreSQL does (PerformWalRecovery, recoveryStopsBefore and recoveryStopsAfter in xlogrecovery.c), record by
record, from the settings alone. It shares no code with what it judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, cast

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch
from pgkeep.postgres.wal_events import EventKind, WalEvent
from pgkeep.repository.manifests import Manifest, WalRange
from pgkeep.wal.inventory import TimelineWal, WalInventory

if TYPE_CHECKING:
    from pgkeep.wal.times import WalTimes

__all__ = ["BASE_TIME", "PAGE", "SEGMENT", "Ended", "World", "recover"]

PAGE = 8192
SEGMENT = 2 * PAGE
"""Smaller than any server's, so that few records fill many."""

BASE_TIME = datetime(2025, 6, 1, tzinfo=UTC)

Result = Literal["target", "end", "inconsistent"]


@dataclass(frozen=True)
class Ended:
    """How a recovery ended: at its target, at the end of the WAL, or at a target before it was consistent.

    ``lsn`` is what ``pg_last_wal_replay_lsn()`` says, ``replayed`` the records up to there.
    """

    result: Result
    lsn: LSN
    replayed: list[WalEvent]


def header_size(position: int) -> int:
    """Of the page that begins at a position."""
    return 40 if position % SEGMENT == 0 else 24


def place(position: int, size: int) -> tuple[LSN, LSN]:
    """Where a record of so many bytes (a multiple of 8) begins and ends that is written behind ``position``."""
    start = position + header_size(position) if position % PAGE == 0 else position
    end, left = start, size
    while left:
        taken = min(PAGE - end % PAGE, left)
        end += taken
        left -= taken
        if left:
            end += header_size(end)
    return LSN(start), LSN(end)


@dataclass
class World:
    """Timelines with their own records, and what a repository holds of them."""

    records: dict[int, list[WalEvent]] = field(default_factory=dict)
    histories: dict[int, TimelineHistory] = field(default_factory=dict)
    manifests: list[Manifest] = field(default_factory=list)
    missing: set[tuple[int, int]] = field(default_factory=set)
    """Timeline and start of segments that are not held."""
    cut: dict[int, int] = field(default_factory=dict)
    """Where what is held of a timeline's last segment ends."""

    def begin(self, timeline: int = 1, parent: int | None = None, at: int = SEGMENT) -> None:
        """A timeline; it branches off its parent at the end of one of its records."""
        switches: tuple[TimelineSwitch, ...] = ()
        if parent is not None:
            before = tuple(switch for switch in self.histories[parent].switches if switch.lsn <= at)
            switches = (*before, TimelineSwitch(parent, LSN(at)))
        self.histories[timeline] = TimelineHistory(timeline, switches)
        self.records[timeline] = []

    def end_of(self, timeline: int) -> LSN:
        """Where the next record of a timeline goes."""
        if self.records[timeline]:
            return self.records[timeline][-1].end_lsn
        switches = self.histories[timeline].switches
        return switches[-1].lsn if switches else LSN(SEGMENT)

    def write(
        self,
        timeline: int,
        kind: EventKind = "other",
        *,
        size: int = 64,
        time: datetime | None = None,
        xid: int | None = None,
        name: str | None = None,
    ) -> WalEvent:
        """Write a record at the end of a timeline."""
        start, end = place(self.end_of(timeline), size)
        if kind == "switch":
            end = LSN(-(-end // SEGMENT) * SEGMENT)
        record = WalEvent(kind, start, end, time, xid, name)
        self.records[timeline].append(record)
        return record

    def back_up(self, timeline: int, start: int, stop: int, number: int | None = None) -> Manifest:
        """A backup whose WAL goes from ``start`` to ``stop``."""
        number = len(self.manifests) + 1 if number is None else number
        manifest = Manifest(
            id=f"B{number:03}",
            cluster="test",
            label="",
            mode="stream",
            system_identifier=7,
            server_version=180006,
            from_standby=False,
            started=BASE_TIME - timedelta(days=1),
            finished=BASE_TIME - timedelta(days=1),
            timeline=timeline,
            start_lsn=start,
            stop_lsn=stop,
            page_size=8192,
            block_size=8192,
            segment_blocks=131072,
            data_checksums=True,
            backup_label=b"",
            tablespace_map=b"",
            tablespaces=[],
            directories=[],
            wal=WalRange(timeline, start, stop, SEGMENT, [], 0),
            logical_size=0,
            stored_size=0,
            new_size=0,
            files=1,
        )
        self.manifests.append(manifest)
        return manifest

    def inventory(self) -> WalInventory:
        """What the repository holds."""
        timelines = {}
        for timeline, history in self.histories.items():
            wal = TimelineWal(timeline, SEGMENT)
            begin = history.switches[-1].lsn if history.switches else SEGMENT
            end = min(self.cut.get(timeline, 1 << 62), self.end_of(timeline))
            for start in range(begin - begin % SEGMENT, end, SEGMENT):
                if (timeline, start) in self.missing:
                    continue
                if start + SEGMENT <= end:
                    wal.whole.add(start)
                else:
                    wal.pieces[start] = [(0, end - start)]
            timelines[timeline] = wal
        return WalInventory(SEGMENT, timelines, {t: h for t, h in self.histories.items() if t > 1})

    def along(self, path: TimelineHistory) -> list[WalEvent]:
        """All records on a path, held or not."""
        found = []
        for timeline in path.timelines:
            begin, end = path.start_of(timeline), path.end_of(timeline)
            found += [r for r in self.records[timeline] if r.lsn >= begin and (end is None or r.lsn < end)]
        return found

    def held(self, path: TimelineHistory, inventory: WalInventory | None = None) -> list[WalEvent]:
        """The records on a path of which every byte is held."""
        inventory = inventory or self.inventory()
        return [record for record in self.along(path) if self._is_held(path, inventory, record)]

    @staticmethod
    def _is_held(path: TimelineHistory, inventory: WalInventory, record: WalEvent) -> bool:
        for start in range(record.lsn - record.lsn % SEGMENT, record.end_lsn, SEGMENT):
            wal = inventory.source(path, start)
            needed = min(record.end_lsn, start + SEGMENT)
            if wal is None or start + wal.end_in(start) < needed:
                return False
            # a parent's file does not hold what its child wrote
            if wal.timeline < path.timeline_of(needed - 1):
                return False
        return True

    def times(self) -> WalTimes:
        """The same answers as `WalTimes` gives of a real archive."""
        return cast("WalTimes", ModelTimes(self))


@dataclass(frozen=True)
class ModelSummary:
    """A segment in a line."""

    start: LSN
    events: list[WalEvent]

    @property
    def is_empty(self) -> bool:
        return not self.events

    @property
    def min_xid(self) -> int | None:
        return min(self._xids, default=None)

    @property
    def max_xid(self) -> int | None:
        return max(self._xids, default=None)

    @property
    def _xids(self) -> list[int]:
        return [r.xid for r in self.events if r.kind in {"commit", "abort"} and r.xid is not None]


class ModelTimes:
    """Answers by looking at every record."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._inventory = world.inventory()

    def _held(self, path: TimelineHistory) -> list[WalEvent]:
        return self._world.held(path, self._inventory)

    def first_commit_after(self, path: TimelineHistory, from_lsn: int, time: datetime) -> WalEvent | None:
        return next(
            (
                r
                for r in self._held(path)
                if r.lsn >= from_lsn and r.kind in {"commit", "abort"} and r.time is not None and r.time > time
            ),
            None,
        )

    def last_commit_before(
        self, path: TimelineHistory, upto_lsn: int, moment: datetime, from_lsn: int = 0
    ) -> WalEvent | None:
        return next(
            (
                r
                for r in reversed(self._held(path))
                if from_lsn <= r.lsn < upto_lsn
                and r.kind in {"commit", "abort"}
                and r.time is not None
                and r.time <= moment
            ),
            None,
        )

    def newest_time(self, path: TimelineHistory, from_lsn: int, to_lsn: int) -> datetime | None:
        return max(
            (
                r.time
                for r in self._held(path)
                if from_lsn <= r.lsn < to_lsn and r.kind in {"commit", "abort"} and r.time is not None
            ),
            default=None,
        )

    def find_xid(self, path: TimelineHistory, from_lsn: int, xid: int) -> WalEvent | None:
        return next(
            (r for r in self._held(path) if r.lsn >= from_lsn and r.kind in {"commit", "abort"} and r.xid == xid), None
        )

    def find_name(self, path: TimelineHistory, from_lsn: int, name: str) -> WalEvent | None:
        return next(
            (r for r in self._held(path) if r.lsn >= from_lsn and r.kind == "restore_point" and r.name == name), None
        )

    def record_from(self, path: TimelineHistory, lsn: int) -> WalEvent | None:
        return next((r for r in self._held(path) if r.lsn >= lsn), None)

    def last_record(self, path: TimelineHistory, from_lsn: int, upto_lsn: int) -> WalEvent | None:
        return next((r for r in reversed(self._held(path)) if r.lsn >= from_lsn and r.end_lsn <= upto_lsn), None)

    def restore_points(self) -> list[WalEvent]:
        return [r for records in self._world.records.values() for r in records if r.kind == "restore_point"]

    def segments(self, timeline: int, begin: int = 0, end: int = 1 << 63) -> list[ModelSummary]:
        wal = self._inventory.timelines[timeline]
        starts = [start for start in sorted(wal.whole | wal.pieces.keys()) if begin <= start < end]
        return [ModelSummary(LSN(start), self.events(timeline, start)) for start in starts]

    def events(self, timeline: int, start: int) -> list[WalEvent]:
        path = self._world.histories[timeline]
        inside = [r for r in self._held(path) if start <= r.lsn < start + SEGMENT]
        return [record for record in inside if record.kind != "other"]


def recover(world: World, manifest: Manifest, settings: Mapping[str, str], *, signal: str = "recovery.signal") -> Ended:
    """Recover from a backup, as a server with these settings does."""
    path = world.histories[int(settings["recovery_target_timeline"])]
    assert signal == "recovery.signal"
    inclusive = settings.get("recovery_target_inclusive", "on") == "on"
    held = {(record.lsn, record.end_lsn) for record in world.held(path)}
    replayed: list[WalEvent] = []
    reached = manifest.start_lsn
    for record in (r for r in world.along(path) if r.lsn >= manifest.start_lsn):
        if (record.lsn, record.end_lsn) not in held:
            break
        if _stops_before(record, settings, inclusive=inclusive, consistent=reached >= manifest.stop_lsn):
            return _ended("target", reached, replayed, manifest)
        replayed.append(record)
        reached = record.end_lsn
        if _stops_after(record, settings, inclusive=inclusive, consistent=reached >= manifest.stop_lsn):
            return _ended("target", reached, replayed, manifest)
    return _ended("end", reached, replayed, manifest)


def _ended(result: Result, reached: int, replayed: list[WalEvent], manifest: Manifest) -> Ended:
    return Ended(result if reached >= manifest.stop_lsn else "inconsistent", LSN(reached), replayed)


def _stops_before(record: WalEvent, settings: Mapping[str, str], *, inclusive: bool, consistent: bool) -> bool:
    if settings.get("recovery_target") == "immediate" and consistent:
        return True
    if "recovery_target_lsn" in settings and not inclusive:
        return record.lsn >= LSN.parse(settings["recovery_target_lsn"])
    if record.kind not in {"commit", "abort"}:
        return False
    if "recovery_target_xid" in settings and not inclusive:
        return record.xid == int(settings["recovery_target_xid"])
    if "recovery_target_time" in settings:
        assert record.time is not None
        moment = datetime.fromisoformat(settings["recovery_target_time"])
        return record.time > moment if inclusive else record.time >= moment
    return False


def _stops_after(record: WalEvent, settings: Mapping[str, str], *, inclusive: bool, consistent: bool) -> bool:
    if record.kind == "restore_point" and settings.get("recovery_target_name") == record.name:
        return True
    if "recovery_target_lsn" in settings and inclusive and record.lsn >= LSN.parse(settings["recovery_target_lsn"]):
        return True
    if record.kind in {"commit", "abort"} and "recovery_target_xid" in settings and inclusive:
        return record.xid == int(settings["recovery_target_xid"])
    return settings.get("recovery_target") == "immediate" and consistent
