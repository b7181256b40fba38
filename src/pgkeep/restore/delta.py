"""Writing a backup over what is there: contents that are on the disk already are told by their ids and stay.

A content's id is a keyed hash of its bytes. Where all of them are on the disk, they are read and hashed, and nothing is fetched: a cell
is looked for at its own place in the file, also where a part of it is superseded, and the pages of a bundle in the files that they
belong to. What cannot be proven so is fetched, held against the disk page by page, and only pages that differ are written. Sizes and
times of files prove nothing and are not looked at.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pgkeep.direct_io import write_at
from pgkeep.progress import Progress
from pgkeep.repository.contents import Location
from pgkeep.repository.maps import FileEntry
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore.cells import Cell, Window
from pgkeep.restore.delta_sweep import remove_entry, size_of
from pgkeep.restore.pace import Buffer, Latch, Pace
from pgkeep.restore.source import ContentSource
from pgkeep.restore.write import HELD, Begun, FileWriter, target_errors

__all__ = ["DeltaCounts", "DeltaWriter", "differing"]

_libc = ctypes.CDLL(None, use_errno=True)

_BATCH = 4 << 20
"""Bytes of contents that one thread compares in one go."""

_WINDOW_CELLS = 256
"""Cells that are compared before what they lack is fetched."""

_FIRST_TRIES, _TRY_AGAIN, _LEAST_HITS = 64, 16, 4
"""A cell of which a part is superseded can be proven only on a copy that is older than that. After so many tries only every so many-th
is tried, until one of so many succeeds."""

_OPEN_FILES = 64
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
    """A window whose extents are looked for on the disk: ``is_there`` says of each, once ``latch`` lets pass, whether it is proven."""

    window: Window
    is_there: npt.NDArray[np.bool_]
    locations: dict[bytes, Location]
    latch: Latch
    by_content: list[npt.NDArray[np.int64]]
    """For each content its extents, by number."""


@dataclass
class _OpenFiles:
    """Files that are being compared, the latest few of them open; for one thread, as a context manager."""

    descriptors: OrderedDict[bytes, int] = field(default_factory=OrderedDict)

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)

    def open(self, place: bytes) -> int:
        descriptor = self.descriptors.get(place)
        if descriptor is None:
            if len(self.descriptors) >= _OPEN_FILES:
                os.close(self.descriptors.popitem(last=False)[1])
            descriptor = self.descriptors[place] = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return descriptor

    def announce(self, cell: Cell) -> None:
        """Let the kernel read what will be asked for."""
        with target_errors(cell.place):
            os.posix_fadvise(self.open(cell.place), cell.position, cell.size, os.POSIX_FADV_WILLNEED)


class DeltaWriter(FileWriter):
    """A FileWriter for directories with something in them."""

    window_cells = _WINDOW_CELLS

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
        self._tries = self._hits = 0

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
        """Have the cells compared; meanwhile what those before lack is fetched.

        Not at once for each content: what is written at one place would change a cell that is to be hashed at its own.
        """
        cells = self._taken()
        compared = None
        if cells:
            compared = self._begin_comparing(Window(cells, self._page_size, room=0))
        self._fetch_missing()
        self._compared = compared

    def finish(self) -> None:
        """See `FileWriter.finish`."""
        self._send_window()
        self._fetch_missing()
        super().finish()

    def _begin_comparing(self, window: Window) -> _Compared:
        order = np.argsort(window.content, kind="stable")
        by_content = np.split(order, np.flatnonzero(np.diff(window.content[order])) + 1)
        locations = self._source.locate(window.shown_paths())
        entries = [locations[content].entry for content in window.contents]
        batches = list(_batches(entries))
        compared = _Compared(window, np.zeros(len(order), np.bool_), locations, Latch(len(batches)), by_content)
        for batch in batches:
            self._workers.submit(self._compare, compared, batch)
        return compared

    def _fetch_missing(self) -> None:
        """Begin with what the compared window lacks, once it is compared."""
        compared, self._compared = self._compared, None
        if compared is None:
            return
        compared.latch.wait()
        self._workers.raise_failure()
        window = compared.window
        if compared.is_there.any():
            kept = self._bytes_of(window, np.flatnonzero(compared.is_there))
            self._count(kept=kept)
            self._progress.advance(kept)
        if not compared.is_there.all():
            self._begin(Window(window.cells, self._page_size, room=HELD // 4, wanted=~compared.is_there))

    def _bytes_of(self, window: Window, parts: npt.NDArray[np.int64]) -> int:
        """The bytes of extents; the last page of a file may be cut off."""
        size = int(window.parts["pages"][parts].sum()) * self._page_size
        for part in parts[window.is_last[parts]].tolist():
            cell = window.cells[int(window.number[part])]
            size -= -cell.size % self._page_size
        return size

    def _compare(self, compared: _Compared, contents: list[PackEntry]) -> None:
        window = compared.window
        try:
            self._pace.enter()
            with _OpenFiles() as files:
                chosen = [compared.by_content[window.number_of[entry.id]] for entry in contents]
                for number in np.unique(window.number[np.concatenate(chosen)]).tolist():
                    if not window.cells[number].is_new:
                        files.announce(window.cells[number])
                for entry, parts in zip(contents, chosen, strict=True):
                    self._prove(files, compared, entry, parts)
        finally:
            compared.latch.done()

    def _prove(self, files: _OpenFiles, compared: _Compared, entry: PackEntry, parts: npt.NDArray[np.int64]) -> None:
        """Find out which extents of a content the disk has."""
        window = compared.window
        parts = parts[[not window.cells[cell].is_new for cell in window.number[parts].tolist()]]
        origins: dict[tuple[bytes, int], list[int]] = {}
        for part in parts.tolist():
            extent = window.parts[part]
            origin = (int(extent["first_page"]) - int(extent["content_page"])) * self._page_size
            origins.setdefault((window.cells[int(window.number[part])].place, origin), []).append(part)
        unproven: list[int] = []
        for (place, origin), group in origins.items():
            live = int(window.parts["pages"][group].sum()) * self._page_size
            # bundles have an origin in each of their runs; only a cell has most of itself at one
            is_likely = origin >= 0 and 2 * live >= entry.plain_size and self._is_worth_it(live >= entry.plain_size)
            if is_likely and self._is_at(files, entry, place, origin, is_live=live >= entry.plain_size):
                compared.is_there[group] = True
            else:
                unproven += group
        if len(unproven) > 1 and self._is_gathered(files, window, entry, np.array(unproven)):
            compared.is_there[unproven] = True

    def _is_worth_it(self, is_live: bool) -> bool:
        """Whether to look for a content on the disk; one of which nothing is superseded is always looked for."""
        if is_live:
            return True
        with self._lock:
            self._tries += 1
            return (
                self._tries <= _FIRST_TRIES or self._tries % _TRY_AGAIN == 0 or self._hits * _LEAST_HITS >= self._tries
            )

    def _is_at(self, files: _OpenFiles, entry: PackEntry, place: bytes, position: int, *, is_live: bool) -> bool:
        """Whether a content is in a file, whole and in one piece, from this byte on."""
        with target_errors(place):
            there = self._read(files.open(place), position, entry.plain_size)
        found = self._proves(there, entry)
        if found and not is_live:
            with self._lock:
                self._hits += 1
        return found

    def _is_gathered(self, files: _OpenFiles, window: Window, entry: PackEntry, parts: npt.NDArray[np.int64]) -> bool:
        """Whether the extents make up a content, each page of it once, and it is what the disk has there."""
        parts = parts[np.argsort(window.parts["content_page"][parts], kind="stable")]
        starts = window.parts["content_page"][parts].astype(np.int64)
        ends = starts + window.parts["pages"][parts]
        if starts[0] or (starts[1:] != ends[:-1]).any() or int(ends[-1]) * self._page_size != entry.plain_size:
            return False
        gathered = self._buffer.view(entry.plain_size)
        for part, start, end in zip(parts.tolist(), starts.tolist(), ends.tolist(), strict=True):
            place = window.cells[int(window.number[part])].place
            row = gathered[start * self._page_size : end * self._page_size]
            with target_errors(place):
                position = int(window.parts["first_page"][part]) * self._page_size
                if _read_into(files.open(place), position, row) != len(row):
                    return False
        return self._proves(gathered, entry)

    def _proves(self, there: memoryview, entry: PackEntry) -> bool:
        self._count(compared=len(there))
        self._pace.spend(len(there))
        return len(there) == entry.plain_size and self._source.content_id(there) == entry.id

    # Fetching

    def _read_contents(self, begun: Begun, pack: str, entries: list[PackEntry]) -> Iterator[tuple[PackEntry, bytes]]:
        for entry, plain in super()._read_contents(begun, pack, entries):
            self._count(fetched=entry.stored_size)
            yield entry, plain

    def _write_together(self, window: Window, number: int, plain: bytes | None) -> None:
        cell = window.cells[number]
        if cell.is_new and window.is_whole:
            super()._write_together(window, number, plain)
            self._count(written=cell.size)
            return
        pages = -(-cell.size // self._page_size)
        with target_errors(cell.place), open(cell.place, "rb", buffering=0) as file:
            there = self._read(file.fileno(), cell.position, cell.size)
        wanted = self._buffer.view(pages * self._page_size)
        wanted[: len(there)] = there
        filled = window.fill(number, np.frombuffer(wanted, np.uint8).reshape(pages, -1), plain)
        self._write_differing(cell, there, wanted[: cell.size], min(filled * self._page_size, cell.size))

    def _write_cell(self, cell: Cell, data: memoryview) -> None:
        if cell.is_new:
            super()._write_cell(cell, data)
            self._count(written=cell.size)
            return
        with target_errors(cell.place), open(cell.place, "rb", buffering=0) as file:
            there = self._read(file.fileno(), cell.position, cell.size)
        self._write_differing(cell, there, data, cell.size)

    def _write_differing(self, cell: Cell, there: memoryview, wanted: memoryview, size: int) -> None:
        """Write the pages of a cell that differ; ``size`` bytes of it are wanted, the others are as they are."""
        runs = differing(there, wanted, self._page_size) if len(there) == cell.size else [(0, cell.size)]
        with target_errors(cell.place):
            for first, end in runs:
                write_at(cell.place, wanted[first:end], cell.position + first)
        written = min(sum(end - first for first, end in runs), size)
        self._count(written=written, kept=size - written)
        self._pace.spend(size)
        self._progress.advance(size)

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


def _batches(entries: Iterable[PackEntry]) -> Iterator[list[PackEntry]]:
    batch: list[PackEntry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += entry.plain_size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
