"""The open segment, put together from the pieces that a repository has of it; asking again costs only what is new."""

from __future__ import annotations

import os
import weakref

from pgkeep.errors import DamageError
from pgkeep.postgres.wal import SEGMENT_HEADER_SIZE
from pgkeep.repository.wal_objects import WalArchive, piece_name
from pgkeep.wal.fetch_files import FileFolder, NewFile, writing

__all__ = ["GrowingSegment"]


class GrowingSegment:
    """A file without a name that holds the beginning of a segment, and zeros behind it."""

    def __init__(self, name: str, segment_size: int, folder: FileFolder) -> None:
        """Raises TargetError where the folder cannot be written."""
        self.name = name
        self.reached = 0
        new = folder.new_file(name)
        self._file = new.unlink()
        weakref.finalize(self, self._file.close)
        os.ftruncate(self._file.fileno(), segment_size)

    def extend(self, archive: WalArchive, chain: list[tuple[int, int]]) -> None:
        """Take over what a chain of pieces has beyond what is here. Raises ObjectMissing, DamageError, StoreError."""
        for first, end in chain:
            if end <= self.reached:
                continue
            name = piece_name(self.name, first, end)
            piece = archive.get(name)
            if len(piece) != end - first:
                raise DamageError(
                    f"{archive.object_name(name)} has {len(piece)} bytes instead of {end - first}",
                    object_name=archive.object_name(name),
                )
            self._file.seek(first)
            self._file.write(piece)
            self.reached = end
        self._file.flush()

    def header(self) -> bytes:
        """The first bytes, for `read_segment_header`."""
        return os.pread(self._file.fileno(), min(SEGMENT_HEADER_SIZE, self.reached), 0)

    def copy(self, folder: FileFolder) -> NewFile:
        """A file of the segment's size with what is here. Raises TargetError."""
        new = folder.new_file(self.name)
        with writing(new):
            new.copy_from(self._file)
        return new
