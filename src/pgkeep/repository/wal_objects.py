"""WAL in the repository: one sealed object a segment, created once.

``clusters/<system identifier>/wal/<timeline>/<log>/<segment name>``, timeline and log being the first and the second 8 hex
digits of the segment's name: a folder holds 4 GiB of WAL, so that no listing grows with the archive. Bytes of a segment that
is not complete are a *piece* beside it: ``<segment name>.<first byte, 8 hex digits>-<end, 8 hex digits>``. A timeline's
history file stands in the timeline's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pgkeep.errors import StoreError
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.sealed import ObjectSealer, ObjectType, holds, read_sealed, stream_sealed
from pgkeep.repository.store import Buffer, ObjectExists, ObjectMissing, Store

__all__ = ["DifferentWalError", "WalArchive", "piece_name", "split_piece"]

_LEVEL = 1
"""zstd's level for WAL: it must keep up with the server, and full-page images compress well at any level."""

_PIECE = re.compile(r"([0-9A-F]{24})\.([0-9a-f]{8})-([0-9a-f]{8})", re.ASCII)
_IN_LOG = re.compile(r"[0-9A-F]{24}(?:\..*)?", re.ASCII)
_TIMELINE = re.compile(r"[0-9A-F]{8}", re.ASCII)


def split_piece(name: str) -> tuple[str, int, int | None]:
    """Segment, first byte and end of what an object holds; the end of a whole segment or history file is None."""
    piece = _PIECE.fullmatch(name)
    return (piece[1], int(piece[2], 16), int(piece[3], 16)) if piece is not None else (name, 0, None)


def piece_name(segment: str, start: int, end: int) -> str:
    """The name of the bytes ``[start, end)`` of a segment."""
    return f"{segment}.{start:08x}-{end:08x}"


class DifferentWalError(StoreError):
    """The repository holds other bytes under this name: two servers write the same timeline, or one was reset."""


class WalArchive:
    """The WAL of one cluster; safe for threads."""

    def __init__(self, store: Store, keys: KeyRing, system_identifier: int) -> None:
        self._store = store
        self._keys = keys
        self.system_identifier = system_identifier
        self._prefix = f"clusters/{system_identifier}/wal/"

    def object_name(self, name: str) -> str:
        """The object that holds a segment, a piece or a history file."""
        log = f"{name[8:16]}/" if _IN_LOG.fullmatch(name) else ""
        return f"{self._prefix}{name[:8]}/{log}{name}"

    def sealer(self, name: str) -> ObjectSealer:
        """Takes the bytes of a segment or piece as they come; `keep` makes them durable."""
        # a timeline's history is no data, and whoever writes WAL has to read it
        boxed = not name.endswith(".history")
        return ObjectSealer(self._keys, self.object_name(name), ObjectType.WAL, level=_LEVEL, boxed=boxed)

    def keep(self, sealer: ObjectSealer) -> int:
        """Make a segment durable; returns its stored size.

        The same bytes again are no error. Raises DifferentWalError where the name holds others, and StoreError.
        """
        name, parts = sealer.name, sealer.finish()
        try:
            self._store.put(name, parts)
        except ObjectExists:
            if not holds(self._store, self._keys, name, ObjectType.WAL, sealer.plain()):
                raise DifferentWalError(
                    f"{name} exists with other content",
                    hint="another server writes this timeline, or the cluster was made anew: give it its own repository",
                ) from None
            return self._store.info(name).size
        return sum(len(part) for part in parts)

    def unseal(self, sealer: ObjectSealer) -> bytes:
        """The bytes that a sealer took, for keeping them under another name."""
        sealer.finish()
        return sealer.plain()

    def holds(self, name: str, plain: Buffer) -> bool:
        """Whether it is there with these bytes; takes no key that reads. Raises DamageError, StoreError."""
        return holds(self._store, self._keys, self.object_name(name), ObjectType.WAL, plain)

    def put(self, name: str, plain: Buffer) -> int:
        """`keep` bytes that are all here."""
        sealer = self.sealer(name)
        sealer.write(plain)
        return self.keep(sealer)

    def get(self, name: str) -> bytes:
        """A segment's or a piece's bytes. Raises ObjectMissing, DamageError."""
        return read_sealed(self._store, self._keys, self.object_name(name), ObjectType.WAL)

    def stream(self, name: str) -> Iterator[bytes]:
        """`get`, chunk by chunk."""
        return stream_sealed(self._store, self._keys, self.object_name(name), ObjectType.WAL)

    def exists(self, name: str) -> bool:
        """Whether the repository has it, by one question to the store."""
        try:
            self._store.info(self.object_name(name))
        except ObjectMissing:
            return False
        return True

    def timelines(self) -> list[int]:
        """The timelines of which there is anything, in order."""
        return sorted(int(folder, 16) for folder in self._store.folders(self._prefix) if _TIMELINE.fullmatch(folder))

    def names(self, timeline: int | None = None, log: int | None = None) -> Iterator[tuple[str, int]]:
        """Names and stored sizes: of all WAL, of one timeline, or of one log (LSN >> 32) of a timeline; sorted in a log."""
        prefix = self._prefix
        if timeline is not None:
            prefix += f"{timeline:08X}/" + (f"{log:08X}/" if log is not None else "")
        for info in self._store.list(prefix):
            yield info.name.rpartition("/")[2], info.size
