"""What a repository can bring a cluster back to: windows, restore points, and what is missing for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.errors import NotFoundError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import history_name
from pgkeep.postgres.wal import SEGMENT_HEADER_SIZE, WalFileKind, classify, read_segment_header
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.wal_objects import WalArchive, split_piece
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.times import WalTimes
from pgkeep.wal.window import WalStamp, Window, recovery_windows

__all__ = ["Overview", "RestorePoint", "orphan_remedy", "read_overview", "segment_size_of"]


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A moment with a name; ``reachable`` where a window holds it. ``lsn`` is where its record ends."""

    name: str
    time: datetime | None
    timeline: int
    lsn: LSN
    reachable: bool


@dataclass(frozen=True)
class Overview:
    """One cluster's recovery window in one repository. ``orphans`` are timelines whose history file is missing."""

    system_identifier: int
    inventory: WalInventory
    times: WalTimes
    windows: list[Window]
    restore_points: list[RestorePoint]
    orphans: list[int] = field(default_factory=list)


def read_overview(
    repository: Repository,
    system_identifier: int,
    manifests: Sequence[Manifest],
    stamps: Sequence[WalStamp] = (),
) -> Overview:
    """Read it. ``manifests`` are all backups of this system identifier. Raises NotFoundError where there is no WAL; StoreError,
    DamageError.
    """
    archive = repository.wal(system_identifier)
    inventory = WalInventory.read(archive, segment_size_of(archive, manifests))
    times = WalTimes(repository, system_identifier, inventory)
    windows = recovery_windows(manifests, inventory, times, stamps)
    points = [
        RestorePoint(
            point.name or "", point.time, point.timeline, point.end_lsn, _is_in(windows, point.timeline, point.end_lsn)
        )
        for point in times.restore_points()
    ]
    orphans = [timeline for timeline in sorted(inventory.timelines) if not inventory.has_history(timeline)]
    return Overview(system_identifier, inventory, times, windows, points, orphans)


def segment_size_of(archive: WalArchive, manifests: Sequence[Manifest]) -> int:
    """The size of the cluster's WAL segments, in bytes: from a backup, else from what the WAL says of itself.

    Raises NotFoundError where there is neither.
    """
    if manifests:
        return manifests[-1].wal.segment_size
    for name, _ in archive.names():
        segment, first, _ = split_piece(name)
        if first == 0 and classify(segment) in {WalFileKind.SEGMENT, WalFileKind.PARTIAL}:
            head = b""
            for chunk in archive.stream(name):
                head += chunk
                if len(head) >= SEGMENT_HEADER_SIZE:
                    return read_segment_header(head).segment_size
    raise NotFoundError("the repository holds no WAL of this cluster", hint="pgkeep backup, or pgkeep wal receive")


def orphan_remedy(timeline: int) -> str:
    """What brings a timeline's history file into the repository."""
    return f"pgkeep wal push pg_wal/{history_name(timeline)}, on the server that has it"


def _is_in(windows: Sequence[Window], timeline: int, lsn: int) -> bool:
    return any(window.timeline == timeline and window.start_lsn <= lsn <= window.end_lsn for window in windows)
