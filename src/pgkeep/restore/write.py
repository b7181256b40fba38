"""Writing a backup's files: many threads, range reads that follow the packs, no file fsynced on its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

from pgkeep.direct_io import write_at
from pgkeep.errors import TargetError
from pgkeep.progress import Progress
from pgkeep.repository.contents import ContentReader, Location, spans
from pgkeep.repository.maps import Extent
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import BackupFile, BackupTree, naming
from pgkeep.workers import Workers

__all__ = ["FileWriter", "sync_file_systems"]

_libc = ctypes.CDLL(None, use_errno=True)

_WINDOW = 1024
"""Extents that are looked up and sorted by place at once: 1 GiB of cells of 1 MiB, some 1 MB of Python objects."""


class FileWriter:
    """Writes files below a directory; use as a context manager, then `add` files and `finish`.

    ``locate`` gives the place of a path of the backup. Files are created with their size and mode, sparse; their bytes
    come in any order. An error of a worker is raised by the next call.
    """

    def __init__(
        self,
        tree: BackupTree,
        reader: ContentReader,
        locate: Callable[[bytes], bytes],
        *,
        jobs: int | None,
        owner: tuple[int, int] | None,
        progress: Progress,
    ) -> None:
        self._tree = tree
        self._reader = reader
        self._locate = locate
        self._owner = owner
        self._progress = progress
        self._page_size = tree.manifest.page_size
        self._window: list[tuple[bytes, str, Extent, int]] = []
        # direct writes wait for the disk, so that twice as many threads as processors keep both busy
        self._workers = Workers(jobs or 2 * (os.cpu_count() or 1), "restore", waiting=2)

    def __enter__(self) -> FileWriter:
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
        extents = self._tree.extents(file)
        covered = 0
        for extent in extents:
            size = min(extent.pages * self._page_size, entry.size - extent.first_page * self._page_size)
            covered += size
            self._window.append((place, file.shown_path, extent, size))
            if len(self._window) >= _WINDOW:
                self._send_window()
        self._progress.advance(entry.size - covered)

    def write_stream(self, place: bytes, mode: int, size: int | None, chunks: Iterator[bytes]) -> None:
        """Write a file from a stream, in a worker; zeros fill it up to ``size``."""
        self._workers.submit(self._write_chunks, place, mode, size, chunks)

    def finish(self) -> None:
        """Wait until everything is written."""
        self._send_window()
        self._workers.drain()

    def _send_window(self) -> None:
        window, self._window = self._window, []
        wanted: dict[bytes, list[tuple[bytes, str, Extent, int]]] = {}
        locations: list[Location] = []
        for item in window:
            extent_id = item[2].id
            places = wanted.get(extent_id)
            if places is None:
                wanted[extent_id] = [item]
                with naming(item[1]):
                    locations.append(self._reader.locate(extent_id))
            else:
                places.append(item)
        for pack, entries in spans(locations):
            self._workers.submit(self._write_span, pack, entries, {entry.id: wanted[entry.id] for entry in entries})

    def _write_span(
        self, pack: str, entries: list[PackEntry], wanted: dict[bytes, list[tuple[bytes, str, Extent, int]]]
    ) -> None:
        page_size = self._page_size
        contents = self._reader.read(pack, entries)
        for entry in entries:
            shown_path = wanted[entry.id][0][1]
            with naming(shown_path):
                _, plain = next(contents)
            view = memoryview(plain)
            for place, _, extent, size in wanted[entry.id]:
                first = extent.content_page * page_size
                with target_errors(place):
                    write_at(place, view[first : first + size], extent.first_page * page_size)
                self._progress.advance(size)

    def _write_chunks(self, place: bytes, mode: int, size: int | None, chunks: Iterator[bytes]) -> None:
        position = 0
        with target_errors(place):
            self._create(place, mode, size or 0, b"")
            for chunk in chunks:
                write_at(place, memoryview(chunk), position)
                position += len(chunk)
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
