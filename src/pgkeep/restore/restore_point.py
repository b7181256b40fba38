"""A named moment in the WAL: created on the server, and waited for until a restore can go back to it.

A restore point is a record in the WAL, so nothing else has to be kept: its name and time are found where the WAL is read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from pgkeep.config import Cluster
from pgkeep.errors import NotFoundError, PgkeepError, ServerError, ServerSettingError, UsageError
from pgkeep.postgres.connection import connect_sql, quote_role
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import segment_name, segment_start
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.wal_objects import WalArchive, split_piece
from pgkeep.wal.inventory import TimelineWal, WalInventory
from pgkeep.wal.times import WalTimes

__all__ = ["RestorePoint", "check_restore_point_name", "create_restore_point"]

MAX_NAME_BYTES = 63
"""MAXFNAMELEN, less its closing NUL (src/include/access/xlog_internal.h)."""

_FIRST_POLL, _LONGEST_POLL = 0.2, 2.0

_FACTS = """
    SELECT pg_is_in_recovery(), current_setting('wal_level'), current_setting('archive_mode'),
           has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE'),
           has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE'),
           (pg_control_system()).system_identifier, pg_size_bytes(current_setting('wal_segment_size')),
           EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s AND active), current_user, current_database()
"""
_CREATE = """
    WITH point AS MATERIALIZED (SELECT pg_create_restore_point(%s) AS lsn)
    SELECT lsn::text, pg_walfile_name(lsn), clock_timestamp() FROM point
"""


@dataclass
class RestorePoint:
    """A restore point. ``durable`` maps the name of each repository to whether the WAL that holds it has arrived there.

    ``lsn`` is the end of its record, as PostgreSQL reports it. ``kept`` is whether that is enough of them, as the cluster's
    WAL policy says.
    """

    name: str
    lsn: LSN
    time: datetime
    timeline: int
    durable: dict[str, bool] = field(default_factory=dict)
    kept: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Server:
    archives: bool
    may_switch: bool
    system_identifier: int
    segment_size: int
    receiver_runs: bool


def check_restore_point_name(name: str) -> None:
    """Raise UsageError for a name that the server refuses, cuts, or that nobody could type again."""
    size = len(name.encode("utf-8", "surrogateescape"))
    what = None
    if not name.strip():
        what = "it is empty"
    elif size > MAX_NAME_BYTES:
        what = f"it has {size} bytes"
    elif not name.isprintable():
        what = "it holds characters that cannot be seen"
    elif name != name.strip():
        what = "it begins or ends with a space"
    if what is not None:
        raise UsageError(
            f"{name!r} cannot be a restore point's name: {what}",
            hint=f"use letters, digits, - and _, {MAX_NAME_BYTES} bytes at most, like before-migration-42",
        )


def create_restore_point(
    name: str,
    cluster: Cluster,
    repositories: Sequence[tuple[str, Repository]],
    *,
    wait: float,
    progress: Progress | None = None,
) -> RestorePoint:
    """Create it, and wait up to ``wait`` seconds until the repositories hold its WAL.

    ``repositories`` are the cluster's, opened, each with its name. Raises UsageError for a bad name, ServerSettingError where the
    role may not, ServerError for a standby. That the WAL has not arrived is no error here: see ``kept``.
    """
    progress = progress or Silent()
    check_restore_point_name(name)
    with connect_sql(cluster.dsn) as connection:
        server = _ask(connection, cluster)
        notes = _same_name(name, server, repositories)
        row = connection.execute(_CREATE, (name,)).fetchone()
        assert row is not None
        point = RestorePoint(name, LSN.parse(row[0]), row[2], int(row[1][:8], 16), notes=notes)
        comes = _see_to_it(connection, server, cluster, point)
    archives = {where: repository.wal(server.system_identifier) for where, repository in repositories}
    progress.phase("waiting for the WAL to arrive")
    _wait(point, archives, server, cluster, wait if comes else 0.0)
    _look_for_backups(point, cluster, repositories, server)
    return point


def _ask(connection: psycopg.Connection[tuple[object, ...]], cluster: Cluster) -> _Server:
    """What the server is and allows. Raises ServerError, ServerSettingError where no restore point can be made."""
    row = connection.execute(_FACTS, (cluster.slot,)).fetchone()
    assert row is not None
    in_recovery, level, archive_mode, may_create, may_switch, identifier, segment_size, active, role, database = row
    endpoint = endpoint_of(cluster.dsn)
    if in_recovery:
        raise ServerError(
            f"{endpoint} is a standby: a restore point is written into the WAL, which only the primary does",
            hint="name the primary in the DSN",
        )
    if level == "minimal":
        raise ServerSettingError(
            f"wal_level at {endpoint} is minimal, which leaves restore points out",
            hint="ALTER SYSTEM SET wal_level = replica; then restart the server",
        )
    if not may_create:
        raise ServerSettingError(
            f"role {role!r} at {endpoint} may not create restore points",
            hint=f"as superuser in database {database}: GRANT EXECUTE ON FUNCTION "
            f"pg_catalog.pg_create_restore_point(text), pg_catalog.pg_switch_wal() TO {quote_role(str(role))};",
        )
    return _Server(archive_mode != "off", bool(may_switch), int(str(identifier)), int(str(segment_size)), bool(active))


def _same_name(name: str, server: _Server, repositories: Sequence[tuple[str, Repository]]) -> list[str]:
    """A note where the WAL has a restore point of this name already."""
    for _, repository in repositories:
        archive = repository.wal(server.system_identifier)
        inventory = WalInventory.read(archive, server.segment_size)
        same = [
            point
            for point in WalTimes(repository, server.system_identifier, inventory).restore_points()
            if point.name == name
        ]
        if same:
            return [f"there is a restore point {name!r} already; a restore to that name stops at the first it meets"]
    return []


def _see_to_it(
    connection: psycopg.Connection[tuple[object, ...]], server: _Server, cluster: Cluster, point: RestorePoint
) -> bool:
    """Hurry the WAL on where it waits for a segment to fill; whether anything brings it to the repositories at all."""
    if server.receiver_runs:
        return True
    if not server.archives:
        point.notes.append(
            f"nothing brings WAL to the repositories now: archive_mode is off, and nobody reads slot {cluster.slot}"
        )
        return False
    if server.may_switch:
        connection.execute("SELECT pg_switch_wal()")
    else:
        point.notes.append(
            "it is archived once its segment is full: GRANT EXECUTE ON FUNCTION pg_switch_wal() hurries it"
        )
    return True


def _wait(
    point: RestorePoint, archives: dict[str, WalArchive], server: _Server, cluster: Cluster, seconds: float
) -> None:
    deadline, pause = time.monotonic() + seconds, _FIRST_POLL
    enough = all if cluster.wal.policy == "all" else any
    while True:
        for where, archive in archives.items():
            point.durable[where] = point.durable.get(where, False) or _has_arrived(archive, point, server.segment_size)
        point.kept = enough(point.durable.values())
        left = deadline - time.monotonic()
        if point.kept or left <= 0:
            return
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_POLL)


def _has_arrived(archive: WalArchive, point: RestorePoint, segment_size: int) -> bool:
    """Whether the repository has the restore point's segment up to its record; reads one listing."""
    start = segment_start(point.lsn - 1, segment_size)
    wanted = segment_name(point.timeline, start, segment_size)
    wal = TimelineWal(point.timeline, segment_size)
    for name, _ in archive.names(point.timeline, start >> 32):
        segment, first, end = split_piece(name)
        if segment == wanted and end is None:
            return True
        if segment == wanted and end is not None:
            wal.pieces.setdefault(start, []).append((first, end))
    return start + wal.end_in(start) >= point.lsn


def _look_for_backups(
    point: RestorePoint, cluster: Cluster, repositories: Sequence[tuple[str, Repository]], server: _Server
) -> None:
    """Notes where the point has arrived, and still nothing could be restored to it."""
    for where, repository in repositories:
        if not point.durable[where]:
            continue
        try:
            manifest = repository.catalog.find("latest", cluster.name)
            inventory = WalInventory.read(repository.wal(server.system_identifier), server.segment_size)
            reached = inventory.reach(inventory.history(point.timeline), manifest.wal.start_lsn)
        except NotFoundError as error:
            point.notes.append(f"nothing can be restored to it from repository {where}: {error}")
            continue
        except PgkeepError as error:
            point.notes.append(f"whether it can be restored to from repository {where} is not known: {error}")
            continue
        if reached < point.lsn:
            point.notes.append(f"the WAL in repository {where} has a gap before it: pgkeep wal status")
