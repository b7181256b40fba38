"""Writing a backup's files: many threads, range reads that follow the packs, no file fsynced on its own."""

from __future__ import annotations

import ctypes
import os
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from pgkeep.direct_io import write_at
from pgkeep.errors import DamageError, TargetError
from pgkeep.progress import Progress
from pgkeep.repository.contents import Location, spans
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore.pace import Buffer, Latch, Pace
from pgkeep.restore.runs import Assembly, Piece, Run, assemble
from pgkeep.restore.source import ContentSource
from pgkeep.workers import Workers

__all__ = ["FileWriter", "part_of", "sync_file_systems"]

_libc = ctypes.CDLL(None, use_errno=True)

_WINDOW = 1024
"""Pieces that are looked up and sorted by place at once: 1 GiB of cells of 1 MiB, some 1 MB of Python objects."""

_HELD = 32 << 20
"""Bytes of contents that a window holds because many cells need them; two windows are at work at once."""

_TOGETHER = 64
"""Runs that one call writes from contents which are held."""


class FileWriter:
    """Writes files below a directory; use as a context manager, then `add` files and `finish`.

    ``locate`` gives the place of a path of the backup; cells are ``cell_size`` bytes of a file. Files are created with their size and
    mode, sparse; their bytes come in any order. An error of a worker is raised by the next call.
    """

    window_size = _WINDOW

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
        self._pieces: list[Piece] = []
        self._begun: _Window | None = None
        self._buffer = Buffer()
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
        for piece in self._pieces_of(file, place, is_new=True):
            covered += piece.size
            self._take(piece)
        self._progress.advance(entry.size - covered)

    def write_stream(self, place: bytes, mode: int, size: int | None, chunks: Iterator[bytes]) -> None:
        """Write a file from a stream, in a worker; zeros fill it up to ``size``."""
        self._workers.submit(self._write_chunks, place, mode, size, chunks)

    def finish(self) -> None:
        """Wait until everything is written."""
        self._send_window()
        self._end_window()
        self._workers.drain()

    def _pieces_of(self, file: BackupFile, place: bytes, *, is_new: bool) -> Iterator[Piece]:
        """The pieces of a file, in order."""
        page_size, shown_path = self._page_size, file.shown_path
        for extent in self._tree.extents(file):
            position = extent.first_page * page_size
            size = min(extent.pages * page_size, file.entry.size - position)
            yield Piece(place, shown_path, extent.id, extent.content_page * page_size, position, size, is_new)

    def _take(self, piece: Piece) -> None:
        self._pieces.append(piece)
        if len(self._pieces) >= self.window_size:
            self._send_window()

    def _send_window(self) -> None:
        """Have what many cells need fetched; meanwhile the window before is written."""
        pieces, self._pieces = self._pieces, []
        locations = self._source.locate(pieces)
        sizes = {content: location.entry.plain_size for content, location in locations.items()}
        assembly = assemble(pieces, self._source.cell_size, sizes, _HELD)
        shown = {piece.content: piece.shown_path for piece in pieces}
        fetches = list(spans([locations[content] for content in assembly.held]))
        window = _Window(assembly, locations, shown, Latch(len(fetches)))
        for pack, entries in fetches:
            self._workers.submit(self._hold, window, pack, entries)
        self._end_window()
        self._begun = window

    def _end_window(self) -> None:
        window, self._begun = self._begun, None
        if window is None:
            return
        window.held.wait()
        self._workers.raise_failure()
        rest, by_content = window.assembly.rest, window.assembly.by_content
        for first in range(0, len(rest), _TOGETHER):
            self._workers.submit(self._write_held, window, rest[first : first + _TOGETHER])
        for pack, entries in spans([window.locations[content] for content in by_content]):
            self._workers.submit(self._write_span, window, pack, entries)

    def _hold(self, window: _Window, pack: str, entries: list[PackEntry]) -> None:
        try:
            self._pace.enter()
            for entry, plain in self._source.read(pack, entries, window.shown):
                window.contents[entry.id] = memoryview(plain)
        finally:
            window.held.done()

    def _write_held(self, window: _Window, runs: list[Run]) -> None:
        self._pace.enter()
        for run in runs:
            self._write_run(run, window.contents)

    def _write_span(self, window: _Window, pack: str, entries: list[PackEntry]) -> None:
        self._pace.enter()
        for entry, plain in self._source.read(pack, entries, window.shown):
            contents = ChainMap({entry.id: memoryview(plain)}, window.contents)
            for run in window.assembly.by_content[entry.id]:
                self._write_run(run, contents)

    def _write_run(self, run: Run, contents: Mapping[bytes, memoryview]) -> None:
        parts = [part_of(contents[piece.content], piece) for piece in run]
        size = sum(piece.size for piece in run)
        data = parts[0]
        if len(parts) > 1:
            data = self._buffer.view(size)
            end = 0
            for part in parts:
                data[end : end + len(part)] = part
                end += len(part)
        with target_errors(run[0].place):
            write_at(run[0].place, data, run[0].position)
        self._pace.spend(size)
        self._progress.advance(size)

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


def part_of(content: memoryview, piece: Piece) -> memoryview:
    """A piece's bytes. Raises DamageError where the content is shorter than the file's map says."""
    part = content[piece.start : piece.start + piece.size]
    if len(part) != piece.size:
        raise DamageError(
            f"{piece.shown_path} cannot be restored: its map names bytes that content {piece.content.hex()[:16]} does not have",
            path=piece.shown_path,
        )
    return part


@dataclass
class _Window:
    """Pieces that are at work; ``contents`` are those that are held, complete once ``held`` lets pass."""

    assembly: Assembly
    locations: dict[bytes, Location]
    shown: dict[bytes, str]
    held: Latch
    contents: dict[bytes, memoryview] = field(default_factory=dict)


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
