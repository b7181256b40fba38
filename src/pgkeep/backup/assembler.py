"""From bytes as they stream in to contents, page maps and listings.

One thread feeds files in any order, piece by piece; worker threads hash, compare, compress, seal and pack them. What is
in memory at any time: the cells in flight, the packs that fill, and some 120 bytes for each file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import google_crc32c
import msgspec

from pgkeep.receiver.frames import FileFacts
from pgkeep.repository.contents import ContentWriter, Parameters
from pgkeep.repository.crc import combine_crc32c
from pgkeep.repository.maps import (
    EXTENT_SIZE,
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

if TYPE_CHECKING:
    # numpy comes with it: a tenth of a second and 30 MB that a first backup does without
    from pgkeep.backup.changes import ChangedFile, Changes, Chosen, OldFile
    from pgkeep.backup.overlay import Extents, Pages

__all__ = ["CellCheck", "FileAssembler"]

_AS_PARENT = b""
"""In place of an entry: the parent's."""


class CellCheck(Protocol):
    """Looks at bytes before they are stored; called from worker threads."""

    def __call__(self, path: bytes, first_page: int, data: bytes) -> None:
        """Look at a cell, or the last part of one."""

    def pages(self, path: bytes, pages: Pages, data: bytes) -> None:
        """Look at pages, by number."""


@dataclass(slots=True)
class _OpenFile:
    facts: FileFacts
    old: OldFile | None = None
    """What the parent has of it, to compare with."""
    change: ChangedFile | None = None
    """Where only its changed pages are given."""
    is_compared: bool = True
    """Whether every page was compared with the parent's, or stored."""
    received: int = 0
    checksums: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Position of each piece -> its CRC-32C and size."""
    maps: dict[int, bytes] = field(default_factory=dict)
    """First page of each cell -> its part of the page map."""
    stored_size: int = 0
    pending: int = 1
    """Pieces under way, plus one until the file's end has been seen."""
    inline: bytes | None = None
    arrived_as: tuple[bytes, int, int] | None = None
    """For changed pages: name, size and CRC-32C of what they came in, up to the first page."""


@dataclass(slots=True)
class _DirectoryState:
    mode: int = 0o700
    size: int = 0
    stored_size: int = 0
    entries: dict[bytes, bytes] = field(default_factory=dict)
    arrived: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Size and CRC-32C of files that came in another form than they are stored, by the name that they came under."""


class FileAssembler:
    """Takes files and directories, and gives back the tree of a backup.

    A file is `begin`, `inline` or `cell`s, `end`; where only its changed pages are known, `begin_changed`, `pages`, `end`.
    With ``changes``, whole files too are compared with the parent, and only what differs is stored.

    Use as a context manager: leaving it ends its workers. All methods are for the feeding thread. An error of a worker
    is raised by the next call.
    """

    def __init__(
        self,
        writer: ContentWriter,
        parameters: Parameters,
        *,
        jobs: int | None,
        check: CellCheck | None = None,
        changes: Changes | None = None,
    ) -> None:
        self._writer = writer
        self._cell_size = parameters.cell_size
        self._page_size = parameters.page_size
        self._zero_cell = bytes(parameters.cell_size)
        self._check = check
        self._changes = changes
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
        old = None
        if self._changes is not None and facts.size > INLINE_BYTES and not facts.size % self._page_size:
            old = self._changes.old_file(facts.path)
        self._file = _OpenFile(facts, old)

    def begin_changed(
        self, facts: FileFacts, kept_pages: int, changed: Pages, arrived_as: tuple[bytes, int, int] | None = None
    ) -> None:
        """A file's changed pages follow; it is ``facts.size`` bytes long, a whole number of pages.

        Of the pages that are not among ``changed``, the first ``kept_pages`` are as in the parent, the rest are zeros.
        Where `arrived` is to know the member that holds the pages, ``arrived_as`` has its name, and size and CRC-32C of
        what stands before the first page. Raises DamageError where the parent has no such file.
        """
        self._workers.raise_failure()
        assert self._changes is not None
        assert facts.size % self._page_size == 0
        change = self._changes.begin(facts.path, kept_pages, changed, facts.size // self._page_size)
        self._file = _OpenFile(facts, change=change, arrived_as=arrived_as)

    def inline(self, data: bytes) -> None:
        """The whole of a file that is no larger than `INLINE_BYTES`: it stands in its entry."""
        file = self._file
        assert file is not None
        assert len(data) <= INLINE_BYTES
        file.inline, file.received = data, len(data)

    def cell(self, load: Callable[[], bytes], size: int, differs: Callable[[bytes], Chosen] | None = None) -> None:
        """The next ``size`` bytes of the file: a whole cell, or its last one. A worker calls ``load`` for them.

        Where the parent has the file, ``differs`` may say of each page of them whether it may be another than the parent's;
        those that are not are taken from there without a look. Only for files of whole pages.
        """
        file = self._file
        assert file is not None
        first_page = file.received // self._page_size
        file.received += size
        if differs is not None and file.old is not None:
            file.is_compared = False
        self._hold(file)
        self._workers.submit(self._store_cell, file, first_page, load, differs)

    def pages(self, load: Callable[[], bytes], pages: Pages) -> None:
        """The next changed pages of the file, all those of a cell of the grid in one call, a cell's size at most."""
        file = self._file
        assert file is not None
        position = file.received
        file.received += len(pages) * self._page_size
        self._hold(file)
        self._workers.submit(self._store_pages, file, position, pages, load)

    def end(self) -> None:
        """The file is complete."""
        file = self._file
        assert file is not None
        self._file = None
        if file.change is not None:
            for cell in file.change.untouched:
                self._hold(file)
                self._workers.submit(self._rewrite, file, cell)
        self._release(file)

    def put(self, facts: FileFacts, data: bytes, arrived: bytes) -> None:
        """A small file that is stored as ``data`` though it came as ``arrived``."""
        self.begin(facts)
        if len(data) <= INLINE_BYTES:
            self.inline(data)
        else:
            self.cell(lambda: data, len(data))
        self.end()
        directory, name = os.path.split(facts.path)
        self._directories.setdefault(directory, _DirectoryState()).arrived[name] = (
            len(arrived),
            google_crc32c.value(arrived),
        )

    def drain(self) -> None:
        """Wait until every file given so far is stored."""
        self._workers.drain()
        if self._changes is not None:
            self._changes.flush()

    def entry(self, path: bytes) -> FileEntry | None:
        """What is known of a file, after `drain`."""
        directory, name = os.path.split(path)
        state = self._directories.get(directory)
        encoded = state.entries.get(name) if state else None
        if encoded == _AS_PARENT and self._changes is not None:
            return self._changes.parent.entry(path)
        return msgspec.msgpack.decode(encoded, type=FileEntry) if encoded is not None else None

    def arrived(self, path: bytes) -> tuple[int, int | None] | None:
        """Size and CRC-32C of a file in the form that it came in, after `drain`."""
        directory, name = os.path.split(path)
        state = self._directories.get(directory)
        if state is not None and name in state.arrived:
            return state.arrived[name]
        entry = self.entry(path)
        return None if entry is None else (entry.size, entry.crc32c)

    def tree(self) -> Iterator[Directory]:
        """The directories with their listings stored, sorted by path; after `drain`."""
        for path, state in sorted(self._directories.items()):
            listings = []
            for listing in cut_listings(self._entries(path, state)):
                stored = self._writer.put(PackKind.META, listing)
                self.stored_size += stored.stored_size
                listings.append(stored.id)
            yield Directory(path, state.mode, listings, len(state.entries), state.size)

    def _entries(self, path: bytes, state: _DirectoryState) -> list[bytes]:
        """The entries of a directory, encoded and sorted by name."""
        entries = state.entries
        if self._changes is not None and _AS_PARENT in entries.values():
            for entry in self._changes.parent.entries(path):
                if entries.get(entry.name) == _AS_PARENT:
                    entries[entry.name] = encode_entry(entry)
        return [encoded for _, encoded in sorted(entries.items())]

    def _store_cell(
        self, file: _OpenFile, first_page: int, load: Callable[[], bytes], differs: Callable[[bytes], Chosen] | None
    ) -> None:
        cell = load()
        file.checksums[first_page] = google_crc32c.value(cell), len(cell)
        if self._check is not None:
            self._check(file.facts.path, first_page, cell)
        if file.old is not None and not len(cell) % self._page_size:
            assert self._changes is not None
            path, placed = file.facts.path, partial(self._placed, file, first_page)
            if differs is None:
                self._changes.store_cell(path, file.old, first_page, cell, placed)
            else:
                self._changes.store_differing(path, file.old, first_page, cell, differs(cell), placed)
            return
        if cell != (self._zero_cell if len(cell) == self._cell_size else bytes(len(cell))):
            stored = self._writer.put(PackKind.DATA, cell)
            pages = -(-len(cell) // self._page_size)
            with self._lock:
                file.maps[first_page] = encode_extents([Extent(first_page, pages, 0, stored.id)])
                file.stored_size += stored.stored_size
        self._release(file)

    def _store_pages(self, file: _OpenFile, position: int, pages: Pages, load: Callable[[], bytes]) -> None:
        data = load()
        file.checksums[position] = google_crc32c.value(data), len(data)
        if self._check is not None:
            self._check.pages(file.facts.path, pages, data)
        assert file.change is not None
        file.change.take(pages, data, lambda: self._release(file))

    def _rewrite(self, file: _OpenFile, cell: int) -> None:
        assert file.change is not None
        file.change.rewrite(cell)
        self._release(file)

    def _placed(self, file: _OpenFile, first_page: int, extents: Extents, stored_size: int) -> None:
        with self._lock:
            file.maps[first_page] = extents.tobytes()
            file.stored_size += stored_size
        self._release(file)

    def _hold(self, file: _OpenFile) -> None:
        with self._lock:
            file.pending += 1

    def _release(self, file: _OpenFile) -> None:
        """One part of a file's work is done; the last one makes its entry."""
        with self._lock:
            file.pending -= 1
            if file.pending:
                return
        if file.change is not None:
            self._add_changed(file, file.change)
        else:
            self._add_whole(file)

    def _add_whole(self, file: _OpenFile) -> None:
        facts, name = file.facts, os.path.basename(file.facts.path)
        if file.inline is not None:
            crc32c = google_crc32c.value(file.inline)
            if file.inline and self._writer.boxes:
                # its entry would be readable for who can only add
                stored = self._writer.put(PackKind.DATA, file.inline)
                encoded = encode_extents([Extent(0, 1, 0, stored.id)])
                self._add(file, self._entry(file, file.received, crc32c, encoded, stored.stored_size))
                return
            self._add(file, FileEntry(name, file.received, facts.mode, facts.mtime, crc32c, inline=file.inline))
            return
        encoded = b"".join(part for _, part in sorted(file.maps.items()))
        if file.old is not None:
            from pgkeep.backup.overlay import decode_map, joined

            encoded = joined(decode_map(encoded)).tobytes()
            is_old = file.received == file.old.pages * self._page_size and encoded == file.old.extents.tobytes()
            if not file.is_compared and is_old:
                self._add_unchanged(file)
                return
        crc32c = _joined_crc32c(0, file) if file.is_compared else None
        self._add(file, self._entry(file, file.received, crc32c, encoded, file.stored_size))

    def _add_changed(self, file: _OpenFile, change: ChangedFile) -> None:
        """The map is the parent's with the changes laid over it."""
        facts = file.facts
        if file.arrived_as is not None:
            name, size, crc32c = file.arrived_as
            directory = os.path.dirname(facts.path)
            with self._lock:
                state = self._directories.setdefault(directory, _DirectoryState())
                state.arrived[name] = size + file.received, _joined_crc32c(crc32c, file)
        if change.is_unchanged:
            self._add_unchanged(file)
        else:
            extents, stored_size = change.map()
            self._add(file, self._entry(file, facts.size, None, extents.tobytes(), stored_size))

    def _add_unchanged(self, file: _OpenFile) -> None:
        assert self._changes is not None
        known = self._changes.parent.entry(file.facts.path)
        assert known is not None
        if known.mode == file.facts.mode:
            self._add(file, known, _AS_PARENT)
        else:
            self._add(file, msgspec.structs.replace(known, mode=file.facts.mode))

    def _entry(self, file: _OpenFile, size: int, crc32c: int | None, encoded: bytes, stored_size: int) -> FileEntry:
        facts, name = file.facts, os.path.basename(file.facts.path)
        inline_map: bytes | None = encoded
        map_id = None
        if len(encoded) > INLINE_EXTENTS * EXTENT_SIZE:
            inline_map, map_id = None, self._writer.put(PackKind.META, encoded).id
        return FileEntry(
            name, size, facts.mode, facts.mtime, crc32c, extents=inline_map, map_id=map_id, stored_size=stored_size
        )

    def _add(self, file: _OpenFile, entry: FileEntry, encoded: bytes | None = None) -> None:
        directory = os.path.dirname(file.facts.path)
        with self._lock:
            state = self._directories.setdefault(directory, _DirectoryState())
            state.entries[entry.name] = encode_entry(entry) if encoded is None else encoded
            state.size += entry.size
            self.logical_size += entry.size
            self.stored_size += entry.stored_size
            self.files += 1


def _joined_crc32c(crc32c: int, file: _OpenFile) -> int:
    """The CRC-32C of what ``crc32c`` is of, followed by the file's pieces."""
    for _, (piece_crc32c, size) in sorted(file.checksums.items()):
        crc32c = combine_crc32c(crc32c, piece_crc32c, size)
    return crc32c
