"""What records of the WAL say: when a transaction ended, and which; restore points, checkpoints.

Sources: xact.h (ParseCommitRecord and ParseAbortRecord in src/backend/access/rmgrdesc/xactdesc.c), xlog_internal.h and
catalog/pg_control.h of PostgreSQL 15 to 18; the parts of a record: xlogrecord.h.
"""

from __future__ import annotations

import struct
from typing import Final

from pgkeep.postgres.wal_pages import RECORD_HEADER_SIZE

__all__ = ["KINDS", "NO_KIND", "OTHER", "POSTGRES_EPOCH", "RM_XACT", "RM_XLOG", "decode_record", "kind_of"]

KINDS: Final = ("commit", "abort", "restore_point", "checkpoint", "end_of_recovery", "switch", "other")
COMMIT, ABORT, RESTORE_POINT, CHECKPOINT, END_OF_RECOVERY, SWITCH, OTHER = range(7)
NO_KIND = 255

RM_XLOG, RM_XACT = 0, 1

POSTGRES_EPOCH = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970: where PostgreSQL counts from."""

_XLOG_KINDS = {0x00: CHECKPOINT, 0x10: CHECKPOINT, 0x40: SWITCH, 0x70: RESTORE_POINT, 0x90: END_OF_RECOVERY}
_XACT_KINDS = {0x00: COMMIT, 0x20: ABORT, 0x30: COMMIT, 0x40: ABORT}
_PREPARED = {0x30, 0x40}
_XACT_OPERATION, _HAS_INFO = 0x70, 0x80

_BLOCK_DATA_SHORT, _BLOCK_DATA_LONG, _BLOCK_ORIGIN, _BLOCK_TOPLEVEL_XID = 255, 254, 253, 252

_HAS_DBINFO, _HAS_SUBXACTS, _HAS_RELFILES, _HAS_INVALS, _HAS_TWOPHASE = 0x01, 0x02, 0x04, 0x08, 0x10
_HAS_DROPPED_STATS = 0x100
_DBINFO_SIZE, _SUBXACT_SIZE, _RELFILE_SIZE, _INVAL_SIZE = 8, 4, 12, 16
_MAGIC_18 = 0xD118
"""From here on the object of a dropped statistics entry has 64 bits (xl_xact_stats_item)."""

_CHECKPOINT_TIME_OFFSET = 64
"""Of ``time`` in struct CheckPoint; wal_level, new in 17, took the place of padding."""
_RESTORE_POINT_NAME = 8
_MAX_NAME = 64

_U32 = struct.Struct("<I")
_I64 = struct.Struct("<q")
_HEAD = struct.Struct("<IIQBB")


def kind_of(resource_manager: int, info: int) -> int:
    """The kind of a record, an index into KINDS, or NO_KIND for those that no time or target hangs on."""
    if resource_manager == RM_XACT:
        return _XACT_KINDS.get(info & _XACT_OPERATION, NO_KIND)
    if resource_manager == RM_XLOG:
        return _XLOG_KINDS.get(info & 0xF0, NO_KIND)
    return NO_KIND


def decode_record(record: bytes, magic: int) -> tuple[int | None, int, bytes | None]:
    """Time (microseconds since 1970), xid (0 for none) and name of a record of one of the KINDS.

    ``magic`` is that of the WAL's pages, 0 where it is not known. Raises ValueError for a record that is not laid out so.
    """
    _, xid, _, info, resource_manager = _HEAD.unpack_from(record)
    kind = kind_of(resource_manager, info)
    try:
        data = _main_data(record)
        if kind in {COMMIT, ABORT}:
            if info & _XACT_OPERATION in _PREPARED:
                xid = _prepared_xid(data, info, magic)
            return _I64.unpack_from(data)[0] + POSTGRES_EPOCH, xid, None
        if kind == RESTORE_POINT:
            name = data[_RESTORE_POINT_NAME : _RESTORE_POINT_NAME + _MAX_NAME].split(b"\0", 1)[0]
            return _I64.unpack_from(data)[0] + POSTGRES_EPOCH, 0, name
        if kind == CHECKPOINT:
            return _I64.unpack_from(data, _CHECKPOINT_TIME_OFFSET)[0] * 1_000_000, 0, None
        if kind == END_OF_RECOVERY:
            return _I64.unpack_from(data)[0] + POSTGRES_EPOCH, 0, None
    except (struct.error, IndexError):
        raise ValueError(f"a record of kind {KINDS[kind]} ends too early") from None
    return None, xid, None


def _main_data(record: bytes) -> bytes:
    """The data of a record without blocks; the header of the main data is the last of the headers."""
    place = RECORD_HEADER_SIZE
    while place < len(record):
        block = record[place]
        if block == _BLOCK_DATA_SHORT:
            return record[place + 2 : place + 2 + record[place + 1]]
        if block == _BLOCK_DATA_LONG:
            return record[place + 5 : place + 5 + _U32.unpack_from(record, place + 1)[0]]
        if block == _BLOCK_ORIGIN:
            place += 3
        elif block == _BLOCK_TOPLEVEL_XID:
            place += 5
        else:
            raise ValueError(f"a record without blocks has block {block}")
    return b""


def _prepared_xid(data: bytes, info: int, magic: int) -> int:
    """The transaction that was prepared: the record's own xid is that of the session that ended it."""
    place = _I64.size
    flags = _U32.unpack_from(data, place)[0] if info & _HAS_INFO else 0
    place += _U32.size
    if flags & _HAS_DROPPED_STATS and magic == 0:
        return 0
    if flags & _HAS_DBINFO:
        place += _DBINFO_SIZE
    for present, size in (
        (_HAS_SUBXACTS, _SUBXACT_SIZE),
        (_HAS_RELFILES, _RELFILE_SIZE),
        (_HAS_DROPPED_STATS, 16 if magic >= _MAGIC_18 else 12),
        (_HAS_INVALS, _INVAL_SIZE),
    ):
        if flags & present:
            place += 4 + size * int(_U32.unpack_from(data, place)[0])
    if not flags & _HAS_TWOPHASE:
        raise ValueError("the end of a prepared transaction does not name it")
    return int(_U32.unpack_from(data, place)[0])
