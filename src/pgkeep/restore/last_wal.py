"""The WAL that a server holds and a repository does not yet: what was committed after the last segment was shipped."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from pgkeep.errors import DamageError, PgkeepError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.control_file import ClusterState, ControlFile
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.running import identify_server, locate_server, read_control_file
from pgkeep.postgres.timeline import history_name
from pgkeep.postgres.wal import (
    SEGMENT_HEADER_SIZE,
    WalFileKind,
    check_segment_header,
    classify,
    parse_segment_name,
    read_segment_header,
    segment_name,
    segment_start,
)
from pgkeep.repository import Repository
from pgkeep.repository.wal_objects import piece_name
from pgkeep.wal.inventory import WalInventory

__all__ = ["end_of_wal", "save_last_wal", "save_running_wal"]

_SHORT_HEADER, _LONG_HEADER = 24, 40
_MAX_ALIGN = 8
_LONGEST_CHECKPOINT = 1024


def save_running_wal(dsn: str, data_directory: Path, repositories: Sequence[Repository]) -> list[str]:
    """Store what a running server has and the repositories lack, up to now: the segment that is being written, for one.

    Nothing is done where the server does not answer, or is a standby. Raises TargetError where ``dsn`` leads to another one.
    """
    control = read_control_file(data_directory)
    place = locate_server(dsn, data_directory)
    if control is None or place.answer is None:
        return []
    identify_server(place, control.system_identifier)
    with connect_sql(dsn) as connection:
        row = connection.execute(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END"
        ).fetchone()
    if row is None or row[0] is None:
        return []
    return save_last_wal(data_directory, control, repositories, flushed=LSN.parse(row[0]))


def save_last_wal(
    data_directory: Path, control: ControlFile, repositories: Sequence[Repository], *, flushed: LSN | None = None
) -> list[str]:
    """Store what a server has and the repositories lack; returns notes for the operator.

    ``flushed`` is how far a running server says that its WAL is on disk; None: it is stopped. Only after a shutdown in good order is it known where the WAL ends; after a crash whole segments are stored, but not the last.
    What cannot be stored is noted and no error: the WAL stays in the safety copy.
    """
    wal = data_directory / "pg_wal"
    end = end_of_wal(wal, control) if flushed is None else flushed
    notes = []
    if end is None:
        notes.append(
            f"the server was not shut down in good order: WAL after its last full segment is in {wal} only, not in the repository"
        )
    for repository in repositories:
        try:
            stored = _save(wal, control, end, repository)
        except (PgkeepError, OSError) as error:
            notes.append(f"the last WAL of the old server was not stored in {repository.store.url}: {error}")
            continue
        if stored:
            notes.append(f"{stored} WAL files that only the server had are stored in {repository.store.url}")
    return notes


def end_of_wal(wal: Path, control: ControlFile) -> LSN | None:
    """Where the WAL of a server that was shut down ends: behind the record of its last checkpoint. None where nobody knows.

    The record's length is its first field (src/include/access/xlogrecord.h); page headers lie in between where it crosses pages.
    """
    if control.state is not ClusterState.SHUTDOWNED:
        return None
    size, page = control.wal_segment_size, control.wal_block_size
    start = segment_start(control.checkpoint, size)
    try:
        with (wal / segment_name(control.timeline, start, size)).open("rb") as file:
            file.seek(control.checkpoint - start)
            (left,) = struct.unpack("<I", file.read(4))
    except (OSError, struct.error):
        return None
    if not _SHORT_HEADER <= left <= _LONGEST_CHECKPOINT:
        return None
    position = int(control.checkpoint)
    while left > (room := page - position % page):
        left -= room
        position += room
        position += _LONG_HEADER if position % size == 0 else _SHORT_HEADER
    return LSN(-(-(position + left) // _MAX_ALIGN) * _MAX_ALIGN)


def _save(wal: Path, control: ControlFile, end: LSN | None, repository: Repository) -> int:
    archive = repository.wal(control.system_identifier)
    size, timeline = control.wal_segment_size, control.timeline
    inventory = WalInventory.read(archive, size)
    stored = 0
    if timeline > 1 and not inventory.has_history(timeline) and (wal / history_name(timeline)).exists():
        archive.put(history_name(timeline), (wal / history_name(timeline)).read_bytes())
        stored += 1
    there = inventory.timelines.get(timeline)
    known = segment_start(control.checkpoint, size) if end is None else segment_start(end, size)
    starts = sorted(
        parse_segment_name(path.name, size)[1]
        for path in wal.iterdir()
        if classify(path.name) is WalFileKind.SEGMENT and int(path.name[:8], 16) == timeline
    )
    for start in starts:
        # segments behind the end are old ones, renamed for later use
        if start > known or (start == known and end in {None, start}):
            continue
        wanted = size if start < known or end is None else end - start
        have = there.end_in(start) if there is not None else 0
        if have >= wanted:
            continue
        name = segment_name(timeline, start, size)
        data = (wal / name).read_bytes()
        if len(data) != size:
            raise DamageError(f"{wal / name} has {len(data)} bytes instead of {size}", path=name)
        header = read_segment_header(data[:SEGMENT_HEADER_SIZE])
        identity = control.system_identifier
        check_segment_header(header, system_identifier=identity, timeline=timeline, start=start, segment_size=size)
        if wanted == size:
            archive.put(name, data)
        else:
            archive.put(piece_name(name, have, wanted), data[have:wanted])
        stored += 1
    return stored
