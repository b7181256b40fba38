"""The backup that a new one rests on while it is taken: where its files' pages are stored.

Nothing of the new backup points at its parent; what stays the same is pointed at where the parent's map says it is.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pgkeep.backup.overlay import Extents, cut, decode_map, no_extents
from pgkeep.backup.source import ParentUnreadable
from pgkeep.errors import DamageError
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.maps import Directory, FileEntry, decode_listing

__all__ = ["ParentBackup"]

_LISTINGS = 128
"""Listings in memory: some 250 entries each on average, 10 MB in all."""

_CONTENTS = 96
"""Contents in memory for reading pages: neighbouring cells share bundles, of each backup that changed them."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_Listing = dict[bytes, FileEntry]


class _Cache(Generic[_Key, _Value]):
    """The values used last; a value may be made twice when threads ask at once."""

    def __init__(self, size: int, make: Callable[[_Key], _Value]) -> None:
        self._size = size
        self._make = make
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._make(key)
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


class ParentBackup:
    """A backup's files by path, and their pages; safe for threads. Memory holds some listings and contents at a time.

    All methods that read raise ParentUnreadable.
    """

    def __init__(self, manifest: Manifest, repository: Repository) -> None:
        self.manifest = manifest
        self.reads_pages = repository.keys.opens_boxes
        """Whether `pages` works: in sealed mode it does not for a key that only adds. All else does."""
        self._reader = repository.reader()
        self._directories = {directory.path: directory for directory in manifest.directories}
        self._listings: _Cache[bytes, _Listing] = _Cache(_LISTINGS, self._read_listing)
        self._first_names: _Cache[bytes, list[bytes]] = _Cache(8, self._read_first_names)
        self._contents: _Cache[bytes, bytes] = _Cache(_CONTENTS, self._read)

    def directories(self) -> list[Directory]:
        """All directories, sorted by path."""
        return self.manifest.directories

    def entries(self, directory: bytes) -> Iterator[FileEntry]:
        """The files of a directory, sorted by name; none where there is no such directory."""
        for listing in self._listings_of(directory):
            yield from self._listings.get(listing).values()

    def paths(self, directory: bytes) -> Iterator[bytes]:
        """The paths of a directory's files, sorted."""
        return (os.path.join(directory, entry.name) for entry in self.entries(directory))

    def entry(self, path: bytes) -> FileEntry | None:
        """A file by its path, or None."""
        directory, name = os.path.split(path)
        listings = self._listings_of(directory)
        if not listings:
            return None
        number = bisect.bisect_right(self._first_names.get(directory), name) - 1 if len(listings) > 1 else 0
        return self._listings.get(listings[max(number, 0)]).get(name)

    def extents(self, entry: FileEntry) -> Extents:
        """A file's page map; a file that stands in its entry has none."""
        if entry.map_id is not None:
            return decode_map(self._read(entry.map_id))
        return decode_map(entry.extents) if entry.extents else no_extents()

    def pages(self, extents: Extents, first_page: int, count: int) -> bytearray:
        """The bytes of ``count`` pages of a file, by its map; zeros where the map has none."""
        size = self.manifest.page_size
        data = bytearray(count * size)
        for extent in cut(extents, first_page, first_page + count):
            content = memoryview(self._contents.get(extent["id"].tobytes()))
            begin = (int(extent["first_page"]) - first_page) * size
            piece = content[int(extent["content_page"]) * size :][: int(extent["pages"]) * size]
            data[begin : begin + len(piece)] = piece
        return data

    def _listings_of(self, directory: bytes) -> list[bytes]:
        found = self._directories.get(directory)
        return found.listings if found is not None else []

    def _read(self, content_id: bytes) -> bytes:
        try:
            return self._reader.get(content_id)
        except DamageError as error:
            raise ParentUnreadable(
                f"backup {self.manifest.id} cannot be built on: {error}",
                hint=f"pgkeep verify {self.manifest.id} tells what else is damaged",
                object_name=error.object_name,
            ) from None

    def _read_listing(self, listing: bytes) -> _Listing:
        return {entry.name: entry for entry in decode_listing(self._read(listing))}

    def _read_first_names(self, directory: bytes) -> list[bytes]:
        return [next(iter(self._listings.get(listing)), b"") for listing in self._listings_of(directory)]
