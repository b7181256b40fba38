"""What a cluster's tables held at one position of its WAL: row counts and hashes by ranges of blocks, small enough to keep.

A row's place (its ``ctid``) is the same on the source and on what is restored from its files, so that ranges of blocks split a table the
same way on both sides, with or without a primary key. The hash of a range is the sum of its rows' hashes: the order does not matter, and
rows that are twice there do not cancel each other out.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal

import msgspec

from pgkeep.errors import UsageError

__all__ = [
    "VERSION",
    "Column",
    "RangeSum",
    "SequenceFloor",
    "SourceFingerprints",
    "TableFingerprint",
    "decode_fingerprints",
    "encode_fingerprints",
    "range_is_sampled",
]

VERSION = 1


class Column(msgspec.Struct, frozen=True):
    """A column that is compared. ``cast`` is ``::oid`` or ``::oid[]`` where its text would be a name that others can change."""

    name: str
    cast: Literal["", "::oid", "::oid[]"] = ""


class RangeSum(msgspec.Struct, frozen=True):
    """The rows whose block is ``start`` or later, and before the next range's; ``total`` is the sum of their hashes.

    ``quiet``: nothing changed in it around the moment, as far as two snapshots can tell. A range of a locked table always is.
    """

    start: int
    rows: int
    total: str
    quiet: bool = True


class TableFingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A table at that moment.

    ``locked``: nobody could write while the moment was taken, so the sums are exact. ``ends`` maps a range's first block to the
    first one behind it, None for the last range, which has no end. ``blocks`` were there, ``sampled`` is the share that ``ranges`` cover.
    """

    database: str
    schema: str
    name: str
    columns: list[Column]
    key: list[str]
    locked: bool
    blocks: int
    range_blocks: int
    ranges: list[RangeSum]
    sampled: float = 1.0

    @property
    def rows(self) -> int:
        """The rows counted."""
        return sum(each.rows for each in self.ranges)

    def end_of(self, start: int) -> int | None:
        """The first block behind the range that begins at ``start``; None for the last, which goes on to the table's end."""
        end = start + self.range_blocks
        return None if self.range_blocks == 0 or end >= self.blocks else end


class SequenceFloor(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that had handed out ``value`` before the moment: one that is restored must not hand it out again."""

    database: str
    schema: str
    name: str
    increment: int
    value: int


class SourceFingerprints(msgspec.Struct, frozen=True, kw_only=True):
    """The source's side of a comparison.

    Recover to ``restore_point`` where there is one; else to ``lsn``, exclusively. ``snapshots`` are those of each database, as
    ``pg_current_snapshot()`` writes them: by them an unchanged row is known later. ``held`` is for how many seconds writers were shut
    out, ``attempts`` how often that was tried.
    """

    id: str
    mode: Literal["exact", "tolerance"]
    system_identifier: int
    server_major: int
    server_started: datetime
    """It tells the source from a copy of it."""
    timeline: int
    lsn: str
    restore_point: str | None
    time: datetime
    tables: list[TableFingerprint]
    sequences: list[SequenceFloor]
    snapshots: dict[str, str]
    attempts: int = 0
    held: float = 0.0
    seconds: float = 0.0
    notes: list[str] = []
    version: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(SourceFingerprints)


def encode_fingerprints(fingerprints: SourceFingerprints) -> bytes:
    """As JSON, to keep until the restore is there."""
    return _encoder.encode(fingerprints)


def decode_fingerprints(data: bytes) -> SourceFingerprints:
    """What `encode_fingerprints` made. Raises UsageError."""
    try:
        found = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"these are no fingerprints of a cluster: {error}", hint="pgkeep compare --begin FILE writes them"
        ) from None
    if found.version != VERSION:
        raise UsageError(
            f"the fingerprints are of version {found.version}, and this pgkeep knows {VERSION}",
            hint="compare with the version of pgkeep that wrote them",
        )
    return found


def range_is_sampled(seed: str, table: str, number: int, share: float) -> bool:
    """Whether a range of a table too large to be read whole is among those that are: by a hash, so that anyone can repeat it."""
    digest = hashlib.sha256(f"{seed}\0{table}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * (1 << 64)
