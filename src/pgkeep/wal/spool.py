"""Where received WAL waits on this machine until every repository has it.

Below the directory (mode 0700, one process at a time): ``spool.json`` (`pgkeep.wal.spool_keys`), ``wal/`` with the parts
(`pgkeep.wal.spool_parts`), named ``<timeline, 8 hex digits>-<LSN of the first byte, 16>``, and ``history/`` with the
timelines' history files, each a part of its own. A part never crosses the end of a segment, so that a segment leaves the
spool with its parts. The newest segment always stays: its end is where receiving goes on.

What is received is written at once (`Spool.append`) and counts from `Spool.sync` on: only that is acknowledged to the server,
and only that is shipped.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import NamedTuple

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import segment_name, segment_start
from pgkeep.repository.crypto import KeyRing
from pgkeep.wal.small_files import fsync_directory
from pgkeep.wal.spool_keys import SpoolIdentity, spool_errors
from pgkeep.wal.spool_parts import PartWriter, read_part, scan_part

__all__ = ["Position", "Spool", "SpoolSegment"]

_PART = re.compile(r"([0-9A-F]{8})-([0-9A-F]{16})", re.ASCII)
_DAMAGED = ".damaged"


class Position(NamedTuple):
    """A place in the WAL. Later timelines are greater, whatever their LSN: a receiver never goes back to an older one."""

    timeline: int
    lsn: LSN


class SpoolSegment(NamedTuple):
    """What is durable here of one segment: the bytes ``[first, end)``; ``closed`` where no more of it will come."""

    timeline: int
    start: LSN
    first: LSN
    end: LSN
    complete: bool
    closed: bool
    segment_size: int

    @property
    def name(self) -> str:
        """The segment's name."""
        return segment_name(self.timeline, self.start, self.segment_size)


@dataclass(slots=True)
class _Part:
    path: Path
    start: LSN
    end: LSN
    size: int


@dataclass(slots=True)
class _Segment:
    timeline: int
    start: LSN
    parts: list[_Part] = field(default_factory=list)

    @property
    def end(self) -> LSN:
        return self.parts[-1].end


class Spool:
    """The spool of one cluster; safe for threads, but only one of them appends.

    ``changed`` is notified when a segment is complete, a timeline begins, or room was made, not for every few bytes. ``damage`` is what opening found wrong; the WAL from
    there on is to be received again, and the bad files are set aside.
    """

    def __init__(self, directory: Path, identity: SpoolIdentity, keys: KeyRing) -> None:
        """Open it. Raises StoreError."""
        self.directory = directory
        self.identity = identity
        self.changed = threading.Condition(threading.RLock())
        self.damage: list[DamageError] = []
        self._keys = keys
        self._wal = directory / "wal"
        self._history = directory / "history"
        self._segments: dict[tuple[int, int], _Segment] = {}
        self._writer: PartWriter | None = None
        self._synced_size = 0
        self._begun: Position | None = None
        self._durable: Position | None = None
        self._size = 0
        with spool_errors(directory):
            for place in (self._wal, self._history):
                place.mkdir(mode=0o700, exist_ok=True)
            self._open()
            self._durable = self.position
            self.histories = self._read_histories()

    @property
    def position(self) -> Position | None:
        """Where receiving goes on; None where nothing was ever received."""
        with self.changed:
            if self._begun is not None:
                return self._begun
            if not self._segments:
                return None
            newest = self._newest()
            return Position(newest.timeline, newest.end)

    @property
    def durable(self) -> Position | None:
        """Up to where WAL is durable here."""
        return self._durable

    @property
    def size(self) -> int:
        """Bytes that the spool takes."""
        return self._size

    @property
    def is_dirty(self) -> bool:
        """Whether `sync` has something to do."""
        return self._writer is not None and self._writer.size > self._synced_size

    def begin(self, position: Position) -> None:
        """Go on at another place than the end: on a new timeline, or behind a gap. Raises StoreError."""
        self.sync()
        with self.changed:
            self._close_part()
            key = (position.timeline, segment_start(position.lsn, self.identity.segment_size))
            for segment in self.segments():
                if (segment.timeline, segment.start) >= key:
                    self.set_aside(segment)
            self._begun = position
            self._durable = position
            self.changed.notify_all()

    def append(self, start: LSN, parts: Sequence[memoryview]) -> None:
        """Write WAL that begins at the current position. Raises StoreError; `rollback` then says where to go on."""
        position = self.position
        if position is None or position.lsn != start:
            raise ValueError(f"WAL of {start} does not follow {position}")
        segment_size = self.identity.segment_size
        lsn, pending, size = start, [], 0
        with spool_errors(self.directory):
            for part in parts:
                while part:
                    room = segment_size - (lsn + size) % segment_size
                    pending.append(part[:room])
                    size += len(pending[-1])
                    part = part[room:]
                    if (lsn + size) % segment_size == 0:
                        self._write(position.timeline, lsn, pending)
                        lsn, pending, size = LSN(lsn + size), [], 0
                        self.sync()
                        self._close_part()
                        with self.changed:
                            self.changed.notify_all()
            if pending:
                self._write(position.timeline, lsn, pending)

    def sync(self) -> None:
        """Make all that was appended durable. Raises StoreError."""
        writer = self._writer
        if writer is None or writer.size == self._synced_size:
            return
        with spool_errors(self.directory):
            writer.sync()
            if self._synced_size == 0:
                fsync_directory(self._wal)
        with self.changed:
            self._synced_size = writer.size
            self._durable = self.position

    def rollback(self) -> None:
        """After a failed `append` or `sync`: forget what is not durable, for nobody knows what the disk has of it.

        Raises StoreError.
        """
        with self.changed:
            writer, self._writer = self._writer, None
            if writer is None or self._durable is None:
                return
            segment = self._newest()
            part = segment.parts[-1]
            self._size += self._synced_size - part.size
            # first what counts, then the file: where it cannot be cut off, the part that follows says where this one ends
            if self._synced_size:
                part.end, part.size = self._durable.lsn, self._synced_size
            else:
                segment.parts.pop()
                if not segment.parts:
                    del self._segments[segment.timeline, segment.start]
                    self._begun = self._durable
            with spool_errors(self.directory):
                try:
                    writer.truncate(self._synced_size)
                finally:
                    writer.close()

    def segments(self) -> list[SpoolSegment]:
        """What is durable, in order."""
        with self.changed:
            size = self.identity.segment_size
            found = []
            newest = self._newest() if self._segments else None
            for segment in self._segments.values():
                end = segment.end
                is_open = segment is newest and self._begun is None
                if segment is newest and self._durable is not None and self._durable.timeline == segment.timeline:
                    end = min(end, self._durable.lsn)
                first = segment.parts[0].start
                if end > first:
                    complete = end == segment.start + size
                    found.append(SpoolSegment(segment.timeline, segment.start, first, end, complete, not is_open, size))
            return found

    def read(self, segment: SpoolSegment, first: int, end: int) -> Iterator[bytes]:
        """The bytes ``[first, end)`` of a segment, in pieces. Raises DamageError, StoreError."""
        with self.changed:
            held = self._segments.get((segment.timeline, segment.start))
            if held is None:
                raise DamageError(f"the spool has WAL segment {segment.name} no more")
            parts = list(held.parts)
        with spool_errors(self.directory):
            for part in parts:
                if part.start < end and part.end > first:
                    yield from read_part(part.path, self._keys, max(first, part.start), min(end, part.end))

    def release(self, shipped: Position) -> None:
        """Delete the segments that end at or before ``shipped``; the newest one stays. Raises StoreError."""
        with self.changed, spool_errors(self.directory):
            newest = self._newest() if self._segments else None
            for key, segment in list(self._segments.items()):
                if segment is newest or (segment.timeline, segment.end) > shipped:
                    break
                for part in segment.parts:
                    part.path.unlink(missing_ok=True)
                    self._size -= part.size
                del self._segments[key]
                self.changed.notify_all()

    @property
    def has_hole(self) -> bool:
        """Whether WAL is missing in the middle of a timeline."""
        segments = self.segments()
        return any(
            before.timeline == after.timeline and before.end != after.start for before, after in pairwise(segments)
        )

    def set_aside(self, segment: SpoolSegment) -> None:
        """Take a segment out of the spool; its files stay beside, for a person to look at. Raises StoreError.

        Not for the segment that is being written.
        """
        with self.changed, spool_errors(self.directory):
            if self._begun is None and self.position == (segment.timeline, segment.end):
                self._begun = Position(segment.timeline, segment.end)
            held = self._segments.pop((segment.timeline, segment.start), None)
            for part in held.parts if held is not None else ():
                part.path.replace(part.path.with_name(part.path.name + _DAMAGED))
                self._size -= part.size

    def add_history(self, timeline: int, content: bytes) -> None:
        """Keep a timeline's history file, durably. Raises StoreError."""
        with self.changed, spool_errors(self.directory):
            if timeline in self.histories:
                return
            writer = PartWriter(self._history / _part_name(timeline, LSN(0)), self._keys, timeline, LSN(0))
            writer.append([memoryview(content)], LSN(0))
            writer.sync()
            writer.close()
            fsync_directory(self._history)
            self.histories = {**self.histories, timeline: content}
            self.changed.notify_all()

    def close(self) -> None:
        """Make durable what was appended, and close. Raises StoreError."""
        self.sync()
        self._close_part()

    def _newest(self) -> _Segment:
        return next(reversed(self._segments.values()))

    def _write(self, timeline: int, lsn: LSN, parts: list[memoryview]) -> None:
        assert self._durable is not None
        if self._writer is None:
            start = segment_start(lsn, self.identity.segment_size)
            path = self._wal / _part_name(timeline, lsn)
            writer = PartWriter(path, self._keys, timeline, lsn)
            with self.changed:
                self._writer, self._synced_size = writer, 0
                segment = self._segments.setdefault((timeline, start), _Segment(timeline, start))
                segment.parts.append(_Part(path, lsn, lsn, 0))
                self._begun = None
        writer = self._writer
        writer.append(parts, self._durable.lsn)
        with self.changed:
            part = self._newest().parts[-1]
            self._size += writer.size - part.size
            part.end, part.size = writer.end, writer.size

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        found = sorted(
            (int(match[1], 16), LSN(int(match[2], 16)), path)
            for path in self._wal.iterdir()
            if (match := _PART.fullmatch(path.name))
        )
        for (timeline, start, path), after in zip_longest(found, found[1:]):
            key = (timeline, segment_start(start, self.identity.segment_size))
            before = self._segments.get(key)
            if before is not None and before.end != start:
                self.damage.append(DamageError(f"the spool has a gap before {path}", path=str(path)))
                path.replace(path.with_name(path.name + _DAMAGED))
                continue
            if after is not None and after[0] == timeline and after[1] <= key[1] + self.identity.segment_size:
                # what follows begins where this one ends; what is wrong inside shows when it is read
                self._add(timeline, _Part(path, start, after[1], path.stat().st_size))
                continue
            self._open_last_of_timeline(timeline, start, path, newest=after is None)
        fsync_directory(self._wal)

    def _open_last_of_timeline(self, timeline: int, start: LSN, path: Path, *, newest: bool) -> None:
        """Only here does the file itself say where it ends; the newest may have been torn by a crash."""
        try:
            scan = scan_part(path, self._keys, timeline, start, thorough=newest)
            if scan is not None and scan.damage is not None:
                self.damage.append(scan.damage)
                shutil.copyfile(path, path.with_name(path.name + _DAMAGED))
        except DamageError as error:
            self.damage.append(error)
            path.replace(path.with_name(path.name + _DAMAGED))
            return
        if scan is None or scan.end == start:
            path.unlink()
            return
        with path.open("r+b") as file:
            file.truncate(scan.size)
            os.fsync(file.fileno())
        self._add(timeline, _Part(path, start, scan.end, scan.size))

    def _add(self, timeline: int, part: _Part) -> None:
        start = segment_start(part.start, self.identity.segment_size)
        self._segments.setdefault((timeline, start), _Segment(timeline, start)).parts.append(part)
        self._size += part.size

    def _read_histories(self) -> dict[int, bytes]:
        histories = {}
        for path in self._history.iterdir():
            match = _PART.fullmatch(path.name)
            if match is None:
                continue
            timeline = int(match[1], 16)
            try:
                scan = scan_part(path, self._keys, timeline, LSN(0), thorough=True)
                if scan is not None and scan.end:
                    histories[timeline] = b"".join(read_part(path, self._keys, 0, scan.end))
            except DamageError as error:
                # the server gives it again
                self.damage.append(error)
                path.unlink()
        return histories


def _part_name(timeline: int, lsn: LSN) -> str:
    return f"{timeline:08X}-{lsn:016X}"
