"""WAL written by hand, as xloginsert.c and xlog.c lay it out, with what a parser must find in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import google_crc32c

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import PAGE_MAGIC
from pgkeep.postgres.wal_records import WalEvent

__all__ = ["HandWal", "commit_data", "main_data", "postgres_time", "record_bytes"]

PAGE = 8192
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def postgres_time(moment: datetime) -> int:
    """Microseconds since 2000."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def main_data(data: bytes, *, before: bytes = b"") -> bytes:
    """The part behind a record's header; ``before`` are headers that come first."""
    if not data:
        return before
    if len(data) < 256:
        return before + bytes([255, len(data)]) + data
    return before + b"\xfe" + struct.pack("<I", len(data)) + data


def record_bytes(body: bytes, *, resource_manager: int, info: int, xid: int = 0, previous: int = 0) -> bytes:
    """A record with its CRC."""
    head = struct.pack("<IIQBBH", 24 + len(body), xid, previous, info, resource_manager, 0)
    return head + struct.pack("<I", google_crc32c.extend(google_crc32c.value(body), head)) + body


def commit_data(
    moment: datetime,
    *,
    subxacts: int = 0,
    relations: int = 0,
    statistics: int = 0,
    statistic_size: int = 12,
    invalidations: int = 0,
    prepared: int | None = None,
    gid: bytes | None = None,
    database: bool = False,
) -> bytes:
    """xl_xact_commit with all that may follow, in the order of ParseCommitRecord; behind the time only where there is any."""
    flags, parts = 0, b""
    if database:
        flags, parts = flags | 1, parts + struct.pack("<II", 5, 1663)
    for flag, count, size in (
        (0x2, subxacts, 4),
        (0x4, relations, 12),
        (0x100, statistics, statistic_size),
        (0x8, invalidations, 16),
    ):
        if count:
            flags, parts = flags | flag, parts + struct.pack("<I", count) + b"\xaa" * (size * count)
    if prepared is not None:
        flags, parts = flags | 0x10, parts + struct.pack("<I", prepared)
    if gid is not None:
        flags, parts = flags | 0x80, parts + gid + b"\0"
    time = struct.pack("<q", postgres_time(moment))
    return time + struct.pack("<I", flags) + parts if flags else time


@dataclass
class HandWal:
    """WAL from the segment at ``start`` on; ``data`` is what is written, ``events`` what is in it."""

    segment_size: int = 1 << 20
    start: int = 1 << 20
    version: int = 18
    timeline: int = 1
    data: bytearray = field(default_factory=bytearray)
    events: list[WalEvent] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    _previous: int = 0

    @property
    def end(self) -> int:
        """Where the next byte goes."""
        return self.start + len(self.data)

    def header(self, position: int, rest: int = 0, flags: int = 0) -> bytes:
        """A page's header."""
        flags |= 1 if rest else 0
        long = position % self.segment_size == 0
        head = struct.pack(
            "<HHIQI4x", PAGE_MAGIC[self.version], flags | (2 if long else 0), self.timeline, position, rest
        )
        return head + struct.pack("<QII", 7, self.segment_size, PAGE) if long else head

    def write(self, body: bytes, *, resource_manager: int = 10, info: int = 0, xid: int = 0) -> LSN:
        """A record; returns where it starts."""
        lsn = self.begin_record()
        record = record_bytes(body, resource_manager=resource_manager, info=info, xid=xid, previous=self._previous)
        self._previous = lsn
        self.starts.append(lsn)
        self.put(record)
        return lsn

    def begin_record(self) -> LSN:
        """Where the next record starts; writes a page's header where there is none yet."""
        if self.end % PAGE == 0:
            self.data += self.header(self.end)
        return LSN(self.end)

    def put(self, record: bytes) -> None:
        """A record's bytes, over as many pages as they need."""
        rest = record
        while True:
            room = PAGE - self.end % PAGE
            self.data += rest[:room]
            rest = rest[room:]
            if not rest:
                break
            self.data += self.header(self.end, len(rest))
        self.data += bytes(-len(self.data) % 8)

    def fill(self, size: int) -> None:
        """A record of no interest with so many bytes behind its header."""
        self.write(b"\xff\x00" + b"\x55" * max(size - 2, 0))

    def fill_up_to(self, offset: int) -> None:
        """Such a record that ends at this offset of its page or of a later one."""
        lsn = self.begin_record()
        size = (offset - lsn - 24) % PAGE
        if lsn % PAGE + 24 + size > PAGE:
            # it goes on behind the next page's header
            size -= len(self.header(lsn - lsn % PAGE + PAGE))
        self.fill(size)
        assert self.end % PAGE == offset % PAGE, (self.end % PAGE, offset)

    def commit(self, moment: datetime, xid: int, *, abort: bool = False, before: bytes = b"", **more: int) -> WalEvent:
        """The end of a transaction; ``more`` as in `commit_data`."""
        data = commit_data(moment, **more)  # type: ignore[arg-type]
        info = (0x20 if abort else 0x00) | (0x80 if more else 0)
        lsn = self.write(main_data(data, before=before), resource_manager=1, info=info, xid=xid)
        return self._note("abort" if abort else "commit", lsn, moment, xid)

    def end_prepared(
        self, moment: datetime, prepared: int, *, abort: bool = False, **more: int | bytes | bool
    ) -> WalEvent:
        """The end of a prepared transaction, by a session without a transaction of its own."""
        data = commit_data(moment, prepared=prepared, **more)  # type: ignore[arg-type]
        lsn = self.write(main_data(data), resource_manager=1, info=(0x40 if abort else 0x30) | 0x80)
        return self._note("abort" if abort else "commit", lsn, moment, prepared)

    def restore_point(self, moment: datetime, name: bytes) -> WalEvent:
        """pg_create_restore_point."""
        data = struct.pack("<q64s", postgres_time(moment), name)
        lsn = self.write(main_data(data), resource_manager=0, info=0x70)
        return self._note("restore_point", lsn, moment, None, name.decode("utf-8", "surrogateescape"))

    def checkpoint(self, moment: datetime, *, shutdown: bool = False) -> WalEvent:
        """A checkpoint; its time is in seconds since 1970."""
        data = b"\x11" * 64 + struct.pack("<q", int(moment.timestamp())) + b"\x22" * 16
        lsn = self.write(main_data(data), resource_manager=0, info=0x00 if shutdown else 0x10)
        return self._note("checkpoint", lsn, moment, None)

    def end_of_recovery(self, moment: datetime) -> WalEvent:
        """What a promoted server writes first."""
        data = struct.pack("<qIIi4x", postgres_time(moment), 2, 1, 1)
        lsn = self.write(main_data(data), resource_manager=0, info=0x90)
        return self._note("end_of_recovery", lsn, moment, None)

    def switch(self) -> WalEvent:
        """pg_switch_wal: the rest of the segment has headers and zeros."""
        lsn = self.write(b"", resource_manager=0, info=0x40)
        while self.end % self.segment_size:
            self.data += bytes(-len(self.data) % PAGE)
            if self.end % self.segment_size:
                self.data += self.header(self.end)
        return self._note("switch", lsn, None, None)

    def segments(self) -> list[tuple[LSN, bytes]]:
        """What is written, in whole segments; the last one filled up with zeros."""
        size = self.segment_size
        padded = bytes(self.data) + bytes(-len(self.data) % size)
        return [(LSN(self.start + place), padded[place : place + size]) for place in range(0, len(padded), size)]

    def _note(self, kind: str, lsn: LSN, moment: datetime | None, xid: int | None, name: str | None = None) -> WalEvent:
        event = WalEvent(kind, lsn, LSN(self.end), moment, xid, name)  # type: ignore[arg-type]
        self.events.append(event)
        return event
