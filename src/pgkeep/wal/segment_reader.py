"""The events of segments, read from what a repository holds of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgkeep.errors import DamageError, NotFoundError
from pgkeep.postgres.wal import segment_name
from pgkeep.postgres.wal_events import EventTable
from pgkeep.postgres.wal_records import WalRecordParser
from pgkeep.repository.store import Buffer
from pgkeep.repository.wal_objects import WalArchive, piece_name
from pgkeep.wal.inventory import TimelineWal, WalInventory

__all__ = ["BATCH", "SegmentReader", "in_batches"]

BATCH = 16 << 20
"""Bytes that are parsed at once: numpy's steps are as long for few pages as for many."""

_SMALL_BATCH = 1 << 20
"""Bytes of the next segment that are parsed at once for the end of a segment's last record."""


def in_batches(chunks: Iterable[Buffer], size: int = BATCH) -> Iterator[bytes]:
    """The same bytes in as few parts as have ``size`` bytes each, but for the last."""
    waiting: list[Buffer] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(map(len, waiting)) >= size:
            yield b"".join(waiting)
            waiting = []
    if waiting:
        yield b"".join(waiting)


class SegmentReader:
    """Reads segments as the inventory knows them; safe for threads."""

    def __init__(self, archive: WalArchive, inventory: WalInventory) -> None:
        self._archive = archive
        self._inventory = inventory

    def read(self, timeline: int, start: int) -> tuple[EventTable, bool]:
        """The events whose records start in a segment, and whether these are all.

        They are not where the segment is not whole, or where its last record goes on in a segment that is not there.
        Raises NotFoundError, ObjectMissing, DamageError, StoreError.
        """
        parser = WalRecordParser(self._inventory.segment_size)
        table = EventTable.joined(self._scan(parser, timeline, start, start))
        wal = self._inventory.timelines[timeline]
        return table, start in wal.whole and not self._is_open(parser, start)

    def records(self, timeline: int, start: int, begin: int) -> Iterator[EventTable]:
        """All whole records that start in a segment, from the page that holds ``begin`` on, as they are read."""
        return self._scan(WalRecordParser(self._inventory.segment_size, every=True), timeline, start, begin)

    def _scan(self, parser: WalRecordParser, timeline: int, start: int, begin: int) -> Iterator[EventTable]:
        size = self._inventory.segment_size
        wal = self._inventory.timelines[timeline]
        if wal.end_in(start) == 0:
            raise NotFoundError(f"the repository has nothing of WAL segment {segment_name(timeline, start, size)}")
        begin = max(start, begin - begin % 8192)
        for lsn, data in self._bytes(wal, start, BATCH):
            if lsn + len(data) > begin:
                skipped = max(begin - lsn, 0)
                yield parser.scan(lsn + skipped, data[skipped:] if skipped else data).between(start, start + size)
        behind: TimelineWal | None = wal
        position = start
        # the last record may go on over any number of segments
        while behind is not None and behind.end_in(position) == size and self._is_open(parser, start):
            position += size
            behind = self._next(timeline, position)
            if behind is None:
                return
            for lsn, data in self._bytes(behind, position, _SMALL_BATCH):
                yield parser.scan(lsn, data).between(start, start + size)
                if not self._is_open(parser, start):
                    return

    def _is_open(self, parser: WalRecordParser, start: int) -> bool:
        return parser.open_lsn is not None and parser.open_lsn < start + self._inventory.segment_size

    def _next(self, timeline: int, start: int) -> TimelineWal | None:
        """Who has the segment at ``start`` as ``timeline`` wrote its beginning: itself, or one that branched off in it."""
        own = self._inventory.timelines[timeline]
        if own.end_in(start) > 0:
            return own
        for other in sorted(self._inventory.timelines):
            if other <= timeline or not self._inventory.has_history(other):
                continue
            path = self._inventory.history(other)
            if timeline not in path.timelines:
                continue
            end = path.end_of(timeline)
            if end is not None and end > start:
                source = self._inventory.source(path, start)
                if source is not None:
                    return source
        return None

    def _bytes(self, wal: TimelineWal, start: int, batch: int) -> Iterator[tuple[int, bytes]]:
        """A segment's WAL in batches, each with its LSN, without the zeros behind what is not whole."""
        position = start
        for data in in_batches(self._chunks(wal, start), batch):
            yield position, data
            position += len(data)

    def _chunks(self, wal: TimelineWal, start: int) -> Iterable[bytes]:
        name = segment_name(wal.timeline, start, wal.segment_size)
        if start in wal.whole:
            yield from self._archive.stream(name)
            return
        chain, left = wal.chain(start), wal.end_in(start)
        if chain and chain[-1][1] == left:
            reached = 0
            for first, end in chain:
                piece = self._archive.get(piece_name(name, first, end))
                if len(piece) != end - first:
                    raise DamageError(
                        f"{name} has a piece of {len(piece)} bytes instead of {end - first}",
                        object_name=self._archive.object_name(piece_name(name, first, end)),
                        path=name,
                    )
                yield piece[reached - first :]
                reached = end
            return
        for chunk in self._archive.stream(f"{name}.partial"):
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return
