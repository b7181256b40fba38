"""The index of times in the repository: one sealed object for 16 segments, created once all of them are there.

``clusters/<system identifier>/times/<timeline>/<log>/<name of the group's first segment>``: numbers and folders as those of
WAL objects. Its plain text is the MessagePack of `TimesGroup`. The index is a memory, not data: what is not in it is read from the
WAL itself, and any writer may add what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

import msgspec

from pgkeep.errors import DamageError
from pgkeep.postgres.wal import parse_segment_name, segment_name, segment_start
from pgkeep.repository import Repository
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed
from pgkeep.repository.store import ObjectExists, ObjectMissing
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.segment_times import SegmentTimes

__all__ = ["GROUP_SEGMENTS", "TimesGroup", "TimesGroups", "complete_group"]

GROUP_SEGMENTS = 16
"""Segments in a group, aligned: one object to read for 256 MiB of WAL in segments of 16 MiB."""

_VERSION = 1


class TimesGroup(msgspec.Struct, frozen=True):
    """What one object says of its segments; ``segments`` are in order, without holes, up to the group's last."""

    version: int
    timeline: int
    segment_size: int
    segments: list[SegmentTimes]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TimesGroup)


class TimesGroups:
    """The group objects of one cluster. A group goes by the LSN of its first segment, there or not."""

    def __init__(self, repository: Repository, system_identifier: int, segment_size: int) -> None:
        self._store = repository.store
        self._keys = repository.keys
        self._prefix = f"clusters/{system_identifier}/times/"
        self._size = segment_size

    def group_of(self, start: int) -> int:
        """The group that the segment at ``start`` belongs to."""
        return start - start % (GROUP_SEGMENTS * self._size)

    def end_of(self, group: int) -> int:
        """Where the group's last segment ends."""
        return group + GROUP_SEGMENTS * self._size

    def object_name(self, timeline: int, group: int) -> str:
        """The object that holds a group."""
        name = segment_name(timeline, group, self._size)
        return f"{self._prefix}{name[:8]}/{name[8:16]}/{name}"

    def there(self, timeline: int, logs: Collection[int] | None = None) -> set[int]:
        """The groups of a timeline that the repository has, by one listing; or those of some logs (LSN >> 32), by one for each."""
        prefix = f"{self._prefix}{timeline:08X}/"
        found = set()
        for each in [prefix] if logs is None else [f"{prefix}{log:08X}/" for log in sorted(logs)]:
            for info in self._store.list(each):
                with suppress(ValueError):
                    found.add(int(parse_segment_name(info.name.rpartition("/")[2], self._size)[1]))
        return found

    def exists(self, timeline: int, group: int) -> bool:
        """Whether the repository has a group, by one question to the store."""
        try:
            self._store.info(self.object_name(timeline, group))
        except ObjectMissing:
            return False
        return True

    def read(self, timeline: int, group: int) -> list[SegmentTimes]:
        """The summaries of a group. Raises ObjectMissing; DamageError where it is not what was written; StoreError."""
        name = self.object_name(timeline, group)
        data = read_sealed(self._store, self._keys, name, ObjectType.WAL_TIMES)
        try:
            content = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamageError(f"{name} is damaged: {error}", object_name=name) from None
        if (content.version, content.timeline, content.segment_size) != (_VERSION, timeline, self._size):
            raise DamageError(
                f"{name} is not of version {_VERSION}, timeline {timeline} and segments of {self._size} bytes",
                object_name=name,
            )
        return content.segments

    def write(self, timeline: int, group: int, segments: Sequence[SegmentTimes]) -> bool:
        """Create a group; False where another writer was first, who wrote the same. Raises StoreError."""
        content = TimesGroup(_VERSION, timeline, self._size, list(segments))
        name = self.object_name(timeline, group)
        try:
            write_sealed(self._store, self._keys, name, ObjectType.WAL_TIMES, _encoder.encode(content))
        except ObjectExists:
            return False
        return True


def complete_group(inventory: WalInventory, timeline: int, group: int) -> list[int]:
    """The starts of a group's segments, from the timeline's first one on, where all are whole; empty where they are not.

    A timeline whose history says where it began must have that segment. Of any other (timeline 1) nobody knows, and the oldest
    segment that the repository has counts as the first.
    """
    wal = inventory.timelines.get(timeline)
    if wal is None or not wal.whole:
        return []
    size = inventory.segment_size
    history = inventory.history(timeline) if inventory.has_history(timeline) else None
    if history is not None and history.switches:
        first = int(segment_start(history.start_of(timeline), size))
    else:
        first = min(wal.whole | wal.pieces.keys() | wal.partial)
    starts = list(range(max(first, group), group + GROUP_SEGMENTS * size, size))
    return starts if all(start in wal.whole for start in starts) else []
