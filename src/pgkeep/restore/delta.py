"""Writing a backup over what is there: only pages that differ are fetched and written.

What lies at a cell's place is read, and the sums of its pages (`pgkeep.repository.block_sums`) are held against those that the
repository keeps of each content. Contents of which it has none are fetched and held against the disk page by page. Sizes and times
of files prove nothing and are not looked at.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pgkeep.direct_io import write_at
from pgkeep.progress import Progress
from pgkeep.repository.maps import FileEntry
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.page_map import bounds
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore.cells import Cell, Plain, Window
from pgkeep.restore.delta_sums import WantedSums, wanted_size
from pgkeep.restore.delta_sweep import remove_entry, size_of
from pgkeep.restore.pace import Buffer, Latch, Pace
from pgkeep.restore.source import ContentSource
from pgkeep.restore.write import HELD, Begun, FileWriter, target_errors

__all__ = ["DeltaCounts", "DeltaWriter", "differing"]

_libc = ctypes.CDLL(None, use_errno=True)

_TOGETHER = 4
"""Cells that one thread compares in one go."""

_WINDOW_CELLS = 256
"""Cells that are compared before what they lack is fetched."""

_PIECE = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE (fallocate(2))."""


@dataclass
class DeltaCounts:
    """What a delta restore did, in bytes of the cluster's files; ``fetched`` in stored bytes, as they came from the repository.

    ``compared`` were read from the target, ``kept`` are as they were, ``written`` were not. ``removed`` are those of files, and of
    ends of files, that do not belong to the backup.
    """

    compared: int = 0
    kept: int = 0
    fetched: int = 0
    written: int = 0
    removed: int = 0
    removed_files: int = 0


@dataclass
class _Compared:
    """Cells that are looked for on the disk: ``missing`` has those that lack something, and what, once ``latch`` lets pass."""

    latch: Latch
    missing: list[list[Cell]]


class DeltaWriter(FileWriter):
    """A FileWriter for directories with something in them."""

    window_cells = _WINDOW_CELLS
    _hands_on = False

    def __init__(
        self,
        tree: BackupTree,
        source: ContentSource,
        locate: Callable[[bytes], bytes],
        *,
        jobs: int | None,
        owner: tuple[int, int] | None,
        progress: Progress,
        pace: Pace,
    ) -> None:
        super().__init__(tree, source, locate, jobs=jobs, owner=owner, progress=progress, pace=pace)
        self.counts = DeltaCounts()
        self._lock = threading.Lock()
        self._compared: _Compared | None = None
        self._there = Buffer()

    def remove(self, place: bytes, *, counted: bool = True) -> None:
        """Remove what does not belong: a file, a link, or a directory with all that is in it."""
        with target_errors(place):
            files, size = size_of(place)
            remove_entry(place)
        if counted:
            self._count(removed=size, removed_files=files)

    def add(self, file: BackupFile) -> None:
        """See `FileWriter.add`; the file may be there."""
        place = self._locate(file.path)
        entry = file.entry
        with target_errors(place):
            fresh = not self._adopt(place, entry)
            if entry.inline is not None:
                self._write_inline(place, entry.inline, fresh=fresh)
                self._progress.advance(entry.size)
                return
        gaps = []
        end = 0
        for cell in self._cells_of(file, place, is_new=fresh):
            if cell.position > end:
                gaps.append((end, cell.position))
            end = cell.position + cell.size
            self._take(cell)
        if end < entry.size:
            gaps.append((end, entry.size))
        if gaps and not fresh:
            self._workers.submit(self._clear_gaps, place, gaps)
        self._progress.advance(sum(end - start for start, end in gaps))

    # What is there

    def _adopt(self, place: bytes, entry: FileEntry) -> bool:
        """Give the file its size, mode and owner; False where it had to be made anew."""
        mode = entry.mode & 0o7777
        try:
            status = os.lstat(place)
        except FileNotFoundError:
            self._create(place, mode, entry.size, b"")
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            # what is written into a file with another name is written there too: copies are made of links (cp -l, pg_upgrade --link)
            self.remove(place)
            self._create(place, mode, entry.size, b"")
            return False
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(place, mode)
        if self._owner is not None and (status.st_uid, status.st_gid) != self._owner:
            os.chown(place, *self._owner, follow_symlinks=False)
        if status.st_size != entry.size:
            os.truncate(place, entry.size)
            self._count(removed=max(status.st_size - entry.size, 0))
        return True

    def _write_inline(self, place: bytes, data: bytes, *, fresh: bool) -> None:
        if not fresh:
            with open(place, "rb", buffering=0) as file:
                is_there = file.read(len(data) + 1) == data
            self._count(compared=len(data), kept=len(data) if is_there else 0)
            if is_there:
                return
        write_at(place, memoryview(data), 0)
        self._count(written=len(data))

    def _clear_gaps(self, place: bytes, gaps: list[tuple[int, int]]) -> None:
        """Make zeros of what no extent covers; holes are zeros already (lseek(2), SEEK_DATA)."""
        self._pace.enter()
        with target_errors(place), open(place, "r+b", buffering=0) as file:
            descriptor = file.fileno()
            for start, end in gaps:
                cleared = 0
                for position, size in _data_in(descriptor, start, end):
                    there = self._read(descriptor, position, size)
                    self._count(compared=size)
                    self._pace.spend(size)
                    if np.frombuffer(there, np.uint8).any():
                        _clear(descriptor, position, size)
                        cleared += size
                self._count(kept=end - start - cleared, written=cleared)

    # Comparing

    def _send_window(self) -> None:
        """Have the cells compared; meanwhile what those before lack is fetched."""
        cells = self._taken()
        compared = self._begin_comparing(cells) if cells else None
        self._fetch_missing()
        self._compared = compared

    def finish(self) -> None:
        """See `FileWriter.finish`."""
        self._send_window()
        self._fetch_missing()
        super().finish()

    def _begin_comparing(self, cells: list[Cell]) -> _Compared:
        wanted = WantedSums(cells, self._source, self._read_sums, self._page_size)
        batches = [range(first, min(first + _TOGETHER, len(cells))) for first in range(0, len(cells), _TOGETHER)]
        compared = _Compared(Latch(len(batches)), [[] for _ in batches])
        for batch, missing in zip(batches, compared.missing, strict=True):
            self._workers.submit(self._compare, compared, wanted, batch, missing)
        return compared

    def _read_sums(self, packs: list[str]) -> None:
        latch = Latch(len(packs))
        for pack in packs:
            self._workers.submit(self._read_sums_of, pack, latch)
        latch.wait()
        self._workers.raise_failure()

    def _read_sums_of(self, pack: str, latch: Latch) -> None:
        try:
            self._source.read_sums(pack)
        finally:
            latch.done()

    def _compare(self, compared: _Compared, wanted: WantedSums, numbers: range, missing: list[Cell]) -> None:
        try:
            self._pace.enter()
            for number in numbers:
                cell = wanted.cells[number]
                lacking = cell if cell.is_new else self._lacking(wanted, number)
                if lacking is not None:
                    missing.append(lacking)
        finally:
            compared.latch.done()

    def _lacking(self, wanted: WantedSums, number: int) -> Cell | None:
        """What a cell lacks on the disk."""
        cell = wanted.cells[number]
        with target_errors(cell.place), open(cell.place, "rb", buffering=0) as file:
            there = self._read(file.fileno(), cell.position, cell.size)
        self._pace.spend(len(there))
        lacking = wanted.lacking(number, self._source.block_sums.of(there))
        kept = cell.size - (0 if lacking is None else wanted_size(lacking, self._page_size))
        self._count(compared=len(there), kept=kept)
        self._progress.advance(kept)
        return lacking

    def _fetch_missing(self) -> None:
        """Begin with what the compared cells lack, once they are compared."""
        compared, self._compared = self._compared, None
        if compared is None:
            return
        compared.latch.wait()
        self._workers.raise_failure()
        missing = list(chain.from_iterable(compared.missing))
        if missing:
            self._begin(Window(missing, self._page_size, room=HELD // 4))

    # Fetching

    def _read_contents(
        self, room: Callable[[int], memoryview], begun: Begun, pack: str, entries: list[PackEntry]
    ) -> Iterator[tuple[PackEntry, Plain]]:
        for entry, plain in self._source.read(room, pack, entries, begun.shown, begun.window.is_wanted):
            self._count(fetched=entry.stored_size)
            yield entry, plain

    def _write_together(self, window: Window, number: int, plain: Plain | None) -> None:
        cell = window.cells[number]
        if cell.is_partial:
            self._write_pages(cell, self._put_together(window, number, plain))
        else:
            super()._write_together(window, number, plain)

    def _write_pages(self, cell: Cell, data: memoryview) -> None:
        """Write the wanted pages of a cell."""
        first, end = bounds(cell.extents)
        starts = np.flatnonzero(np.append(True, first[1:] != end[:-1]))
        ends = end[np.append(starts[1:], len(end)) - 1]
        with target_errors(cell.place):
            for start, stop in zip(
                (first[starts] * self._page_size).tolist(), (ends * self._page_size).tolist(), strict=True
            ):
                write_at(cell.place, data[start - cell.position : stop - cell.position], start)
        size = wanted_size(cell, self._page_size)
        self._count(written=size)
        self._pace.spend(size)
        self._progress.advance(size)

    def _write_cell(self, cell: Cell, data: memoryview) -> None:
        if cell.is_new:
            super()._write_cell(cell, data)
            self._count(written=cell.size)
            return
        with target_errors(cell.place), open(cell.place, "rb", buffering=0) as file:
            there = self._read(file.fileno(), cell.position, cell.size)
        self._write_differing(cell, there, data)

    def _write_differing(self, cell: Cell, there: memoryview, wanted: memoryview) -> None:
        """Write the pages of a cell that differ."""
        runs = differing(there, wanted, self._page_size) if len(there) == cell.size else [(0, cell.size)]
        with target_errors(cell.place):
            for first, end in runs:
                write_at(cell.place, wanted[first:end], cell.position + first)
        written = sum(end - first for first, end in runs)
        self._count(written=written, kept=cell.size - written)
        self._pace.spend(cell.size)
        self._progress.advance(cell.size)

    def _read(self, descriptor: int, position: int, size: int) -> memoryview:
        """Bytes of a file, fewer where it ends; good until this thread reads again."""
        there = self._there.view(size)
        return there[: _read_into(descriptor, position, there)]

    def _count(self, **sizes: int) -> None:
        with self._lock:
            for name, size in sizes.items():
                setattr(self.counts, name, getattr(self.counts, name) + size)


def differing(there: memoryview, wanted: memoryview, page_size: int) -> list[tuple[int, int]]:
    """Where two texts of one size differ, in whole pages: first byte and end of each run; one run for all where that is much of it."""
    size = len(wanted)
    whole = size // page_size * page_size
    words = page_size // 8
    pages = (
        np.frombuffer(there[:whole], np.uint64).reshape(-1, words)
        != np.frombuffer(wanted[:whole], np.uint64).reshape(-1, words)
    ).any(axis=1)
    if whole < size:
        pages = np.append(pages, there[whole:] != wanted[whole:])
    if 2 * int(np.count_nonzero(pages)) > len(pages):
        return [(0, size)]
    edges = np.flatnonzero(np.diff(pages.astype(np.int8), prepend=0, append=0)).tolist()
    return [(first * page_size, min(end * page_size, size)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _read_into(descriptor: int, position: int, buffer: memoryview) -> int:
    """Fill a buffer; how many bytes there were."""
    done = 0
    while done < len(buffer):
        read = os.preadv(descriptor, [buffer[done:]], position + done)
        if read == 0:
            break
        done += read
    return done


def _data_in(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Position and size of what is no hole between two places of a file, in pieces."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        hole = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        while start < hole:
            size = min(_PIECE, hole - start)
            yield start, size
            start += size


def _clear(descriptor: int, position: int, size: int) -> None:
    """Make a hole, or zeros where the file system has no holes."""
    failed = _libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(position), ctypes.c_int64(size))
    if failed and (number := ctypes.get_errno()) != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    if failed:
        zeros = bytes(size)
        done = 0
        while done < size:
            done += os.pwrite(descriptor, zeros[done:], position + done)
