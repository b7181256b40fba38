"""A simulated store: as large as one likes, with WAL of which there are but the names."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import merge
from itertools import takewhile

from pgkeep.postgres.wal import segment_name
from pgkeep.repository.store import Buffer, Capabilities, ObjectExists, ObjectInfo, ObjectMissing
from pgkeep.units import utc_now
from pgkeep.wal.times_groups import GROUP_SEGMENTS

__all__ = ["SimulatedStore", "SimulatedWal"]

_STORED = 2_000_000
"""Bytes of a segment in the store."""


@dataclass(frozen=True)
class SimulatedWal:
    """Segments ``[first, end)`` of one timeline, by their numbers from LSN 0 on, which came evenly from ``since`` to ``until``, and
    the index of times up to segment ``indexed``.
    """

    system_identifier: int
    segment_size: int
    first: int
    end: int
    indexed: int
    since: datetime
    until: datetime
    timeline: int = 1

    @property
    def objects(self) -> int:
        """How many there are, the index included."""
        return self.end - self.first + len(range(self.first_group, self.indexed, GROUP_SEGMENTS))

    @property
    def folders(self) -> Mapping[str, Sequence[str]]:
        """What is right below each folder of folders."""
        logs = [f"{log:08X}" for log in range(self.first // self._per_log, (self.end - 1) // self._per_log + 1)]
        return {f"{self._prefix(kind)}{self.timeline:08X}/": logs for kind in ("wal", "times")} | {
            self._prefix(kind): [f"{self.timeline:08X}"] for kind in ("wal", "times")
        }

    def came(self, number: int) -> datetime:
        """When a segment did."""
        return self.since + (self.until - self.since) * ((number - self.first + 1) / (self.end - self.first))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """A folder, or all of a timeline."""
        for kind, step, first, end in (
            ("times", GROUP_SEGMENTS, self.first_group, self.indexed),
            ("wal", 1, self.first, self.end),
        ):
            top = f"{self._prefix(kind)}{self.timeline:08X}/"
            if not (prefix.startswith(top) or top.startswith(prefix)):
                continue
            if prefix.startswith(top) and len(prefix) > len(top):
                log = int(prefix.removeprefix(top).rstrip("/"), 16)
                first = max(first, log * self._per_log)
                end = min(end, (log + 1) * self._per_log)
            for number in range(first, end, step):
                name = segment_name(self.timeline, number * self.segment_size, self.segment_size)
                came = self.came(number + step - 1)
                yield ObjectInfo(f"{top}{name[8:16]}/{name}", _STORED // step, came)

    @property
    def _per_log(self) -> int:
        return (1 << 32) // self.segment_size

    @property
    def first_group(self) -> int:
        """The first segment of the index's first group."""
        return -(-self.first // GROUP_SEGMENTS) * GROUP_SEGMENTS

    def _prefix(self, kind: str) -> str:
        return f"clusters/{self.system_identifier}/{kind}/"


@dataclass
class SimulatedStore:
    """Objects in memory, and simulated WAL beside them, which can be listed and not read. ``now`` is by its clock, and ``listed`` how
    many objects its listings have shown.
    """

    url: str = "/simulated"
    writer: str = "0123456789abcdef"
    parallel_puts: int = 1
    wal: SimulatedWal | None = None
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    listed: int = 0
    now: datetime | None = None

    def adapt(self, capabilities: Capabilities) -> None:
        """Nothing to adapt."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        if name in self.objects:
            raise ObjectExists(name)
        self.objects[name] = b"".join(parts), self.now or utc_now()
        insort(self.names, name)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = self._object(name)[0]
        return data[start : None if length is None else start + length]

    def read_mapped(self, name: str) -> Buffer:
        return self._object(name)[0]

    def info(self, name: str) -> ObjectInfo:
        data, came = self._object(name)
        return ObjectInfo(name, len(data), came)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        named = takewhile(lambda name: name.startswith(prefix), self.names[bisect_left(self.names, prefix) :])
        simulated = () if self.wal is None else self.wal.list(prefix)
        for info in merge((self.info(name) for name in named), simulated, key=lambda info: info.name):
            self.listed += 1
            yield info

    def folders(self, prefix: str) -> Sequence[str]:
        there = {name[len(prefix) :].partition("/")[0] for name in self.names if name.startswith(prefix)}
        if self.wal is not None:
            there.update(self.wal.folders.get(prefix, ()))
        return sorted(there)

    def delete(self, name: str) -> None:
        if self.objects.pop(name, None) is not None:
            self.names.remove(name)

    def discard_leftovers(self, writer: str) -> None:
        """There are none."""

    def leftovers(self) -> int:
        return 0

    def free_bytes(self) -> int | None:
        return None

    def _object(self, name: str) -> tuple[bytes, datetime]:
        try:
            return self.objects[name]
        except KeyError:
            raise ObjectMissing(f"{name} is not in {self.url}") from None
