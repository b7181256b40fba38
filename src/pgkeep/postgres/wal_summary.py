"""WAL summaries: which blocks of which relations WAL has changed between two LSNs (PostgreSQL 17 and later).

Names of files: src/backend/backup/walsummary.c. Their contents, a block reference table: src/common/blkreftable.c; numbers are
little-endian. What the tables mean: src/backend/postmaster/walsummarizer.c, and PostgreSQL docs, 28.5 "WAL Internals". Read
from the files, as a server's own incremental backup does: a million changed blocks are a million rows of
``pg_wal_summary_contents()``, and 100 ms here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from pgkeep.errors import DamageError
from pgkeep.postgres.layout import Fork, RelationFile
from pgkeep.postgres.lsn import LSN

__all__ = [
    "NO_LIMIT",
    "SUMMARY_DIRECTORY",
    "BlockChanges",
    "ForkChanges",
    "SummaryFile",
    "first_missing",
    "parse_summary",
    "parse_summary_name",
    "summaries_between",
]

SUMMARY_DIRECTORY: Final = "pg_wal/summaries"

NO_LIMIT: Final = 0xFFFFFFFF
"""InvalidBlockNumber: the fork was neither created, dropped nor truncated."""

_MAGIC = 0x652B137B
_NUMBER = struct.Struct("<I")
# tablespace, database, relfilenode, fork, limit block, chunks
_ENTRY = struct.Struct("<IIIiII")
_END = bytes(_ENTRY.size)
_CHUNK_BLOCKS = 1 << 16
_BITMAP_WORDS = 4096
"""A chunk of so many words is a bitmap, a shorter one a list of blocks."""

_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{16})([0-9A-F]{16})\.summary", re.ASCII)
_FORK_NUMBERS = {Fork.MAIN: 0, Fork.FSM: 1, Fork.VM: 2, Fork.INIT: 3}

Blocks = npt.NDArray[np.uint32]
_Words = npt.NDArray[np.uint16]
_Key = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class SummaryFile:
    """A summary of the WAL of a timeline from ``start_lsn`` up to, not including, ``end_lsn``."""

    name: str
    timeline: int
    start_lsn: LSN
    end_lsn: LSN


@dataclass(frozen=True, slots=True)
class ForkChanges:
    """What a summary says of one fork of a relation.

    It was never shorter than ``limit_block`` blocks: what is there from that block on is new, but for `NO_LIMIT`.
    ``blocks`` are those that WAL has changed since it was shortest, in no order. A ``relfilenode`` of 0 stands for the
    whole database in this tablespace: it was created, or copied there.
    """

    tablespace: int
    database: int
    relfilenode: int
    fork: int
    limit_block: int
    blocks: Blocks


def parse_summary_name(name: str) -> SummaryFile | None:
    """What a summary of this name covers; None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    timeline, start, end = (int(part, 16) for part in match.groups())
    return SummaryFile(name, timeline, LSN(start), LSN(end))


def summaries_between(summaries: Iterable[SummaryFile], timeline: int, start: int, end: int) -> list[SummaryFile]:
    """The summaries that cover a part of a range, in order (FilterWalSummaries in walsummary.c)."""
    chosen = [file for file in summaries if file.timeline == timeline and file.start_lsn < end and file.end_lsn > start]
    return sorted(chosen, key=lambda file: (file.start_lsn, file.end_lsn))


def first_missing(summaries: Iterable[SummaryFile], timeline: int, start: int, end: int) -> LSN | None:
    """The first LSN of a range that no summary covers, or None (WalSummariesAreComplete in walsummary.c)."""
    reached = start
    for file in summaries_between(summaries, timeline, start, end):
        if file.start_lsn > reached:
            break
        reached = max(reached, file.end_lsn)
    return LSN(reached) if reached < end else None


def parse_summary(data: bytes, name: str = "a WAL summary") -> Iterator[ForkChanges]:
    """The forks that a summary file names, in its order. Raises DamageError where it is not whole."""
    for key, limit_block, chunks in _entries(data, name):
        parts = [_numbers(words) + np.uint32(number * _CHUNK_BLOCKS) for number, words in chunks]
        blocks = np.concatenate(parts) if parts else np.empty(0, np.uint32)
        yield ForkChanges(*key, limit_block, blocks)


class BlockChanges:
    """What several summaries say together; memory is two bytes for each changed block, or a bit for each block."""

    def __init__(self) -> None:
        self._limits: dict[_Key, int] = {}
        self._chunks: dict[_Key, dict[int, _Words]] = {}

    def add(self, data: bytes, name: str = "a WAL summary") -> None:
        """Take in a summary file. Raises DamageError where it is not whole."""
        for key, limit_block, chunks in _entries(data, name):
            self._limits[key] = min(self._limits.get(key, NO_LIMIT), limit_block)
            known = self._chunks.setdefault(key, {})
            for number, words in chunks:
                before = known.get(number)
                known[number] = words.copy() if before is None else _together(before, words)

    def is_new_database(self, file: RelationFile) -> bool:
        """Whether the whole database of a file was created or copied into its tablespace."""
        return (file.tablespace, file.database, 0, 0) in self._limits

    def of(self, file: RelationFile, segment_blocks: int) -> tuple[int, Blocks]:
        """How many blocks of a segment were there throughout, and which blocks of it WAL has changed, ascending.

        Both count from the segment's begin; the first is ``segment_blocks`` where the segment was never cut. From that
        number on everything is new, whether it was changed or not.
        """
        key = (file.tablespace, file.database, file.relfilenode, _FORK_NUMBERS[file.fork])
        if key not in self._limits:
            return segment_blocks, np.empty(0, np.uint32)
        first = file.segment * segment_blocks
        kept = min(max(self._limits[key] - first, 0), segment_blocks)
        chunks = self._chunks[key]
        numbers = range(first // _CHUNK_BLOCKS, -(-(first + segment_blocks) // _CHUNK_BLOCKS))
        parts = [_numbers(chunks[n]) + np.uint32(n * _CHUNK_BLOCKS) for n in numbers if n in chunks]
        blocks = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint32)
        low, high = np.searchsorted(blocks, [first, first + segment_blocks])
        return kept, blocks[low:high] - np.uint32(first)


def _entries(data: bytes, name: str) -> Iterator[tuple[_Key, int, list[tuple[int, _Words]]]]:
    """Each fork with its limit block and its chunks: their number, and a list of blocks or a bitmap."""
    end = len(data) - _NUMBER.size
    if end < _NUMBER.size + len(_END) or _NUMBER.unpack_from(data)[0] != _MAGIC:
        raise DamageError(f"{name} is no WAL summary", path=name)
    if google_crc32c.value(data[:end]) != _NUMBER.unpack_from(data, end)[0]:
        raise DamageError(f"the checksum of {name} does not fit its contents", path=name)
    position = _NUMBER.size
    try:
        while data[position : position + len(_END)] != _END:
            *key, limit_block, count = _ENTRY.unpack_from(data, position)
            position += _ENTRY.size
            sizes = np.frombuffer(data, "<u2", count, position)
            position += 2 * count
            chunks = []
            for number in np.flatnonzero(sizes).tolist():
                chunks.append((number, np.frombuffer(data, "<u2", int(sizes[number]), position)))
                position += 2 * int(sizes[number])
            yield (key[0], key[1], key[2], key[3]), limit_block, chunks
    except (struct.error, ValueError):
        raise DamageError(f"{name} is cut off", path=name) from None
    if position + len(_END) != end:
        raise DamageError(f"{name} goes on after its end", path=name)


def _numbers(words: _Words) -> Blocks:
    """The blocks of a chunk, counted from its begin; the first word's least significant bit is the first block's."""
    if len(words) < _BITMAP_WORDS:
        return words.astype(np.uint32)
    bits = np.unpackbits(words.astype("<u2").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.uint32)


def _together(one: _Words, other: _Words) -> _Words:
    """The blocks of two chunks in one."""
    if len(one) < _BITMAP_WORDS and len(other) < _BITMAP_WORDS:
        blocks = np.union1d(one, other)
        return blocks if len(blocks) < _BITMAP_WORDS else _bitmap(blocks)
    bitmaps = [words if len(words) == _BITMAP_WORDS else _bitmap(words) for words in (one, other)]
    return bitmaps[0] | bitmaps[1]


def _bitmap(blocks: _Words) -> _Words:
    bits = np.zeros(_CHUNK_BLOCKS, np.uint8)
    bits[blocks] = 1
    return np.packbits(bits, bitorder="little").view("<u2")
