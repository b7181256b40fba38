"""What the receiver tells the backup, frame by frame; see `pgkeep.receiver`."""

from __future__ import annotations

import struct

import msgspec

__all__ = [
    "BLOCKS_SIZE",
    "LONGEST_FRAME",
    "SLOT",
    "UPLOAD_END",
    "Cell",
    "ChangedBlocks",
    "ChangedFile",
    "ChangedPages",
    "DirectoryAt",
    "Failed",
    "FileFacts",
    "Finished",
    "Frame",
    "ManifestPart",
    "Notice",
    "ReceiverOrder",
    "Started",
    "decode_frame",
    "encode_frame",
]


LONGEST_FRAME = 1 << 16
"""Bytes; the largest is a part of the manifest, a message of the server: 32 KiB."""

BLOCKS_SIZE = 32 << 10
"""Bytes of block numbers in a frame, at most."""

UPLOAD_END = b"\0"
"""What follows the last part of a manifest that the child is to upload; no part is like it."""

SLOT = struct.Struct("<I")
"""What goes the other way: the number of a slot that is free again."""


class FileFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a source knows of a file before its bytes: size in bytes, mode and mtime as stat(2) gives them."""

    path: bytes
    size: int
    mode: int
    mtime: int


class ReceiverOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the receiver is to do; the first thing it is told. ``max_rate`` in bytes a second.

    Files up to ``inline_size`` bytes come in their frame, larger ones in cells of ``cell_size`` bytes. With ``incremental``,
    the manifest to upload follows in messages of its own, and `UPLOAD_END`.
    """

    dsn: str
    system_identifier: int
    label: str
    fast_checkpoint: bool
    verify_checksums: bool
    max_rate: int | None
    cell_size: int
    inline_size: int
    slots: int
    page_size: int
    incremental: bool


class Started(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """The server's checkpoint is done. Tablespaces as oid, location, size; the data directory has neither of the first."""

    start_lsn: int
    timeline: int
    tablespaces: list[tuple[int | None, bytes | None, int | None]]


class DirectoryAt(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """A directory is part of the backup."""

    path: bytes
    mode: int


class Cell(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """The next bytes of a file: ``size`` of them in a slot, or, for a small file, ``inline``.

    ``file`` stands in a file's first frame, ``last`` in its last.
    """

    file: FileFacts | None
    slot: int
    size: int
    last: bool
    inline: bytes | None = None


class ManifestPart(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """Bytes of the server's backup_manifest; all files are complete."""

    data: bytes


class Notice(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """A message of the server."""

    message: str


class Finished(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """The backup is good; ``received`` bytes of archives came."""

    stop_lsn: int
    received: int


class Failed(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """The backup is over; ``error`` is a pickled PgkeepError, from our own program and no one else's."""

    error: bytes


class ChangedFile(msgspec.Struct, frozen=True, tag=8, array_like=True):
    """A file of which only changed pages come: ``count`` of them, whose numbers and bytes follow in frames of their own.

    The file is at least ``truncation_blocks`` long. ``file.size`` is what the server sent for it; ``header_size`` bytes of that,
    with this CRC-32C, stand before the pages.
    """

    file: FileFacts
    truncation_blocks: int
    header_size: int
    header_crc32c: int
    count: int


class ChangedBlocks(msgspec.Struct, frozen=True, tag=9, array_like=True):
    """Numbers of changed pages, little-endian u32 each; more frames follow up to the file's count."""

    numbers: bytes


class ChangedPages(msgspec.Struct, frozen=True, tag=10, array_like=True):
    """The next ``count`` changed pages, in a slot."""

    slot: int
    count: int


Frame = (
    Started
    | DirectoryAt
    | Cell
    | ManifestPart
    | Notice
    | Finished
    | Failed
    | ChangedFile
    | ChangedBlocks
    | ChangedPages
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """A frame's bytes."""
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """A frame from its bytes."""
    frame: Frame = _decoder.decode(data)
    return frame
