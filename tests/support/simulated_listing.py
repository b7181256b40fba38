"""A simulated store: it lists WAL of years that is not there, and keeps what is put in memory. Nothing of it is a real store's."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pgkeep.postgres.wal import segment_name
from pgkeep.repository.store import ObjectExists, ObjectInfo, ObjectMissing
from pgkeep.wal.times_groups import GROUP_SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgkeep.repository.store import Buffer, Capabilities

__all__ = ["SEGMENT", "SimulatedListing"]

SEGMENT = 16 << 20
_IN_FOLDER = (1 << 32) // SEGMENT
_PAGE = 1000
"""Objects that an S3 server lists in one answer."""


@dataclass
class SimulatedListing:
    """``segments`` of WAL of one cluster, evenly from ``begin`` to ``now``, and their index of times; see `pgkeep.repository.Store`.

    ``requests`` is how many a server would have been asked.
    """

    system_identifier: int
    segments: int
    begin: datetime
    now: datetime
    url: str = "s3://simulated/listing"
    writer: str = "simulated"
    parallel_puts: int = 1
    requests: int = 0
    put_at: datetime | None = None
    _objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)

    def lsn_at(self, moment: datetime) -> int:
        """Where the WAL is at a moment."""
        return SEGMENT + int((moment - self.begin) / (self.now - self.begin) * self.segments) * SEGMENT

    def adapt(self, capabilities: Capabilities) -> None:
        """It can do everything."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Kept, and dated ``put_at``, or now."""
        if name in self._objects:
            raise ObjectExists(f"{name} exists")
        self._objects[name] = b"".join(parts), self.put_at or datetime.now(UTC)
        insort(self._names, name)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """What was put."""
        self.requests += 1
        try:
            data = self._objects[name][0]
        except KeyError:
            raise ObjectMissing(f"{name} is not there") from None
        return data[start : len(data) if length is None else start + length]

    read_mapped = get

    def info(self, name: str) -> ObjectInfo:
        """Of what was put."""
        data = self.get(name)
        return ObjectInfo(name, len(data), self._objects[name][1])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """What was put, and the WAL that is simulated."""
        for number, info in enumerate(self._listed(prefix)):
            self.requests += number % _PAGE == 0
            yield info

    def folders(self, prefix: str) -> Sequence[str]:
        """Of both."""
        found = {name[len(prefix) :].split("/")[0] for name in self._below(prefix) if "/" in name[len(prefix) :]}
        cluster = f"clusters/{self.system_identifier}/"
        for kind in ("wal/", "times/"):
            if prefix == cluster + kind:
                found.add("00000001")
            elif prefix == f"{cluster}{kind}00000001/":
                found |= {f"{log:08X}" for log in range(self.segments // _IN_FOLDER + 1)}
        self.requests += 1 + len(found) // _PAGE
        return sorted(found)

    def delete(self, name: str) -> None:
        """Of what was put."""
        if name in self._objects:
            del self._objects[name]
            del self._names[bisect_left(self._names, name)]

    def discard_leftovers(self, writer: str) -> None:
        """There are none."""

    def leftovers(self) -> int:
        """There are none."""
        return 0

    def free_bytes(self) -> int | None:
        """There is always more."""
        return None

    def _below(self, prefix: str) -> Sequence[str]:
        return self._names[bisect_left(self._names, prefix) : bisect_left(self._names, prefix + "\x7f")]

    def _listed(self, prefix: str) -> Iterator[ObjectInfo]:
        for name in self._below(prefix):
            data, came = self._objects[name]
            yield ObjectInfo(name, len(data), came)
        cluster = f"clusters/{self.system_identifier}/"
        step: timedelta = (self.now - self.begin) / max(self.segments, 1)
        for kind, every in (("times", GROUP_SEGMENTS), ("wal", 1)):
            folder = f"{cluster}{kind}/00000001/"
            if not (folder.startswith(prefix) or prefix.startswith(folder)):
                continue
            log = prefix[len(folder) :].rstrip("/")
            first = int(log, 16) * _IN_FOLDER if log else 0
            end = min(first + _IN_FOLDER if log else self.segments + 1, self.segments + 1)
            for number in range(max(first, 1), end):
                if number % every == 0:
                    name = segment_name(1, number * SEGMENT, SEGMENT)
                    yield ObjectInfo(f"{folder}{name[8:16]}/{name}", 3 << 20, self.begin + number * step)
