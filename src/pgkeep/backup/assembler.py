"""From bytes as they stream in to contents, page maps and listings.

One thread feeds files in any order, piece by piece; worker threads hash, compress, seal and pack their cells. What is in
memory at any time: the cells in flight, the packs that fill, and some 120 bytes for each file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import google_crc32c
import msgspec

from pgkeep.receiver.frames import FileFacts
from pgkeep.repository.contents import ContentWriter, Parameters
from pgkeep.repository.crc import combine_crc32c
from pgkeep.repository.maps import (
    INLINE_BYTES,
    INLINE_EXTENTS,
    Directory,
    Extent,
    FileEntry,
    cut_listings,
    encode_entry,
    encode_extents,
)
from pgkeep.repository.packs import PackKind
from pgkeep.workers import Workers

__all__ = ["CellCheck", "FileAssembler"]


class CellCheck(Protocol):
    """Looks at a cell's bytes before it is stored; called from worker threads."""

    def __call__(self, path: bytes, first_page: int, data: bytes) -> None: ...


@dataclass(slots=True)
class _OpenFile:
    facts: FileFacts
    received: int = 0
    checksums: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First page of each cell -> its CRC-32C and size."""
    extents: list[Extent] = field(default_factory=list)
    stored_size: int = 0
    pending: int = 1
    """Cells under way, plus one until the file's end has been seen."""
    inline: bytes | None = None


@dataclass(slots=True)
class _DirectoryState:
    mode: int = 0o700
    size: int = 0
    entries: dict[bytes, bytes] = field(default_factory=dict)


class FileAssembler:
    """Takes files (`begin`, `inline` or `cell`s, `end`) and directories, and gives back the tree of a backup.

    Use as a context manager: leaving it ends its workers. All methods are for the feeding thread. An error of a worker
    is raised by the next call.
    """

    def __init__(
        self, writer: ContentWriter, parameters: Parameters, *, jobs: int | None, check: CellCheck | None = None
    ) -> None:
        self._writer = writer
        self._cell_size = parameters.cell_size
        self._page_size = parameters.page_size
        self._zero_cell = bytes(parameters.cell_size)
        self._check = check
        self._workers = Workers(jobs, "cell", waiting=8)
        self._lock = threading.Lock()
        self._directories: dict[bytes, _DirectoryState] = {}
        self._file: _OpenFile | None = None
        self.logical_size = 0
        self.stored_size = 0
        self.files = 0

    def __enter__(self) -> FileAssembler:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def directory(self, path: bytes, mode: int) -> None:
        """A directory is part of the backup."""
        self._directories.setdefault(path, _DirectoryState()).mode = mode

    def begin(self, facts: FileFacts) -> None:
        """A file's bytes follow."""
        self._workers.raise_failure()
        self._file = _OpenFile(facts)

    def inline(self, data: bytes) -> None:
        """The whole of a file that is no larger than `INLINE_BYTES`: it stands in its entry."""
        file = self._file
        assert file is not None
        assert len(data) <= INLINE_BYTES
        file.inline, file.received = data, len(data)

    def cell(self, load: Callable[[], bytes], size: int) -> None:
        """The next ``size`` bytes of the file: a whole cell, or its last one. A worker calls ``load`` for them."""
        file = self._file
        assert file is not None
        first_page = file.received // self._page_size
        file.received += size
        with self._lock:
            file.pending += 1
        self._workers.submit(self._store_cell, file, first_page, load)

    def end(self) -> None:
        """The file is complete."""
        file = self._file
        assert file is not None
        self._file = None
        self._release(file)

    def drain(self) -> None:
        """Wait until every file given so far is stored."""
        self._workers.drain()

    def entry(self, path: bytes) -> FileEntry | None:
        """What is known of a file, after `drain`."""
        directory, name = os.path.split(path)
        state = self._directories.get(directory)
        encoded = state.entries.get(name) if state else None
        return msgspec.msgpack.decode(encoded, type=FileEntry) if encoded is not None else None

    def tree(self) -> Iterator[Directory]:
        """The directories with their listings stored, sorted by path; after `drain`."""
        for path, state in sorted(self._directories.items()):
            entries = [encoded for _, encoded in sorted(state.entries.items())]
            listings = []
            for listing in cut_listings(entries):
                stored = self._writer.put(PackKind.META, listing)
                self.stored_size += stored.stored_size
                listings.append(stored.id)
            yield Directory(path, state.mode, listings, len(entries), state.size)

    def _store_cell(self, file: _OpenFile, first_page: int, load: Callable[[], bytes]) -> None:
        cell = load()
        file.checksums[first_page] = google_crc32c.value(cell), len(cell)
        if self._check is not None:
            self._check(file.facts.path, first_page, cell)
        if cell != (self._zero_cell if len(cell) == self._cell_size else bytes(len(cell))):
            stored = self._writer.put(PackKind.DATA, cell)
            pages = -(-len(cell) // self._page_size)
            with self._lock:
                file.extents.append(Extent(first_page, pages, 0, stored.id))
                file.stored_size += stored.stored_size
        self._release(file)

    def _release(self, file: _OpenFile) -> None:
        """One part of a file's work is done; the last one makes its entry."""
        with self._lock:
            file.pending -= 1
            if file.pending:
                return
        self._add(file.facts.path, self._entry(file), file.stored_size)

    def _entry(self, file: _OpenFile) -> FileEntry:
        facts, name = file.facts, os.path.basename(file.facts.path)
        if file.inline is not None:
            crc32c = google_crc32c.value(file.inline)
            return FileEntry(name, file.received, facts.mode, facts.mtime, crc32c, inline=file.inline)
        crc32c = 0
        for _, (cell_crc32c, size) in sorted(file.checksums.items()):
            crc32c = combine_crc32c(crc32c, cell_crc32c, size)
        encoded = encode_extents(sorted(file.extents, key=lambda extent: extent.first_page))
        if len(file.extents) <= INLINE_EXTENTS:
            return FileEntry(name, file.received, facts.mode, facts.mtime, crc32c, extents=encoded)
        stored = self._writer.put(PackKind.META, encoded)
        return FileEntry(name, file.received, facts.mode, facts.mtime, crc32c, map_id=stored.id)

    def _add(self, path: bytes, entry: FileEntry, stored_size: int) -> None:
        directory, name = os.path.split(path)
        with self._lock:
            state = self._directories.setdefault(directory, _DirectoryState())
            state.entries[name] = encode_entry(entry)
            state.size += entry.size
            self.logical_size += entry.size
            self.stored_size += stored_size
            self.files += 1
