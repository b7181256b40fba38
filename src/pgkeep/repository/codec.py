"""Compression of contents and chunks: zstd frames (RFC 8878), or the plain bytes where that is smaller."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum

from pgkeep.errors import DamageError
from pgkeep.repository.store import Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["FRAME_SIZE", "Codec", "compress", "decompress", "decompress_into"]

FRAME_SIZE = 256 << 10
"""Bytes of a frame of the cluster's data: a page can be read without the rest of its cell. Of 128 KiB, they compress 1 % worse."""


class Codec(IntEnum):
    """How a content is written before it is sealed."""

    RAW = 0
    ZSTD = 1


class _Compressors(threading.local):
    """One compressor for each thread and level: a context costs more to make than a cell to compress."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstd.ZstdCompressor] = {}


_compressors = _Compressors()


def compress(plain: Buffer, level: int, frame_size: int | None = None) -> bytes:
    """One zstd frame, or one for each ``frame_size`` bytes; frames record their plain sizes."""
    compressor = _compressors.by_level.get(level)
    if compressor is None:
        compressor = _compressors.by_level[level] = zstd.ZstdCompressor(level=level)
    view = memoryview(plain)
    frames = []
    for start in range(0, len(view) or 1, frame_size or len(view) or 1):
        piece = view[start : start + (frame_size or len(view))]
        compressor.set_pledged_input_size(len(piece))
        frames.append(compressor.compress(piece, zstd.ZstdCompressor.FLUSH_FRAME))
    return b"".join(frames)


def decompress(stored: Buffer, codec: Codec, plain_limit: int) -> bytes:
    """The plain bytes, at most ``plain_limit`` of them. Raises DamageError."""
    if codec is Codec.RAW:
        return bytes(stored)
    frames = []
    for frame, size in _frames(stored):
        plain_limit -= size
        if plain_limit < 0:
            raise DamageError("a compressed content is longer than it says")
        frames.append(_decompress_frame(frame, size))
    return b"".join(frames)


def decompress_into(
    room: memoryview, stored: Buffer, codec: Codec, is_wanted: Callable[[int, int], bool] | None = None
) -> None:
    """Put the plain bytes into ``room``, which has their size. Raises DamageError.

    With ``is_wanted``, asked for first byte and end of each frame, those that are not wanted are passed over.
    """
    if codec is Codec.RAW:
        if len(stored) != len(room):
            raise DamageError("a content is not as long as it says")
        room[:] = stored
        return
    start = 0
    for frame, size in _frames(stored):
        if start + size > len(room):
            raise DamageError("a compressed content is longer than it says")
        if is_wanted is None or is_wanted(start, start + size):
            room[start : start + size] = _decompress_frame(frame, size)
        start += size
    if start < len(room):
        raise DamageError("a compressed content is shorter than it says")


def _frames(stored: Buffer) -> Iterator[tuple[memoryview, int]]:
    """Each frame, and how many plain bytes it says that it has."""
    rest = memoryview(stored)
    if not rest:
        raise DamageError("a compressed content has nothing in it")
    try:
        while rest:
            size = zstd.get_frame_size(rest)
            frame, rest = rest[:size], rest[size:]
            plain_size = zstd.get_frame_info(frame).decompressed_size
            if plain_size is None:
                raise DamageError("a frame of a compressed content does not say how long it is")
            yield frame, plain_size
    except zstd.ZstdError as error:
        raise DamageError(f"a compressed content cannot be read: {error}") from None


def _decompress_frame(frame: memoryview, size: int) -> bytes:
    try:
        decompressor = zstd.ZstdDecompressor()
        plain = decompressor.decompress(frame, max_length=size)
        if not decompressor.eof:
            raise DamageError("a compressed content does not end where it should")
    except zstd.ZstdError as error:
        raise DamageError(f"a compressed content cannot be read: {error}") from None
    return plain
