"""Names and first bytes of WAL segments.

Source: src/include/access/xlog_internal.h. What an archive holds besides segments: PostgreSQL docs, 25.3 "Continuous
Archiving". Only little-endian servers are known.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN

__all__ = [
    "MAX_SEGMENT_SIZE",
    "MIN_SEGMENT_SIZE",
    "PAGE_MAGIC",
    "SEGMENT_HEADER_SIZE",
    "SegmentHeader",
    "WalFileKind",
    "check_segment_header",
    "classify",
    "parse_segment_name",
    "read_segment_header",
    "segment_name",
    "segment_start",
    "segments_between",
]

MIN_SEGMENT_SIZE = 1 << 20
MAX_SEGMENT_SIZE = 1 << 30
"""Bytes; the size is a power of two, chosen by initdb, 16 MiB by default."""

PAGE_MAGIC = {15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}
"""XLOG_PAGE_MAGIC of each major version: what the first two bytes of a WAL page are."""

SEGMENT_HEADER_SIZE = 40
"""Bytes of a segment that `read_segment_header` needs (SizeOfXLogLongPHD)."""

# XLogLongPageHeaderData: magic, info, timeline, page address, rest of a record, system identifier, segment size, block size
_LONG_HEADER = struct.Struct("<HHIQI4xQII")
_HAS_LONG_HEADER = 0x0002
# Every server since 8.0 has 0xD0 or 0xD1 as the high byte of its magic; a newer one may go on from there.
_MAGIC_HIGH_BYTES = range(0xD0, 0xE0)

_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})", re.ASCII)


class WalFileKind(StrEnum):
    """What a server hands to its ``archive_command``, told by the name alone."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    """The last segment of a timeline that ended: complete only up to where the next timeline branches off."""
    HISTORY = "history"
    BACKUP = "backup"
    """Says when a base backup started and stopped; nobody needs it for recovery."""


_KINDS = (
    (re.compile(r"[0-9A-F]{24}", re.ASCII), WalFileKind.SEGMENT),
    (re.compile(r"[0-9A-F]{24}\.partial", re.ASCII), WalFileKind.PARTIAL),
    (re.compile(r"[0-9A-F]{8}\.history", re.ASCII), WalFileKind.HISTORY),
    (re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup", re.ASCII), WalFileKind.BACKUP),
)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The header of a segment's first page. ``page_address`` is the LSN of the segment's first byte; sizes are bytes."""

    magic: int
    info: int
    timeline: int
    page_address: LSN
    system_identifier: int
    segment_size: int
    block_size: int

    @property
    def major_version(self) -> int | None:
        """Of the server that wrote it; None where the magic is not one of PAGE_MAGIC."""
        return next((major for major, magic in PAGE_MAGIC.items() if magic == self.magic), None)


def classify(name: str) -> WalFileKind | None:
    """The kind of file that a server archives under this name, or None for a name that it never uses."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), None)


def segment_start(lsn: int, segment_size: int) -> LSN:
    """The LSN of the first byte of the segment that holds the byte at ``lsn``."""
    return LSN(lsn - lsn % segment_size)


def segment_name(timeline: int, lsn: int, segment_size: int) -> str:
    """The name of the segment that holds the byte at ``lsn``; raises ValueError for a size that no server has."""
    _check_size(segment_size)
    number = lsn // segment_size
    per_id = (1 << 32) // segment_size
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def parse_segment_name(name: str, segment_size: int) -> tuple[int, LSN]:
    """Timeline and start LSN of a segment; raises ValueError for a name that no segment of this size has."""
    _check_size(segment_size)
    match = _SEGMENT.fullmatch(name)
    if match is None:
        raise ValueError(f"not the name of a WAL segment: {name!r}")
    timeline, log, segment = (int(part, 16) for part in match.groups())
    if timeline == 0 or segment >= (1 << 32) // segment_size:
        raise ValueError(f"not the name of a WAL segment of {segment_size} bytes: {name!r}")
    return timeline, LSN((log << 32) + segment * segment_size)


def segments_between(timeline: int, start: int, stop: int, segment_size: int) -> list[str]:
    """The names of the segments that hold the bytes from ``start`` up to but not including ``stop``, in order."""
    if stop <= start:
        return []
    first = segment_start(start, segment_size)
    return [segment_name(timeline, lsn, segment_size) for lsn in range(first, stop, segment_size)]


def read_segment_header(data: bytes | bytearray | memoryview) -> SegmentHeader:
    """The header from a segment's first SEGMENT_HEADER_SIZE bytes; raises DamageError where there is none."""
    if len(data) < SEGMENT_HEADER_SIZE:
        raise DamageError(f"a WAL segment begins with {SEGMENT_HEADER_SIZE} bytes of header, and here are {len(data)}")
    magic, info, timeline, address, _, system_identifier, segment_size, block_size = _LONG_HEADER.unpack_from(data)
    if magic >> 8 not in _MAGIC_HIGH_BYTES or not info & _HAS_LONG_HEADER:
        raise DamageError(
            f"this is no WAL segment: it begins with magic {magic:#06x} and flags {info:#06x}",
            hint="is the file zeroed, encrypted, compressed, or of another program?",
        )
    return SegmentHeader(magic, info, timeline, LSN(address), system_identifier, segment_size, block_size)


def check_segment_header(
    header: SegmentHeader, *, system_identifier: int, timeline: int, start: int, segment_size: int
) -> None:
    """Hold a segment's header against what its name and its cluster say; raises DamageError naming all that differs.

    The page may carry an older timeline than the name: the first segment of a new timeline begins as a copy of the last
    one of its parent (XLogInitNewTimeline in src/backend/access/transam/xlog.c).
    """
    differences = [
        f"{what} {found} instead of {wanted}"
        for what, found, wanted in (
            ("system identifier", header.system_identifier, system_identifier),
            ("start LSN", header.page_address, LSN(start)),
            ("segment size", header.segment_size, segment_size),
        )
        if found != wanted
    ]
    if not 0 < header.timeline <= timeline:
        differences.append(f"timeline {header.timeline} instead of {timeline} or one before it")
    if differences:
        name = segment_name(timeline, start, segment_size)
        raise DamageError(f"WAL segment {name} is another one: it has {', '.join(differences)}", path=name)


def _check_size(segment_size: int) -> None:
    if not MIN_SEGMENT_SIZE <= segment_size <= MAX_SEGMENT_SIZE or segment_size & (segment_size - 1):
        raise ValueError(f"not the size of a WAL segment: {segment_size} bytes")
