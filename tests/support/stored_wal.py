"""WAL of a running server into a repository, as a receiver leaves it there: whole segments, and a piece of the open one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.postgres.control_file import parse_control_file
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import SEGMENT_HEADER_SIZE, WalFileKind, classify, parse_segment_name, read_segment_header
from pgkeep.repository.wal_objects import piece_name
from support.servers import sql

if TYPE_CHECKING:
    from collections.abc import Container

    from pgkeep.postgres.server import Server
    from pgkeep.repository import Repository

__all__ = ["store_wal"]


def store_wal(server: Server, repository: Repository, *, leave_out: Container[str] = ()) -> LSN:
    """Bring all of a server's WAL into the repository but the segments in ``leave_out``; returns where it ends."""
    control = parse_control_file((server.data_directory / "global" / "pg_control").read_bytes())
    size = control.wal_segment_size
    archive = repository.wal(control.system_identifier)
    ((text, current),) = sql(
        server.dsn(), "SELECT pg_current_wal_flush_lsn()::text, pg_walfile_name(pg_current_wal_flush_lsn())"
    )
    end = LSN.parse(text)
    timeline = int(current[:8], 16)
    for path in sorted((server.data_directory / "pg_wal").iterdir()):
        kind = classify(path.name)
        if kind is WalFileKind.HISTORY:
            archive.put(path.name, path.read_bytes())
        elif kind is WalFileKind.SEGMENT and path.name not in leave_out:
            own, start = parse_segment_name(path.name, size)
            data = path.read_bytes()
            if read_segment_header(data[:SEGMENT_HEADER_SIZE]).page_address != start:
                continue
            if own < timeline or start + size <= end:
                archive.put(path.name, data)
            elif start < end:
                archive.put(piece_name(path.name, 0, end - start), data[: end - start])
    return end
