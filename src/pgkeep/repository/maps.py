"""Page maps and listings: which contents make up which file.

A *page map* is a run of 44-byte extents in order of page: ``first page u32 · pages u32 · page in the content u32 · id
(32)``, little-endian. Pages that no extent covers are zeros. The last page of a file may be short: the file's size says
where it ends. A map of up to `INLINE_EXTENTS` stands in the file's entry, a longer one is a content of its own.

A *listing* is a content: a MessagePack array of file entries of one directory, sorted by name. A directory's entries
are cut into listings where the hash of a name says so, so that one new file changes one listing and not all.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from pgkeep.errors import DamageError

__all__ = [
    "EXTENT_SIZE",
    "INLINE_BYTES",
    "INLINE_EXTENTS",
    "Directory",
    "Extent",
    "FileEntry",
    "cut_listings",
    "decode_extents",
    "decode_listing",
    "encode_entry",
    "encode_extents",
]

_EXTENT = struct.Struct("<III32s")

INLINE_BYTES = 512
"""Files up to this size stand in their entry: cheaper than an id and an index entry (80 bytes) and a read."""

INLINE_EXTENTS = 4
"""Maps up to this length stand in the entry; most relations of an idle cluster are a page or a few."""

EXTENT_SIZE = _EXTENT.size
"""Bytes of an extent in a page map."""

_CUT = 256
"""Listings are cut at one name in so many."""


@dataclass(frozen=True, slots=True)
class Extent:
    """``pages`` pages of a file, from ``first_page``, are in content ``id`` from its page ``content_page``."""

    first_page: int
    pages: int
    content_page: int
    id: bytes


class FileEntry(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """A file of a backup. Exactly one of ``inline``, ``extents`` (a page map) and ``map_id`` tells its bytes.

    ``crc32c`` is None where only some of its pages were read, so that nobody has computed it of the whole.
    ``stored_size`` is about what a restore reads of it from packs, in bytes.
    """

    name: bytes
    size: int
    mode: int
    mtime: int
    crc32c: int | None
    inline: bytes | None = None
    extents: bytes | None = None
    map_id: bytes | None = None
    stored_size: int = 0


class Directory(msgspec.Struct, array_like=True, frozen=True):
    """A directory of a backup: its path from the data directory, its mode, the contents of its listings."""

    path: bytes
    mode: int
    listings: list[bytes]
    files: int
    size: int


_listing_encoder = msgspec.msgpack.Encoder()
_listing_decoder = msgspec.msgpack.Decoder(list[FileEntry])


def encode_extents(extents: Iterable[Extent]) -> bytes:
    """A page map's bytes."""
    return b"".join(_EXTENT.pack(extent.first_page, extent.pages, extent.content_page, extent.id) for extent in extents)


def decode_extents(encoded: bytes) -> list[Extent]:
    """The extents of a page map. Raises DamageError."""
    if len(encoded) % _EXTENT.size:
        raise DamageError("a page map is cut off")
    return [Extent(*fields) for fields in _EXTENT.iter_unpack(encoded)]


def cut_listings(entries: Sequence[bytes]) -> Iterator[bytes]:
    """The listings of a directory, from its entries, encoded by `encode_entry` and sorted by name."""
    piece: list[bytes] = []
    for entry in entries:
        piece.append(entry)
        name = msgspec.msgpack.decode(entry)[0]
        if int.from_bytes(hashlib.sha256(name).digest()[:4], "little") % _CUT == 0:
            yield _join(piece)
            piece = []
    if piece:
        yield _join(piece)


def encode_entry(entry: FileEntry) -> bytes:
    """An entry's bytes, as they stand in a listing."""
    return _listing_encoder.encode(entry)


def decode_listing(encoded: bytes) -> list[FileEntry]:
    """The entries of a listing. Raises DamageError."""
    try:
        return _listing_decoder.decode(encoded)
    except msgspec.MsgspecError as error:
        raise DamageError(f"a listing cannot be read: {error}") from None


def _join(entries: Sequence[bytes]) -> bytes:
    """A MessagePack array (array 32) of entries that are encoded already."""
    return b"".join((b"\xdd", struct.pack(">I", len(entries)), *entries))
