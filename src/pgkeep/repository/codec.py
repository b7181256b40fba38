"""Compression of contents and chunks: zstd frames (RFC 8878), or the plain bytes where that is smaller."""

from __future__ import annotations

import sys
import threading
from enum import IntEnum

from pgkeep.errors import DamageError
from pgkeep.repository.store import Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Codec", "compress", "decompress"]


class Codec(IntEnum):
    """How a content is written before it is sealed."""

    RAW = 0
    ZSTD = 1


class _Compressors(threading.local):
    """One compressor for each thread and level: a context costs more to make than a cell to compress."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstd.ZstdCompressor] = {}


_compressors = _Compressors()


def compress(plain: Buffer, level: int) -> bytes:
    """One zstd frame that records its plain size."""
    compressor = _compressors.by_level.get(level)
    if compressor is None:
        compressor = _compressors.by_level[level] = zstd.ZstdCompressor(level=level)
    compressor.set_pledged_input_size(len(plain))
    return compressor.compress(plain, zstd.ZstdCompressor.FLUSH_FRAME)


def decompress(stored: Buffer, codec: Codec, plain_limit: int) -> bytes:
    """The plain bytes, at most ``plain_limit`` of them. Raises DamageError."""
    if codec is Codec.RAW:
        return bytes(stored)
    try:
        decompressor = zstd.ZstdDecompressor()
        plain = decompressor.decompress(stored, max_length=plain_limit)
        if not decompressor.eof or decompressor.unused_data:
            raise DamageError("a compressed content does not end where it should")
    except zstd.ZstdError as error:
        raise DamageError(f"a compressed content cannot be read: {error}") from None
    return plain
