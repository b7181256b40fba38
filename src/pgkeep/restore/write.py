"""Writing a backup's files: many threads, range reads that follow the packs, no file fsynced on its own."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from pgkeep.direct_io import write_at
from pgkeep.errors import TargetError
from pgkeep.progress import Progress
from pgkeep.repository.contents import Location, spans
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore.cells import Cell, FileCells, Plain, Window
from pgkeep.restore.pace import Buffer, Latch, Pace
from pgkeep.restore.source import ContentSource
from pgkeep.workers import Workers

__all__ = ["HELD", "Begun", "FileWriter", "sync_file_systems", "target_errors"]

_libc = ctypes.CDLL(None, use_errno=True)

_WINDOW = 1024
"""Cells that are looked up and sorted by place at once: 1 GiB of cells of 1 MiB, some 1 MB of Python objects."""

HELD = 32 << 20
"""Bytes of contents that a window holds whole, because they have pages of many cells; of those beyond it holds what its cells need, which is
half as much at most. Windows that are at work share what they need: after thirty incrementals of 1 % each, a window is some 60 cells,
and a bundle has pages of 100.
"""

_WINDOWS = 2
"""Windows that may be written while the next one's contents are fetched: with one, the last cell of each would be waited for."""

_TOGETHER = 16
"""Cells that one call puts together from held pages alone."""


class FileWriter:
    """Writes files below a directory; use as a context manager, then `add` files and `finish`.

    ``locate`` gives the place of a path of the backup; cells are ``cell_size`` bytes of a file. Files are created with their size and
    mode, sparse; their bytes come in any order. An error of a worker is raised by the next call.
    """

    window_cells = _WINDOW
    _hands_on = True
    """Whether a window uses contents that the one before has held: these have all their pages."""

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
        self._tree = tree
        self._source = source
        self._locate = locate
        self._owner = owner
        self._progress = progress
        self._pace = pace
        self._page_size = tree.manifest.page_size
        self._cells: list[Cell] = []
        self._shared_pages = 0
        self._file_cells = FileCells(source.cell_size, self._page_size)
        self._begun: Begun | None = None
        self._writing: deque[Latch] = deque()
        self._buffer = Buffer()
        self._plain = Buffer()
        # direct writes wait for the disk, so that twice as many threads as processors keep both busy
        self._workers = Workers(jobs or 2 * (os.cpu_count() or 1), "restore", waiting=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def make_directory(self, path: bytes, mode: int) -> None:
        """Create a directory that is not there yet, with this mode."""
        place = self._locate(path)
        with target_errors(place):
            os.makedirs(place, exist_ok=True)
            os.chmod(place, mode & 0o7777)
            if self._owner is not None:
                os.chown(place, *self._owner)

    def add(self, file: BackupFile) -> None:
        """Create a file and see to its bytes."""
        place = self._locate(file.path)
        entry = file.entry
        with target_errors(place):
            self._create(place, entry.mode & 0o7777, entry.size, entry.inline or b"")
        if entry.inline is not None:
            self._progress.advance(entry.size)
            return
        covered = 0
        for cell in self._cells_of(file, place, is_new=True):
            covered += cell.size
            self._take(cell)
        self._progress.advance(entry.size - covered)

    def write_stream(self, place: bytes, mode: int, size: int | None, chunks: Iterator[bytes]) -> None:
        """Write a file from a stream, in a worker; zeros fill it up to ``size``."""
        self._workers.submit(self._write_chunks, place, mode, size, chunks)

    def finish(self) -> None:
        """Wait until everything is written."""
        self._send_window()
        self._end_window()
        self._workers.drain()

    def _cells_of(self, file: BackupFile, place: bytes, *, is_new: bool) -> Iterator[Cell]:
        """The cells of a file, in order."""
        return self._file_cells.of(self._tree.page_map(file), place, file.shown_path, file.entry.size, is_new=is_new)

    def _take(self, cell: Cell) -> None:
        self._cells.append(cell)
        self._shared_pages += cell.shared_pages
        if len(self._cells) >= self.window_cells or self._shared_pages * self._page_size >= HELD // 2:
            self._send_window()

    def _send_window(self) -> None:
        """Have what the cells lack fetched; meanwhile the window before is written."""
        cells = self._taken()
        if cells:
            self._begin(Window(cells, self._page_size, room=HELD // 4))

    def _taken(self) -> list[Cell]:
        cells, self._cells, self._shared_pages = self._cells, [], 0
        return cells

    def _begin(self, window: Window) -> None:
        """Have what many cells need fetched; meanwhile the window before is written."""
        shown = window.shown_paths()
        locations = self._source.locate(shown)
        if len(self._writing) >= _WINDOWS:
            self._writing.popleft().wait()
            self._workers.raise_failure()
        sizes = [locations[content].entry.plain_size for content in window.contents]
        before = self._begun.window if self._begun is not None and self._hands_on else None
        missing = window.prepare(sizes, before, HELD)
        fetches = list(spans([locations[window.contents[content]] for content in missing]))
        begun = Begun(window, locations, shown, Latch(len(fetches)))
        for pack, entries in fetches:
            self._workers.submit(self._hold, begun, pack, entries)
        self._end_window()
        self._begun = begun

    def _end_window(self) -> None:
        begun, self._begun = self._begun, None
        if begun is None:
            return
        begun.held.wait()
        self._workers.raise_failure()
        window = begun.window
        rests = [window.rest[first : first + _TOGETHER] for first in range(0, len(window.rest), _TOGETHER)]
        fetches = list(spans([begun.locations[window.contents[content]] for content in window.by_own]))
        begun.written = Latch(len(rests) + len(fetches))
        self._writing.append(begun.written)
        for cells in rests:
            self._workers.submit(self._write_rest, begun, cells)
        for pack, entries in fetches:
            self._workers.submit(self._write_span, begun, pack, entries)

    def _hold(self, begun: Begun, pack: str, entries: list[PackEntry]) -> None:
        try:
            self._pace.enter()
            for entry, plain in self._read_contents(_new_room, begun, pack, entries):
                begun.window.hold(begun.window.number_of[entry.id], plain)
        finally:
            begun.held.done()

    def _write_rest(self, begun: Begun, cells: list[int]) -> None:
        try:
            self._pace.enter()
            for cell in cells:
                self._write_together(begun.window, cell, None)
        finally:
            begun.written.done()

    def _write_span(self, begun: Begun, pack: str, entries: list[PackEntry]) -> None:
        window = begun.window
        try:
            self._pace.enter()
            for entry, plain in self._read_contents(self._plain.view, begun, pack, entries):
                for cell in window.by_own[window.number_of[entry.id]]:
                    data = window.single(cell, plain)
                    if data is None:
                        self._write_together(window, cell, plain)
                    else:
                        self._write_cell(window.cells[cell], data)
        finally:
            begun.written.done()

    def _read_contents(
        self, room: Callable[[int], memoryview], begun: Begun, pack: str, entries: list[PackEntry]
    ) -> Iterator[tuple[PackEntry, Plain]]:
        return self._source.read(room, pack, entries, begun.shown)

    def _write_together(self, window: Window, number: int, plain: Plain | None) -> None:
        """Put a cell together and write it."""
        self._write_cell(window.cells[number], self._put_together(window, number, plain))

    def _put_together(self, window: Window, number: int, plain: Plain | None) -> memoryview:
        """The bytes of a cell; good until this thread puts the next one together."""
        cell = window.cells[number]
        pages = -(-cell.size // self._page_size)
        in_place = plain is not None and len(plain) == pages * self._page_size and window.lies_in_place(number)
        view = plain if plain is not None and in_place else self._buffer.view(pages * self._page_size)
        window.fill(number, np.frombuffer(view, np.uint8).reshape(pages, -1), plain, in_place=in_place)
        return view[: cell.size]

    def _write_cell(self, cell: Cell, data: memoryview) -> None:
        with target_errors(cell.place):
            write_at(cell.place, data, cell.position)
        self._pace.spend(cell.size)
        self._progress.advance(cell.size)

    def _write_chunks(self, place: bytes, mode: int, size: int | None, chunks: Iterator[bytes]) -> None:
        self._pace.enter()
        position = 0
        with target_errors(place):
            self._create(place, mode, size or 0, b"")
            for chunk in chunks:
                write_at(place, memoryview(chunk), position)
                position += len(chunk)
                self._pace.spend(len(chunk))
                self._progress.advance(len(chunk))

    def _create(self, place: bytes, mode: int, size: int, data: bytes) -> None:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            # the umask must not have its say
            os.fchmod(descriptor, mode)
            if self._owner is not None:
                os.fchown(descriptor, *self._owner)
            if data:
                os.write(descriptor, data)
            elif size:
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


@dataclass(slots=True)
class Begun:
    """A window that is at work: what it holds is complete once ``held`` lets pass, and its cells once ``written`` does.

    ``shown`` names a file for each content.
    """

    window: Window
    locations: dict[bytes, Location]
    shown: dict[bytes, str]
    held: Latch
    written: Latch = field(default_factory=lambda: Latch(0))


def _new_room(size: int) -> memoryview:
    return np.empty(size, np.uint8).data


class target_errors:  # noqa: N801 - reads as a noun, like contextlib.suppress
    """Turns an OSError on the restore target into a TargetError that names the place."""

    def __init__(self, place: bytes) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            place = os.fsdecode(self._place)
            raise TargetError(
                f"cannot write {place}: {error.strerror}",
                hint=f"see room and rights there: df -h {os.path.dirname(place)}; ls -ld {os.path.dirname(place)}",
            ) from error


def sync_file_systems(places: list[bytes]) -> None:
    """One syncfs(2) for each file system that holds one of these places. Raises TargetError."""
    done: set[int] = set()
    for place in places:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            device = os.fstat(descriptor).st_dev
            if device in done:
                continue
            done.add(device)
            if _libc.syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise TargetError(f"the file system of {os.fsdecode(place)} cannot be synced: {os.strerror(number)}")
        finally:
            os.close(descriptor)
