"""Finds in WAL what times and targets hang on: ends of transactions, restore points, checkpoints, switches.

`WalRecordParser` takes WAL as it comes, cut anywhere, and may begin anywhere. What it finds is exact: each record is reached from
a page's header and the lengths of the records before it, and its CRC is right. It knows the WAL of PostgreSQL 15 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_events import EARLIEST, LATEST, NO_TIME, EventTable, WalEvent, WalRecord
from pgkeep.postgres.wal_pages import (
    PAGE_SIZE,
    RECORD_HEADER_SIZE,
    BrokenRecord,
    Buffer,
    Offsets,
    WalPages,
    align,
    crc_matches,
    page_header_size,
)
from pgkeep.postgres.xact_records import (
    ABORT,
    COMMIT,
    NO_KIND,
    OTHER,
    POSTGRES_EPOCH,
    RM_XACT,
    RM_XLOG,
    SWITCH,
    decode_record,
    kind_of,
)

__all__ = ["EventTable", "WalEvent", "WalRecord", "WalRecordParser"]

_XID, _PREVIOUS, _KIND = 4, 8, 16
"""Offsets in a record's header; at the last one: info u8, resource manager u8, zero u16."""

_SIMPLE_DATA = 26
"""Where the time stands in a commit record without blocks and origin: behind the header, and the 2 bytes of the data's."""


@dataclass(slots=True)
class _OpenRecord:
    """A record whose rest has not come: its bytes from complete pages, and how many are missing behind them."""

    lsn: int
    data: bytearray
    missing: int


class _Found:
    """Rows of a table to be, in any order."""

    def __init__(self) -> None:
        self.tables: list[EventTable] = []
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._names: dict[int, bytes] = {}

    def add(self, kind: int, lsn: int, end_lsn: int, time: int | None, xid: int, name: bytes | None) -> None:
        time = NO_TIME if time is None else min(max(time, EARLIEST), LATEST)
        self._rows.append((kind, lsn, end_lsn, time, xid))
        if name is not None:
            self._names[lsn] = name

    def table(self) -> EventTable:
        if self._rows:
            kinds, lsns, end_lsns, times, xids = zip(*self._rows, strict=True)
            self.tables.append(
                EventTable(
                    np.array(kinds, np.uint8),
                    np.array(lsns, np.int64),
                    np.array(end_lsns, np.int64),
                    np.array(times, np.int64),
                    np.array(xids, np.uint32),
                    self._names,
                )
            )
        joined = EventTable.joined(self.tables)
        order = np.argsort(joined.lsns)
        return EventTable(
            joined.kinds[order],
            joined.lsns[order],
            joined.end_lsns[order],
            joined.times[order],
            joined.xids[order],
            joined.names,
        )


class WalRecordParser:
    """Takes WAL in order and gives its events; what crosses from one feed to the next is kept, and no more.

    ``segment_size`` in bytes. With ``every`` all records are events, those without a kind of their own as ``"other"``.
    """

    def __init__(self, segment_size: int, *, every: bool = False) -> None:
        self._segment_size = segment_size
        self._every = every
        self._kinds = _kind_table(every)
        self._magic = 0
        self._next = 0
        self._start = 0
        self._carry = b""
        self._resume = 0
        self._head: int | None = None
        self._headless = False
        self._is_cut = False
        self._open: _OpenRecord | None = None
        self._unfinished: int | None = None

    @property
    def open_lsn(self) -> LSN | None:
        """Where a record starts that has not come whole and may be an event; None where there is none."""
        if self._open is not None:
            return LSN(self._open.lsn)
        return None if self._unfinished is None else LSN(self._unfinished)

    def feed(self, lsn: int, data: Buffer) -> list[WalEvent]:
        """The events that the WAL from ``lsn`` on brings, in order: those whose records are whole now.

        Data that does not follow what was fed before begins anew; the record that it may begin in the middle of is passed
        over. Raises PgkeepError for WAL pages of another size than 8 KiB, DamageError for WAL of another segment size.
        """
        return self.scan(lsn, data).events()

    def scan(self, lsn: int, data: Buffer) -> EventTable:
        """`feed`, as a table."""
        if not len(data):
            return EventTable.empty()
        if lsn != self._next:
            self._forget(lsn)
        self._next = lsn + len(data)
        if self._carry:
            data = self._carry + bytes(data)
        pages = WalPages(data, self._start, self._segment_size)
        self._magic = pages.magic(is_cut=self._is_cut) or self._magic
        if self._head is not None:
            place, head, decided = _find_head(pages, self._head)
            self._head = None if decided else place
            if not decided:
                self._carry = bytes(data)
                return EventTable.empty()
            if head is not None:
                self._resume = self._start + head
                self._headless = True
        found = _Found()
        self._go_on(pages, found)
        starts = pages.record_starts(self._resume - self._start, headless=self._headless)
        last = int(starts.max()) if len(starts) else None
        self._take(pages, starts, last, found)
        self._keep(pages, last)
        return found.table()

    def _forget(self, lsn: int) -> None:
        """Begin anew at ``lsn``; a first page of which only a part comes is filled up with zeros in front."""
        within = lsn % PAGE_SIZE
        self._next = lsn
        self._start = lsn - within
        self._carry = bytes(within)
        self._head = max(align(within), page_header_size(self._start, self._segment_size)) if within else None
        self._headless = False
        self._is_cut = within > 0
        self._resume = self._start
        self._open = None
        self._unfinished = None

    def _go_on(self, pages: WalPages, found: _Found) -> None:
        """The rest of a record that was open, as far as it has come."""
        record = self._open
        if record is None:
            return
        try:
            rest = pages.rest(0, record.missing)
            if rest.missing:
                complete = rest.data[: _payload(pages, 0)]
                record.data += complete
                record.missing -= len(complete)
                if self._is_of_interest(record.data):
                    return
            else:
                record.data += rest.data
                self._decode(bytes(record.data), record.lsn, self._start + rest.end, found)
        except BrokenRecord:
            pass
        self._open = None

    def _take(self, pages: WalPages, starts: Offsets, last: int | None, found: _Found) -> None:
        """The events among records that start here."""
        self._unfinished = None
        words = pages.words_at(starts, _KIND)
        kinds = np.where(words >> 16 == 0, self._kinds[words & 0xFFFF], NO_KIND)
        unseen = words == 0xFFFFFFFF
        wanted = (kinds != NO_KIND) | unseen
        starts, kinds = starts[wanted], kinds[wanted]
        lengths = pages.words[starts >> 2].astype(np.int64)
        ends = starts + lengths
        inside = (ends <= (starts & ~(PAGE_SIZE - 1)) + PAGE_SIZE) & (ends <= pages.size)
        simple = inside & ((kinds == COMMIT) | (kinds == ABORT)) & (lengths >= _SIMPLE_DATA + 8)
        at = starts[simple]
        tags = pages.bytes[at + RECORD_HEADER_SIZE].astype(np.int64)
        info = pages.bytes[at + _KIND] & 0x70
        plain = (tags == 255) & ((info == 0x00) | (info == 0x20))
        simple[np.flatnonzero(simple)[~plain]] = False
        if self._every:
            simple |= inside & (kinds == OTHER)
        self._take_plain(pages, starts[simple], kinds[simple], lengths[simple], found)
        for offset in starts[~simple].tolist():
            self._take_one(pages, offset, found, is_last=offset == last)

    def _take_one(self, pages: WalPages, offset: int, found: _Found, *, is_last: bool) -> None:
        lsn = self._start + offset
        try:
            part = pages.record(offset)
        except BrokenRecord:
            return
        if not part.missing:
            self._decode(part.data, lsn, self._start + part.end, found)
        elif is_last and self._is_of_interest(part.data):
            if offset >= _complete(pages):
                self._unfinished = lsn
                return
            here = PAGE_SIZE - offset % PAGE_SIZE + _payload(pages, offset // PAGE_SIZE + 1)
            data = bytearray(part.data[:here])
            self._open = _OpenRecord(lsn, data, len(part.data) + part.missing - len(data))

    def _is_of_interest(self, data: bytes | bytearray) -> bool:
        """Whether a record that begins so can be an event; one whose header has not come can."""
        if len(data) < _KIND + 4:
            return True
        return bool(self._kinds[data[_KIND] | data[_KIND + 1] << 8] != NO_KIND)

    def _take_plain(
        self, pages: WalPages, offsets: Offsets, kinds: npt.NDArray[np.uint8], lengths: Offsets, found: _Found
    ) -> None:
        """Records on one page each, whose time stands in its usual place: all at once."""
        order = np.argsort(lengths, kind="stable")
        offsets, kinds, lengths = offsets[order], kinds[order], lengths[order]
        steps = np.flatnonzero(np.diff(lengths)) + 1
        right = np.concatenate(
            [pages.crcs_match(same, int(pages.words[same[0] >> 2])) for same in np.split(offsets, steps) if len(same)]
            or [np.empty(0, np.bool_)]
        )
        offsets, kinds, lengths = offsets[right], kinds[right], lengths[right]
        if not len(offsets):
            return
        times = np.full(len(offsets), NO_TIME, np.int64)
        timed = kinds != OTHER
        places = (offsets[timed] + _SIMPLE_DATA)[:, np.newaxis] + np.arange(8)
        raw = np.ascontiguousarray(pages.bytes[places]).view("<i8").reshape(-1)
        times[timed] = np.clip(raw, EARLIEST - POSTGRES_EPOCH, LATEST - POSTGRES_EPOCH) + POSTGRES_EPOCH
        ends = (offsets + lengths + 7) & ~7
        found.tables.append(
            EventTable(
                kinds,
                self._start + offsets,
                self._start + ends,
                times,
                pages.words[(offsets + _XID) >> 2].astype(np.uint32),
            )
        )

    def _decode(self, record: bytes, lsn: int, end: int, found: _Found) -> None:
        """A whole record, if its CRC is right; ``end`` is the LSN behind its last byte."""
        if len(record) < RECORD_HEADER_SIZE or not crc_matches(record):
            return
        kind = int(self._kinds[record[_KIND] | record[_KIND + 1] << 8])
        if kind == NO_KIND:
            return
        try:
            time, xid, name = decode_record(record, self._magic)
        except ValueError:
            # the WAL of a server that is not known here
            time, xid, name = None, 0, None
        end = align(end)
        if kind == SWITCH:
            end = -(-end // self._segment_size) * self._segment_size
        found.add(kind, lsn, end, time, xid, name)

    def _keep(self, pages: WalPages, last: int | None) -> None:
        """Hold the page that is not complete for the next feed, and where to go on in it."""
        whole = _complete(pages)
        self._carry = bytes(pages.data[whole:])
        if last is not None and last >= whole:
            end = last + pages.length(last)
            self._resume = self._start + (align(end) if end <= pages.size else last)
        self._start += whole
        self._headless &= not whole
        self._is_cut &= not whole
        self._resume = max(self._resume, self._start)


def _complete(pages: WalPages) -> int:
    """How many bytes are in complete pages."""
    return pages.size // PAGE_SIZE * PAGE_SIZE


def _payload(pages: WalPages, page: int) -> int:
    """How many bytes of records are in complete pages from ``page`` on."""
    begins = range(page * PAGE_SIZE, _complete(pages), PAGE_SIZE)
    return sum(PAGE_SIZE - pages.header_size(begin) for begin in begins)


def _find_head(pages: WalPages, offset: int) -> tuple[int, int | None, bool]:
    """Look for the first record in a first page without a header, from ``offset`` on.

    Returns where the search stands, what it found, and whether it is over; where not, more bytes are needed.
    """
    while offset < PAGE_SIZE:
        if offset + 4 > pages.size:
            return offset, None, False
        try:
            part = pages.record(offset)
        except BrokenRecord:
            offset += 8
            continue
        if _is_plausible(part.data, pages.start + offset):
            if not part.missing:
                if crc_matches(part.data):
                    return offset, offset, True
            elif part.end >= PAGE_SIZE and pages.has_header(PAGE_SIZE):
                # the next page says that it goes on with a record of this length
                return offset, offset, True
            else:
                return offset, None, False
        offset += 8
    return offset, None, True


def _is_plausible(record: bytes, lsn: int) -> bool:
    if len(record) < _KIND + 4:
        return True
    previous = int.from_bytes(record[_PREVIOUS : _PREVIOUS + 8], "little")
    return previous < lsn and previous % 8 == 0 and record[_KIND + 2 : _KIND + 4] == b"\0\0"


@cache
def _kind_table(every: bool) -> npt.NDArray[np.uint8]:
    """The kind for each (resource manager << 8 | info)."""
    table = np.full(1 << 16, OTHER if every else NO_KIND, np.uint8)
    for resource_manager in (RM_XLOG, RM_XACT):
        for info in range(256):
            kind = kind_of(resource_manager, info)
            if kind != NO_KIND:
                table[resource_manager << 8 | info] = kind
    return table
