"""``global/pg_control``: what a cluster knows of itself (src/include/catalog/pg_control.h of PostgreSQL 13 to 18).

The layout is that of a little-endian machine with 8-byte alignment, the only kind that current packages are built for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import google_crc32c

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN

__all__ = ["CONTROL_FILE", "CONTROL_FILE_SIZE", "ClusterState", "ControlFile", "parse_control_file"]

CONTROL_FILE: Final = "global/pg_control"
CONTROL_FILE_SIZE: Final = 8192

_VERSION_OFFSET = 8


class ClusterState(StrEnum):
    """DBState, in pg_controldata's words."""

    STARTUP = "starting up"
    SHUTDOWNED = "shut down"
    SHUTDOWNED_IN_RECOVERY = "shut down in recovery"
    SHUTDOWNING = "shutting down"
    IN_CRASH_RECOVERY = "in crash recovery"
    IN_ARCHIVE_RECOVERY = "in archive recovery"
    IN_PRODUCTION = "in production"


_STATES = tuple(ClusterState)
_WAL_LEVELS = ("minimal", "replica", "logical")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFile:
    """The contents of pg_control; sizes are bytes unless said otherwise, an LSN of 0 means "none"."""

    system_identifier: int
    control_version: int
    catalog_version: int
    state: ClusterState
    time: datetime
    """When the file was last written."""
    checkpoint: LSN
    """Where the latest checkpoint's record is."""
    redo: LSN
    """Where recovery from that checkpoint begins."""
    timeline: int
    prev_timeline: int
    full_page_writes: bool
    next_xid: int
    """64 bits: epoch and transaction id."""
    next_oid: int
    oldest_xid: int
    checkpoint_time: datetime
    min_recovery_point: LSN
    min_recovery_point_timeline: int
    backup_start_point: LSN
    backup_end_point: LSN
    backup_end_required: bool
    wal_level: str
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    track_commit_timestamp: bool
    block_size: int
    relseg_size: int
    """Blocks in one segment of a relation."""
    wal_block_size: int
    wal_segment_size: int
    data_checksum_version: int
    """0 where data pages carry no checksums."""

    @property
    def data_checksums(self) -> bool:
        """Whether data pages carry checksums."""
        return self.data_checksum_version > 0


_CHECKPOINT_COPY = (
    "redo:Q timeline:I prev_timeline:I full_page_writes:? {checkpoint_wal_level}next_xid:Q next_oid:I next_multi:I "
    "next_multi_offset:I oldest_xid:I oldest_xid_db:I oldest_multi:I oldest_multi_db:I checkpoint_time:q "
    "oldest_commit_ts_xid:I newest_commit_ts_xid:I oldest_active_xid:I checkpoint_end:0Q "
)
_CONTROL_FILE = (
    "system_identifier:Q control_version:I catalog_version:I state:I time:q checkpoint:Q "
    + _CHECKPOINT_COPY
    + "unlogged_lsn:Q min_recovery_point:Q min_recovery_point_timeline:I backup_start_point:Q backup_end_point:Q "
    "backup_end_required:? wal_level:i wal_log_hints:? max_connections:i max_worker_processes:i max_wal_senders:i "
    "max_prepared_transactions:i max_locks_per_transaction:i track_commit_timestamp:? max_align:I float_format:d "
    "block_size:I relseg_size:I wal_block_size:I wal_segment_size:I name_data_len:I index_max_keys:I "
    "toast_max_chunk_size:I large_object_block_size:I float8_by_value:? data_checksum_version:I {char_signedness}"
    "mock_authentication_nonce:32s crc:I"
)


def _layout(fields: str) -> tuple[struct.Struct, tuple[str, ...]]:
    """A C struct from its members, ``name:type`` each, padded as a 64-bit compiler pads it; ``0Q`` only aligns."""
    layout, names = "<", []
    for field in fields.split():
        name, kind = field.split(":")
        alignment = 1 if kind.endswith("s") else struct.calcsize(f"<{kind[-1]}")
        layout += f"{-struct.calcsize(layout) % alignment}x"
        if kind[0] != "0":
            layout += kind
            names.append(name)
    return struct.Struct(layout), tuple(names)


_WAL_LEVEL, _SIGNEDNESS = "checkpoint_wal_level:i ", "default_char_signedness:? "
# By PG_CONTROL_VERSION: 1300 is that of PostgreSQL 13 to 16, 1700 and 1800 those of 17 and 18.
_LAYOUTS = {
    1300: _layout(_CONTROL_FILE.format(checkpoint_wal_level="", char_signedness="")),
    1700: _layout(_CONTROL_FILE.format(checkpoint_wal_level=_WAL_LEVEL, char_signedness="")),
    1800: _layout(_CONTROL_FILE.format(checkpoint_wal_level=_WAL_LEVEL, char_signedness=_SIGNEDNESS)),
}
_POSITIONS = frozenset({"checkpoint", "redo", "min_recovery_point", "backup_start_point", "backup_end_point"})
_TIMES = frozenset({"time", "checkpoint_time"})


def parse_control_file(data: bytes) -> ControlFile:
    """The contents of a pg_control file; more than its first few hundred bytes is not looked at.

    Raises DamageError where the checksum does not fit, as when the file was read while the server wrote it, and for
    versions other than those of PostgreSQL 13 to 18.
    """
    if len(data) < _VERSION_OFFSET + 4:
        raise DamageError(f"{CONTROL_FILE} has only {len(data)} bytes", path=CONTROL_FILE)
    (version,) = struct.unpack_from("<I", data, _VERSION_OFFSET)
    if version not in _LAYOUTS:
        raise DamageError(
            f"{CONTROL_FILE} is of version {version}, and only {', '.join(map(str, _LAYOUTS))} are known",
            hint="is it the file of a newer PostgreSQL than 18, or of a machine with another byte order?",
            path=CONTROL_FILE,
        )
    layout, names = _LAYOUTS[version]
    if len(data) < layout.size:
        raise DamageError(f"{CONTROL_FILE} has only {len(data)} bytes", path=CONTROL_FILE)
    values = dict(zip(names, layout.unpack_from(data), strict=True))
    if google_crc32c.value(bytes(data[: layout.size - 4])) != values["crc"]:
        raise DamageError(
            f"the checksum of {CONTROL_FILE} does not fit its contents",
            hint="if the server was running, read the file again; else restore it from a backup",
            path=CONTROL_FILE,
        )
    return _control_file(values)


def _control_file(values: dict[str, int]) -> ControlFile:
    known = {name: values[name] for name in ControlFile.__dataclass_fields__}
    special = {
        "state": _named(_STATES, values["state"], "state"),
        "wal_level": _named(_WAL_LEVELS, values["wal_level"], "wal_level"),
        **{name: LSN(values[name]) for name in _POSITIONS},
        **{name: datetime.fromtimestamp(values[name], UTC) for name in _TIMES},
    }
    return ControlFile(**{**known, **special})  # type: ignore[arg-type]  # the names are those of the layout


def _named(names: tuple[str, ...], number: int, what: str) -> str:
    if not 0 <= number < len(names):
        raise DamageError(f"{CONTROL_FILE} holds an unknown {what}: {number}", path=CONTROL_FILE)
    return names[number]
