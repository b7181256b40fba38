"""Members of an incremental base backup: ``INCREMENTAL.<name>``, the changed blocks of one relation segment.

Written by sendFile in src/backend/backup/basebackup.c, read by src/bin/pg_combinebackup/reconstruct.c:

.. code-block:: text

    magic u32 0xd3ae1f0d · number of blocks u32 · truncation block length u32     in the server's byte order
    block numbers, u32 each, ascending, counted from the segment's begin
    zeros up to a multiple of the block size, where there is any block
    the blocks, in the same order

The file is at least as long as the truncation block length says. A block below it that is not here is as it was in the
backup before; one above it is zeros.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pgkeep.errors import DamageError

__all__ = ["PREFIX", "PREFIX_SIZE", "IncrementalHeader", "format_header", "header_size", "parse_header", "real_path"]

PREFIX = b"INCREMENTAL."

_FIXED = struct.Struct("<III")
_MAGIC = 0xD3AE1F0D

PREFIX_SIZE = _FIXED.size
"""Bytes from which `header_size` can tell the rest; all there is of a file without changes."""

_MOST_BLOCKS = 1 << 24
"""Blocks of a segment, far above any server's (2^17 by default): a larger number is damage."""


@dataclass(frozen=True, slots=True)
class IncrementalHeader:
    """What stands before the blocks: their numbers, little-endian u32 each, and how many blocks the file keeps at least."""

    truncation_blocks: int
    blocks: bytes
    size: int

    @property
    def count(self) -> int:
        """How many blocks follow."""
        return len(self.blocks) // 4


def real_path(path: bytes) -> bytes | None:
    """The path of the file that a member holds changes of, or None where the path is not that of such a member."""
    directory, name = os.path.split(path)
    return os.path.join(directory, name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None


def header_size(prefix: bytes, block_size: int) -> int:
    """Bytes before the first block, from the first `PREFIX_SIZE` bytes. Raises DamageError where they are no such file's."""
    magic: int
    count: int
    magic, count, _ = _FIXED.unpack_from(prefix)
    if magic != _MAGIC or count > _MOST_BLOCKS:
        raise DamageError("a file of the incremental backup does not begin as one")
    size = _FIXED.size + 4 * count
    return size + -size % block_size if count else size


def parse_header(data: bytes, block_size: int) -> IncrementalHeader:
    """The header, given all its bytes. Raises DamageError where it is cut off."""
    size = header_size(data, block_size)
    _, count, truncation_blocks = _FIXED.unpack_from(data)
    blocks = data[_FIXED.size : _FIXED.size + 4 * count]
    if len(data) != size:
        raise DamageError("a file of the incremental backup is cut off in its header")
    return IncrementalHeader(truncation_blocks, blocks, size)


def format_header(truncation_blocks: int, blocks: Sequence[int], block_size: int) -> bytes:
    """The header as a server writes it."""
    header = _FIXED.pack(_MAGIC, len(blocks), truncation_blocks) + struct.pack(f"<{len(blocks)}I", *blocks)
    return header + bytes(-len(header) % block_size) if blocks else header
