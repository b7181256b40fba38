"""What a backup is asked for, and what must be known of the server before it begins."""

from __future__ import annotations

from typing import Literal

import msgspec

from pgkeep.errors import ServerSettingError
from pgkeep.postgres.replication import ReplicationConnection
from pgkeep.units import parse_size

__all__ = ["BackupRequest", "ServerShape", "server_shape"]

_OLDEST_SERVER = 150000
_FIRST_WITH_SUMMARIES = 170000
_CHECKED_BLOCK_SIZE = 8192


class BackupRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is to be. ``rate`` in bytes a second; ``jobs`` worker threads, all processors where None.

    ``full`` asks for a complete read that rests on no other backup. ``mode`` is where pages come from: the replication
    protocol (``stream``), the data directory itself (``local``), or what is best (``auto``). ``data_directory`` is where
    that is on this machine; None: where the server says it is. ``deep_check`` is the share of files that an incremental
    reads whole to compare them with the backup before.
    """

    cluster: str
    dsn: str
    label: str = "pgkeep"
    jobs: int | None = None
    rate: int | None = None
    fast_checkpoint: bool = True
    full: bool = False
    mode: Literal["auto", "stream", "local"] = "auto"
    data_directory: str | None = None
    deep_check: float = 1 / 30


class ServerShape(msgspec.Struct, frozen=True):
    """What a server says of itself; sizes in bytes."""

    version: int
    block_size: int
    segment_blocks: int
    wal_segment_size: int
    data_checksums: bool
    summarize_wal: bool
    in_recovery: bool

    @property
    def has_checked_pages(self) -> bool:
        """Whether pages have checksums that can be checked here; all but a handful of servers have blocks of 8 KiB."""
        return self.data_checksums and self.block_size == _CHECKED_BLOCK_SIZE


def server_shape(connection: ReplicationConnection) -> ServerShape:
    """Ask the server. Raises ServerError, ServerSettingError where it is too old."""
    version = connection.server_version
    if version < _OLDEST_SERVER:
        raise ServerSettingError(
            f"the server is PostgreSQL {version // 10000}; pgkeep backs up version 15 and later",
            hint="upgrade the server",
        )
    block_size = int(connection.show("block_size"))
    return ServerShape(
        version=version,
        block_size=block_size,
        segment_blocks=parse_size(connection.show("segment_size")) // block_size,
        wal_segment_size=parse_size(connection.show("wal_segment_size")),
        data_checksums=connection.show("data_checksums") == "on",
        summarize_wal=version >= _FIRST_WITH_SUMMARIES and connection.show("summarize_wal") == "on",
        in_recovery=connection.show("in_hot_standby") == "on",
    )
