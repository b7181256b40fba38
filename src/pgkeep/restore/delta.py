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
from itertools import zip_longest

import numpy as np

from pgkeep.direct_io import write_at
from pgkeep.progress import Progress
from pgkeep.repository.contents import Location, spans
from pgkeep.repository.maps import FileEntry
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore.delta_sweep import remove_entry, size_of
from pgkeep.restore.pace import Latch, Pace
from pgkeep.restore.runs import Piece
from pgkeep.restore.source import ContentSource
from pgkeep.restore.write import FileWriter, part_of, target_errors

__all__ = ["DeltaCounts", "DeltaWriter", "differing"]

_libc = ctypes.CDLL(None, use_errno=True)

_BATCH = 4 << 20
"""Bytes of contents that one thread compares in one go."""

_WINDOW_PIECES = 256
"""Pieces that are compared before what they lack is fetched."""

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
    """Pieces by content, and those that the disk does not have, once ``latch`` lets pass."""

    wanted: dict[bytes, list[Piece]]
    locations: dict[bytes, Location]
    latch: Latch
    missing: dict[bytes, list[Piece]] = field(default_factory=dict)


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

    def announce(self, piece: Piece) -> None:
        """Let the kernel read what will be asked for."""
        if not piece.is_new:
            with target_errors(piece.place):
                os.posix_fadvise(self.open(piece.place), piece.position, piece.size, os.POSIX_FADV_WILLNEED)


class DeltaWriter(FileWriter):
    """A FileWriter for directories with something in them."""

    window_size = _WINDOW_PIECES

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
        for piece in self._pieces_of(file, place, is_new=fresh):
            if piece.position > end:
                gaps.append((end, piece.position))
            end = piece.position + piece.size
            self._take(piece)
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
        """Have the window's contents compared; meanwhile what the one before lacks is fetched.

        Not at once for each content: what is written at one place would change a cell that is to be hashed at its own.
        """
        pieces, self._pieces = self._pieces, []
        wanted: dict[bytes, list[Piece]] = {}
        for piece in pieces:
            wanted.setdefault(piece.content, []).append(piece)
        locations = self._source.locate(pieces)
        batches = list(_batches([locations[content].entry for content in wanted]))
        window = _Compared(wanted, locations, Latch(len(batches)))
        # in turns: one waits for the disk, the other for the processor
        for batch, fetch in zip_longest(batches, self._missing_spans()):
            if batch is not None:
                self._workers.submit(self._compare, window, batch)
            if fetch is not None:
                self._workers.submit(self._write_missing, *fetch)
        self._compared = window

    def _compare(self, window: _Compared, contents: list[PackEntry]) -> None:
        try:
            self._pace.enter()
            with _OpenFiles() as files:
                for entry in contents:
                    for piece in window.wanted[entry.id]:
                        files.announce(piece)
                for entry in contents:
                    missing = self._not_there(files, entry, window.wanted[entry.id])
                    if missing:
                        window.missing[entry.id] = missing
        finally:
            window.latch.done()

    def _not_there(self, files: _OpenFiles, entry: PackEntry, pieces: list[Piece]) -> list[Piece]:
        """The pieces of a content that the disk does not prove to have."""
        missing = [piece for piece in pieces if piece.is_new]
        by_origin: dict[tuple[bytes, int], list[Piece]] = {}
        for piece in pieces:
            if not piece.is_new:
                by_origin.setdefault((piece.place, piece.position - piece.start), []).append(piece)
        unproven: list[Piece] = []
        for (place, origin), group in by_origin.items():
            live = sum(piece.size for piece in group)
            # bundles have an origin in each of their runs; only a cell has most of itself at one
            if origin >= 0 and 2 * live >= entry.plain_size and self._is_at(files, entry, place, origin):
                self._keep(group)
            else:
                unproven += group
        if len(unproven) > 1 and self._is_gathered(files, entry, unproven):
            self._keep(unproven)
            unproven = []
        return missing + unproven

    def _is_at(self, files: _OpenFiles, entry: PackEntry, place: bytes, position: int) -> bool:
        """Whether a content is in a file, whole and in one piece, from this byte on."""
        with target_errors(place):
            there = self._read(files.open(place), position, entry.plain_size)
        return self._proves(there, entry)

    def _is_gathered(self, files: _OpenFiles, entry: PackEntry, pieces: list[Piece]) -> bool:
        """Whether the pieces make up a content, each byte of it once, and it is what the disk has there."""
        pieces = sorted(pieces, key=lambda piece: piece.start)
        end = 0
        for piece in pieces:
            if piece.start != end:
                return False
            end += piece.size
        if end != entry.plain_size:
            return False
        gathered = self._buffer.view(end)
        for piece in pieces:
            part = gathered[piece.start : piece.start + piece.size]
            with target_errors(piece.place):
                if _read_into(files.open(piece.place), piece.position, part) != piece.size:
                    return False
        return self._proves(gathered, entry)

    def _proves(self, there: memoryview, entry: PackEntry) -> bool:
        self._count(compared=len(there))
        self._pace.spend(len(there))
        return len(there) == entry.plain_size and self._source.content_id(there) == entry.id

    def _keep(self, pieces: list[Piece]) -> None:
        size = sum(piece.size for piece in pieces)
        self._count(kept=size)
        self._progress.advance(size)

    # Fetching

    def _end_window(self) -> None:
        for fetch in self._missing_spans():
            self._workers.submit(self._write_missing, *fetch)
        self._compared = None

    def _missing_spans(self) -> Iterator[tuple[_Compared, str, list[PackEntry]]]:
        """What the compared window lacks, once it is compared."""
        window = self._compared
        if window is None:
            return
        window.latch.wait()
        self._workers.raise_failure()
        for pack, entries in spans([window.locations[content] for content in window.missing]):
            yield window, pack, entries

    def _write_missing(self, window: _Compared, pack: str, entries: list[PackEntry]) -> None:
        self._pace.enter()
        shown = {entry.id: window.missing[entry.id][0].shown_path for entry in entries}
        with _OpenFiles() as files:
            for entry, plain in self._source.read(pack, entries, shown):
                self._count(fetched=entry.stored_size)
                for piece in window.missing[entry.id]:
                    self._write_piece(files, piece, part_of(memoryview(plain), piece))

    def _write_piece(self, files: _OpenFiles, piece: Piece, data: memoryview) -> None:
        runs = [(0, piece.size)]
        with target_errors(piece.place):
            if not piece.is_new:
                there = self._read(files.open(piece.place), piece.position, piece.size)
                if len(there) == piece.size:
                    runs = differing(there, data, self._page_size)
            for first, end in runs:
                write_at(piece.place, data[first:end], piece.position + first)
        written = sum(end - first for first, end in runs)
        self._count(written=written, kept=piece.size - written)
        self._pace.spend(piece.size)
        self._progress.advance(piece.size)

    def _read(self, descriptor: int, position: int, size: int) -> memoryview:
        """Bytes of a file, fewer where it ends; good until this thread reads again."""
        there = self._buffer.view(size)
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
