"""A stretch of WAL as pages: where records start and end, and their bytes across page headers.

Sources: src/include/access/xlog_internal.h and xlogrecord.h; how a record goes on over pages: XLogDecodeNextRecord in
src/backend/access/transam/xlogreader.c. Each page's header says where its first record starts, so pages can be walked
side by side: numpy takes one record of every page in a step. Nothing that a user stores can pass for a record, since only
places that the headers and lengths of the server's own records lead to are looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import google_crc32c
import numpy as np
import numpy.typing as npt

from pgkeep.errors import DamageError, PgkeepError
from pgkeep.postgres.lsn import LSN

__all__ = [
    "PAGE_SIZE",
    "RECORD_HEADER_SIZE",
    "BrokenRecord",
    "Part",
    "WalPages",
    "align",
    "crc_matches",
    "page_header_size",
]

Offsets = npt.NDArray[np.int64]
Buffer = bytes | bytearray | memoryview

PAGE_SIZE = 8192
"""Bytes; XLOG_BLCKSZ of every packaged server."""

RECORD_HEADER_SIZE = 24
"""SizeOfXLogRecord: total length u32, xid u32, previous record u64, info u8, resource manager u8, zero u16, CRC u32."""

_SHORT_HEADER, _LONG_HEADER = 24, 40
_FIRST_IS_CONTRECORD, _IS_LONG = 0x0001, 0x0002
# Every server since 8.0 has 0xD0 or 0xD1 as the high byte of its magic; a newer one may go on from there.
_MAGIC_HIGH = 0xD0
_MAX_RECORD = 1 << 30
"""Bytes; XLogRecordMaxSize is a little less since PostgreSQL 16, and before that no record could be allocated beyond it."""

_SIDE_BY_SIDE = 48
"""So many pages are walked with numpy; below, a plain loop is faster."""

_LENGTH = struct.Struct("<I")
_CRC_ROWS, _CRC_COLUMNS = 16, 256
"""From so many records of one length on, of up to so many bytes, CRCs are taken side by side."""

_CRC = 20
"""Where the CRC stands in a record's header: it covers the data behind the header, then the header up to here."""


class BrokenRecord(Exception):
    """The page behind does not go on with the record: it was never finished."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a record, without page headers, up to the offset ``end``; ``missing`` more are not here."""

    data: bytes
    end: int
    missing: int


def align(size: int) -> int:
    """MAXALIGN: records start at multiples of 8 bytes."""
    return (size + 7) & ~7


class WalPages:
    """WAL from the first byte of the page at LSN ``start`` on; its last page may be incomplete. Offsets are from ``start``.

    A page whose header is not that of its place (not written yet, or left by an older use of the file) holds no records.
    Raises PgkeepError for WAL pages of another size, DamageError for WAL of another segment size.
    """

    def __init__(self, data: Buffer, start: int, segment_size: int) -> None:
        self.data = memoryview(data)
        self.start = start
        self.size = len(self.data)
        self.bytes = np.frombuffer(data, np.uint8)
        self.words = np.frombuffer(self.data[: self.size & ~3], "<u4")
        self._segment_size = segment_size
        count = -(-self.size // PAGE_SIZE)
        if count and self.size < (count - 1) * PAGE_SIZE + self.header_size((count - 1) * PAGE_SIZE):
            count -= 1
        offsets = np.arange(count, dtype=np.int64) * PAGE_SIZE
        first_word = offsets >> 2
        flags = self.words[first_word] >> 16
        long = (start + offsets) % segment_size == 0
        address = self.words[first_word + 2].astype(np.int64) | self.words[first_word + 3].astype(np.int64) << 32
        self._valid = (
            ((self.words[first_word] & 0xF000) == _MAGIC_HIGH << 8)
            & (address == start + offsets)
            & (((flags & _IS_LONG) != 0) == long)
        )
        self._goes_on = (flags & _FIRST_IS_CONTRECORD) != 0
        self._rest = self.words[first_word + 4]
        self._first = offsets + np.where(long, _LONG_HEADER, _SHORT_HEADER)
        self._first += np.where(self._goes_on, (self._rest.astype(np.int64) + 7) & ~7, 0)
        for offset in offsets[self._valid & long]:
            self._check_long_header(int(offset))

    def header_size(self, offset: int) -> int:
        """Of the page at this offset."""
        return page_header_size(self.start + offset, self._segment_size)

    def has_header(self, offset: int) -> bool:
        """Whether the header of the page at this offset is here."""
        return offset // PAGE_SIZE < len(self._valid)

    def magic(self, *, is_cut: bool = False) -> int:
        """XLOG_PAGE_MAGIC of the first page that has one; 0 where none has. ``is_cut``: the first page's header is not all here."""
        pages = np.flatnonzero(self._valid[int(is_cut) :])
        return 0 if not len(pages) else int(self.words[(int(pages[0]) + is_cut) * PAGE_SIZE >> 2]) & 0xFFFF

    def record_starts(self, resume: int = 0, *, headless: bool = False) -> Offsets:
        """Where records start, in no order: all of them, or those from ``resume`` on, which must be one or a page's start.

        ``headless``: the first page has no header, and ``resume`` is the first record on it. The last record need not be whole.
        """
        first = self._first.copy()
        valid = self._valid.copy()
        if headless:
            first[0], valid[0] = 0, True
        page = resume // PAGE_SIZE
        if resume % PAGE_SIZE and page < len(first):
            first[page] = max(first[page], resume)
        ends = np.minimum((np.arange(len(first), dtype=np.int64) + 1) * PAGE_SIZE, self.size - 3)
        valid[:page] = False
        chosen = valid & (first < ends)
        if int(chosen.sum()) < _SIDE_BY_SIDE:
            return self._walk_each(first[chosen], ends[chosen])
        return self._walk_together(first[chosen], ends[chosen])

    def length(self, offset: int) -> int:
        """A record's total length, from its first four bytes."""
        return int(_LENGTH.unpack_from(self.data, offset)[0])

    def record(self, offset: int, size: int | None = None) -> Part:
        """A record's bytes, or its first ``size``. Raises BrokenRecord."""
        total = self.length(offset)
        if not RECORD_HEADER_SIZE <= total <= _MAX_RECORD:
            raise BrokenRecord
        wanted = total if size is None else min(size, total)
        here = min(wanted, PAGE_SIZE - offset % PAGE_SIZE)
        data = bytes(self.data[offset : offset + here])
        if len(data) < here or here == wanted:
            return Part(data, offset + len(data), wanted - len(data))
        rest = self.rest(offset // PAGE_SIZE + 1, total - here, wanted - here)
        return Part(data + rest.data, rest.end, rest.missing)

    def rest(self, page: int, remaining: int, wanted: int | None = None) -> Part:
        """What pages from ``page`` on have of a record that began before and has ``remaining`` bytes more.

        ``wanted``: only so many of them. Raises BrokenRecord where a page does not go on with that record.
        """
        wanted = remaining if wanted is None else wanted
        parts: list[memoryview] = []
        end = page * PAGE_SIZE
        while wanted:
            if page >= len(self._valid):
                break
            if not (self._valid[page] and self._goes_on[page] and int(self._rest[page]) == remaining):
                raise BrokenRecord
            begin = page * PAGE_SIZE + self.header_size(page * PAGE_SIZE)
            part = self.data[begin : min(begin + wanted, (page + 1) * PAGE_SIZE)]
            parts.append(part)
            end = begin + len(part)
            wanted -= len(part)
            remaining -= len(part)
            page += 1
            if end < page * PAGE_SIZE:
                break
        return Part(b"".join(parts), end, wanted)

    def words_at(self, starts: Offsets, distance: int) -> npt.NDArray[np.uint32]:
        """The 32-bit words ``distance`` (below 24) bytes behind records' starts; all ones where a word is not here."""
        places = starts + distance
        crossed = np.flatnonzero((starts & (PAGE_SIZE - 1)) >= PAGE_SIZE - distance)
        if len(crossed):
            long = (self.start + (places[crossed] & ~(PAGE_SIZE - 1))) % self._segment_size == 0
            places[crossed] += np.where(long, _LONG_HEADER, _SHORT_HEADER)
        places >>= 2
        words = self.words.take(places, mode="clip")
        words[places >= len(self.words)] = 0xFFFFFFFF
        return words

    def crcs_match(self, offsets: Offsets, total: int) -> npt.NDArray[np.bool_]:
        """`crc_matches` for records of one length that lie on one page each."""
        if len(offsets) < _CRC_ROWS or total > _CRC_COLUMNS:
            records = (bytes(self.data[offset : offset + total]) for offset in offsets.tolist())
            return np.fromiter((crc_matches(record) for record in records), np.bool_, len(offsets))
        table = _crc_table()
        crc = np.full(len(offsets), 0xFFFFFFFF, np.uint32)
        for column in (*range(RECORD_HEADER_SIZE, total), *range(_CRC)):
            crc = table.take(crc.astype(np.uint8) ^ self.bytes.take(offsets + column)) ^ (crc >> 8)
        same: npt.NDArray[np.bool_] = (crc ^ 0xFFFFFFFF) == self.words[(offsets + _CRC) >> 2]
        return same

    def _walk_each(self, first: Offsets, ends: Offsets) -> Offsets:
        found: list[int] = []
        for offset, end in zip(first.tolist(), ends.tolist(), strict=True):
            while offset < end:
                total = _LENGTH.unpack_from(self.data, offset)[0]
                if total < RECORD_HEADER_SIZE:
                    break
                found.append(offset)
                offset += (total + 7) & ~7
        return np.array(found, np.int64)

    def _walk_together(self, offsets: Offsets, ends: Offsets) -> Offsets:
        found: list[Offsets] = []
        words = self.words
        while len(offsets):
            totals = words[offsets >> 2]
            if int(totals.min()) < RECORD_HEADER_SIZE:
                begun = totals >= RECORD_HEADER_SIZE
                offsets, ends, totals = offsets[begun], ends[begun], totals[begun]
            found.append(offsets)
            offsets = offsets + ((totals.astype(np.int64) + 7) & ~7)
            inside = offsets < ends
            if not inside.all():
                offsets, ends = offsets[inside], ends[inside]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _check_long_header(self, offset: int) -> None:
        segment_size, page_size = (int(word) for word in self.words[(offset >> 2) + 8 : (offset >> 2) + 10])
        if page_size != PAGE_SIZE:
            raise PgkeepError(
                f"the WAL at {LSN(self.start + offset)} has pages of {page_size} bytes, and pgkeep reads pages of {PAGE_SIZE}",
                hint="the server was built with --with-wal-blocksize; the times of its transactions cannot be read",
            )
        if segment_size != self._segment_size:
            raise DamageError(
                f"the WAL at {LSN(self.start + offset)} is of segments of {segment_size} bytes, not of {self._segment_size}"
            )


def page_header_size(lsn: int, segment_size: int) -> int:
    """Of the page that begins at ``lsn``: a segment's first page has a longer one."""
    return _SHORT_HEADER if lsn % segment_size else _LONG_HEADER


def crc_matches(record: bytes) -> bool:
    """Whether a record's bytes are those that the server wrote: CRC-32C, as ValidXLogRecord in xlogreader.c takes it."""
    crc = google_crc32c.extend(google_crc32c.value(record[RECORD_HEADER_SIZE:]), record[:_CRC])
    return bool(crc == _LENGTH.unpack_from(record, _CRC)[0])


@cache
def _crc_table() -> npt.NDArray[np.uint32]:
    """What eight bits do to a CRC-32C (polynomial 0x1EDC6F41, reflected)."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(0x82F63B78), crc >> 1)
    return crc
