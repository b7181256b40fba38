"""Sums of blocks: what tells a restore which pages the disk has already, without a fetch of the contents that they are in.

A block is 8192 bytes, the last one of a content filled up with zeros, and read as 1024 words w of 64 bits (little-endian). With
two rows of 1024 secret words, k and l, its sum is

    Σ k·w + Σ l·(w >> 32)    modulo 2^64

This is multilinear hashing (Carter and Wegman, "New hash functions and their use in authentication and set equality", 1981): two
blocks that differ have the same sum for one choice of the secret words in 2^64 where a word differs in its lowest bit, and in the
worst case, where nothing but highest bits of words differ, for one in 2^33, by their upper halves.
The words are BLAKE3 in its extendable form: of the empty text, under the repository's key for sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from pgkeep.repository.store import Buffer

__all__ = ["BLOCK_SIZE", "BlockSums", "Sums", "sums_size"]

BLOCK_SIZE = 8192
"""Bytes: PostgreSQL's own page size, unless it was built with another."""

Sums = npt.NDArray[np.uint64]
"""One for each block."""

_WORD = np.dtype("<u8")
_WORDS = BLOCK_SIZE // _WORD.itemsize

_AT_ONCE = 32
"""Blocks that are summed at once: their halves, 256 KiB, stay in the processor's cache."""


class BlockSums:
    """Sums under one key; safe for threads."""

    def __init__(self, key: bytes) -> None:
        words = np.frombuffer(blake3(b"", key=key).digest(length=2 * BLOCK_SIZE), _WORD)
        self._whole, self._upper = words[:_WORDS], words[_WORDS:]

    def of(self, data: Buffer) -> Sums:
        """The sums of the blocks of a text."""
        view = memoryview(data)
        whole = len(view) // BLOCK_SIZE * BLOCK_SIZE
        blocks = np.frombuffer(view[:whole], _WORD).reshape(-1, _WORDS)
        sums = [self._sum(blocks[first : first + _AT_ONCE]) for first in range(0, len(blocks), _AT_ONCE)]
        if whole < len(view):
            rest = bytes(view[whole:]).ljust(BLOCK_SIZE, b"\0")
            sums.append(self._sum(np.frombuffer(rest, _WORD).reshape(1, -1)))
        return np.concatenate(sums) if sums else np.empty(0, np.uint64)

    def _sum(self, blocks: npt.NDArray[np.uint64]) -> Sums:
        result: Sums = blocks @ self._whole + (blocks >> np.uint64(32)) @ self._upper
        return result


def sums_size(plain_size: int) -> int:
    """How many bytes the sums of so many bytes are."""
    return -(-plain_size // BLOCK_SIZE) * _WORD.itemsize
