"""Walking a backup's tree: its directories and files, and the bytes of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgkeep.errors import DamageError
from pgkeep.repository.contents import ContentReader
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.maps import Directory, Extent, FileEntry, decode_extents, decode_listing

if TYPE_CHECKING:
    from pgkeep.repository.page_map import Extents

__all__ = ["BackupFile", "BackupTree"]

_RECENT = 64
"""Contents that are kept while a file is read: more than a cell is made of after two months of daily backups."""


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A file of a backup, with its path from the data directory."""

    path: bytes
    entry: FileEntry

    @property
    def shown_path(self) -> str:
        """The path for messages."""
        return self.path.decode("utf-8", "backslashreplace")


class BackupTree:
    """The files of a backup; memory holds one listing at a time."""

    def __init__(self, manifest: Manifest, reader: ContentReader) -> None:
        self.manifest = manifest
        self._reader = reader

    def directories(self) -> list[Directory]:
        """All directories, sorted by path."""
        return self.manifest.directories

    def files(self) -> Iterator[BackupFile]:
        """All files, directory by directory. Raises DamageError naming the directory whose listing is damaged."""
        for directory in self.manifest.directories:
            yield from self.files_of(directory)

    def files_of(self, directory: Directory) -> Iterator[BackupFile]:
        """The files of one directory, sorted by name."""
        prefix = directory.path + b"/" if directory.path else b""
        for number in range(len(directory.listings)):
            with naming(prefix.decode("utf-8", "backslashreplace") or "the data directory"):
                entries = decode_listing(self._listing(directory, number))
            for entry in entries:
                yield BackupFile(prefix + entry.name, entry)

    def extents(self, file: BackupFile) -> list[Extent]:
        """A file's page map. Raises DamageError naming the file."""
        entry = file.entry
        with naming(file.shown_path):
            return decode_extents(entry.extents or b"" if entry.map_id is None else self._map(file, entry.map_id))

    def page_map(self, file: BackupFile) -> Extents:
        """`extents`, as an array. Raises DamageError naming the file."""
        # only here: numpy takes a tenth of a second and 30 MB
        from pgkeep.repository.page_map import decode_map

        entry = file.entry
        with naming(file.shown_path):
            return decode_map(entry.extents or b"" if entry.map_id is None else self._map(file, entry.map_id))

    def read(self, file: BackupFile) -> Iterator[bytes]:
        """A file's bytes in order, in pieces; zeros where its map has none. Raises DamageError naming the file."""
        if file.entry.inline is not None:
            yield file.entry.inline
            return
        page_size, size, position = self.manifest.page_size, file.entry.size, 0
        recent: OrderedDict[bytes, bytes] = OrderedDict()
        for extent in self.extents(file):
            start = extent.first_page * page_size
            yield from _zeros(start - position)
            content = self._content(file, extent.id, recent)
            first = extent.content_page * page_size
            piece = content[first : first + min(extent.pages * page_size, size - start)]
            if len(piece) == len(content):
                # nobody else has pages of it
                recent.pop(extent.id)
            yield piece
            position = start + len(piece)
        yield from _zeros(size - position)

    def _content(self, file: BackupFile, content_id: bytes, recent: OrderedDict[bytes, bytes]) -> bytes:
        """A content, from among those read lately where it is there: a bundle has pages of many cells."""
        content = recent.pop(content_id, None)
        if content is None:
            with naming(file.shown_path):
                content = self._cell(file, content_id)
        recent[content_id] = content
        if len(recent) > _RECENT:
            recent.popitem(last=False)
        return content

    def _listing(self, directory: Directory, number: int) -> bytes:
        return self._reader.get(directory.listings[number])

    def _map(self, file: BackupFile, map_id: bytes) -> bytes:  # noqa: ARG002 - whoever reads elsewhere needs the file
        return self._reader.get(map_id)

    def _cell(self, file: BackupFile, content_id: bytes) -> bytes:  # noqa: ARG002 - see _map
        return self._reader.get(content_id)


class naming:  # noqa: N801 - reads as a verb, like contextlib.suppress
    """Names the cluster's file in a DamageError that passes; a context manager."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DamageError) and error.path is None:
            raise DamageError(
                f"{self._path} cannot be read: {error}", hint=error.hint, object_name=error.object_name, path=self._path
            ) from None


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        piece = min(size, 1 << 20)
        yield bytes(piece)
        size -= piece
