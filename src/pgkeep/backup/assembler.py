"""From bytes as they stream in to contents, page maps and listings.

One thread feeds files in any order, piece by piece; worker threads hash, compress, seal and pack their cells. What is in
memory at any time: the cells in flight, the packs that fill, and some 120 bytes for each file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import google_crc32c
import msgspec

from pgkeep.repository.contents import ContentWriter, Parameters, StoredContent
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

__all__ = ["CellCheck", "FileAssembler", "FileFacts"]


class CellCheck(Protocol):
    """Looks at a cell's bytes before it is stored; called from worker threads."""

    def __call__(self, path: bytes, first_page: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a source knows of a file before its bytes: size in bytes, mode and mtime as stat(2) gives them."""

    path: bytes
    size: int
    mode: int
    mtime: int


@dataclass(slots=True)
class _OpenFile:
    facts: FileFacts
    received: int = 0
    checksums: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First page of each cell -> its CRC-32C and size."""
    pieces: list[memoryview] = field(default_factory=list)
    buffered: int = 0
    extents: list[Extent] = field(default_factory=list)
    stored_size: int = 0
    pending: int = 1
    """Cells under way, plus one until the file's end has been seen."""


@dataclass(slots=True)
class _DirectoryState:
    mode: int = 0o700
    size: int = 0
    entries: dict[bytes, bytes] = field(default_factory=dict)


class FileAssembler:
    """Takes files (`begin`, `data`, `end`) and directories, and gives back the tree of a backup.

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
        self._workers.__exit__()

    def directory(self, path: bytes, mode: int) -> None:
        """A directory is part of the backup."""
        self._directories.setdefault(path, _DirectoryState()).mode = mode

    def begin(self, facts: FileFacts) -> None:
        """A file's bytes follow."""
        self._workers.raise_failure()
        self._file = _OpenFile(facts)

    def data(self, piece: memoryview) -> None:
        """The next bytes of the file; the assembler keeps the piece until it is stored."""
        file = self._file
        assert file is not None
        while piece:
            room = self._cell_size - file.buffered
            part = piece[:room]
            piece = piece[room:]
            file.pieces.append(part)
            file.buffered += len(part)
            if file.buffered == self._cell_size:
                self._submit(file)

    def end(self) -> None:
        """The file is complete."""
        file = self._file
        assert file is not None
        self._file = None
        facts = file.facts
        if facts.size <= INLINE_BYTES and file.received == 0:
            inline = b"".join(file.pieces)
            entry = FileEntry(
                os.path.basename(facts.path),
                len(inline),
                facts.mode,
                facts.mtime,
                google_crc32c.value(inline),
                inline=inline,
            )
            self._add(facts.path, entry, 0)
            return
        if file.buffered:
            self._submit(file)
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

    def _submit(self, file: _OpenFile) -> None:
        pieces, file.pieces = file.pieces, []
        first_page = file.received // self._page_size
        file.received += file.buffered
        file.buffered = 0
        with self._lock:
            file.pending += 1
        self._workers.submit(self._store_cell, file, first_page, pieces)

    def _store_cell(self, file: _OpenFile, first_page: int, pieces: list[memoryview]) -> None:
        # joined here, so that the bytes are in the cache of the processor that hashes and compresses them
        cell = b"".join(pieces)
        pieces.clear()
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
        file.extents.sort(key=lambda extent: extent.first_page)
        encoded, map_content = encode_extents(file.extents), None
        if len(file.extents) > INLINE_EXTENTS:
            map_content = self._writer.put(PackKind.META, encoded)
        self._add(file.facts.path, _entry(file, encoded, map_content), file.stored_size)

    def _add(self, path: bytes, entry: FileEntry, stored_size: int) -> None:
        directory, name = os.path.split(path)
        with self._lock:
            state = self._directories.setdefault(directory, _DirectoryState())
            state.entries[name] = encode_entry(entry)
            state.size += entry.size
            self.logical_size += entry.size
            self.stored_size += stored_size
            self.files += 1


def _entry(file: _OpenFile, extents: bytes, map_content: StoredContent | None) -> FileEntry:
    facts = file.facts
    crc32c = 0
    for _, (cell_crc32c, size) in sorted(file.checksums.items()):
        crc32c = combine_crc32c(crc32c, cell_crc32c, size)
    return FileEntry(
        os.path.basename(facts.path),
        file.received,
        facts.mode,
        facts.mtime,
        crc32c,
        extents=extents if map_content is None else None,
        map_id=None if map_content is None else map_content.id,
    )
