"""What the receiver tells the backup, frame by frame; see `pgkeep.receiver`."""

from __future__ import annotations

import struct

import msgspec

__all__ = [
    "LONGEST_FRAME",
    "SLOT",
    "Cell",
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

    Files up to ``inline_size`` bytes come in their frame, larger ones in cells of ``cell_size`` bytes.
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
    """The backup is good."""

    stop_lsn: int


class Failed(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """The backup is over; ``error`` is a pickled PgkeepError, from our own program and no one else's."""

    error: bytes


Frame = Started | DirectoryAt | Cell | ManifestPart | Notice | Finished | Failed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """A frame's bytes."""
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """A frame from its bytes."""
    frame: Frame = _decoder.decode(data)
    return frame
