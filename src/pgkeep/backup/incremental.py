"""What a backup rests on: the parent, whether the server can tell what changed since, and why not where it cannot."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgkeep.backup.request import BackupRequest, ServerShape
from pgkeep.errors import DamageError
from pgkeep.postgres.layout import Fork, parse_relation_path
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import ReplicationConnection, SystemIdentity
from pgkeep.postgres.timeline import TimelineHistory, parse_history
from pgkeep.postgres.upload_manifest import upload_manifest
from pgkeep.repository import Repository
from pgkeep.repository.distrust import read_distrusted
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.store import ObjectMissing
from pgkeep.units import format_time

if TYPE_CHECKING:
    from pgkeep.backup.parent import ParentBackup
    from pgkeep.postgres.truncations import Truncations

__all__ = [
    "BackupPlan",
    "is_deep_checked",
    "is_on_history",
    "manifest_to_upload",
    "paths_to_upload",
    "plan_backup",
    "server_history",
]

_FIRST_WITH_INCREMENTAL = 170000


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """How a backup is read.

    ``parent`` is the backup that its pages are compared with, None where there is none or none is wanted;
    ``incremental`` says that only changes since it are read; ``explained``, that WAL explains every difference between the
    two; ``reasons``, why everything is read; ``mends``, that it is read since packs of the repository are damaged.
    """

    parent: Manifest | None = None
    incremental: bool = False
    explained: bool = False
    reasons: list[str] = field(default_factory=list)
    mends: bool = False

    @property
    def number(self) -> int:
        """The number of the backup: one more than its parent's."""
        return 0 if self.parent is None else self.parent.number + 1

    def read_fully(self, reason: str) -> BackupPlan:
        """The same, but that everything is read."""
        return BackupPlan(self.parent, incremental=False, explained=self.explained, reasons=[*self.reasons, reason])

    def without_parent(self, reason: str) -> BackupPlan:
        """A first backup."""
        return BackupPlan(reasons=[*self.reasons, reason])


def plan_backup(
    request: BackupRequest,
    repository: Repository,
    identity: SystemIdentity,
    shape: ServerShape,
    history: TimelineHistory,
    *,
    local: bool,
) -> BackupPlan:
    """Choose the parent: the newest backup of the cluster that lies on the server's history, and has pages like it.

    Where there is none on the history, the newest one still serves to compare with. ``local``: the data directory is read,
    and what the server can tell is not asked. Raises StoreError.
    """
    if request.full:
        return BackupPlan(reasons=["a full read was asked for"])
    if (damage := _damage_to_mend(repository, identity.system_identifier, request.cluster)) is not None:
        return BackupPlan(reasons=[damage], mends=True)
    reasons: list[str] = []
    newest: Manifest | None = None
    for manifest in _backups(repository, identity.system_identifier, request.cluster, reasons):
        if not _has_same_pages(manifest, repository, shape):
            reasons.append(f"the server's pages are no longer of the kind that backup {manifest.id} has")
            break
        newest = newest or manifest
        if manifest.data_checksums != shape.data_checksums:
            reasons.append(
                f"page checksums were turned {'on' if shape.data_checksums else 'off'} since backup {manifest.id}"
            )
            break
        if is_on_history(manifest, history, identity.flush_lsn):
            blocker = None if local else _blocker(shape)
            reasons += [blocker] if blocker else []
            return BackupPlan(manifest, incremental=blocker is None, explained=True, reasons=reasons)
        reasons.append(
            f"backup {manifest.id} ends at {LSN(manifest.stop_lsn)} on timeline {manifest.timeline},"
            " which is not in the server's past"
        )
    return BackupPlan(newest, reasons=reasons or [_why_first(repository, request.cluster)])


def _damage_to_mend(repository: Repository, system_identifier: int, cluster: str) -> str | None:
    """What was found damaged since everything was last stored without a look at an earlier backup."""
    packs = read_distrusted(repository.store)
    if not packs:
        return None
    found = max(packs.values())
    for manifest in _backups(repository, system_identifier, cluster, []):
        if manifest.started < found:
            break
        if not manifest.parent:
            return None
    return (
        f"{len(packs)} packs of the repository are damaged, {min(packs)} first, found at {format_time(found)}:"
        " what they held and the server has is stored anew"
    )


def server_history(connection: ReplicationConnection, identity: SystemIdentity) -> TimelineHistory:
    """The path of timelines that the server has come along. Raises ServerError, DamageError."""
    if identity.timeline == 1:
        return TimelineHistory(1)
    _, content = connection.timeline_history(identity.timeline)
    return parse_history(identity.timeline, content)


def is_on_history(manifest: Manifest, history: TimelineHistory, flush_lsn: int) -> bool:
    """Whether the server has come past the end of a backup."""
    if manifest.timeline not in history.timelines:
        return False
    end = history.end_of(manifest.timeline)
    return manifest.stop_lsn <= (flush_lsn if end is None else end)


def manifest_to_upload(parent: Manifest, paths: Iterator[bytes]) -> Iterator[bytes]:
    """What the server is told of the parent: its WAL, and the files of which only changes are wanted."""
    return upload_manifest(
        paths,
        system_identifier=parent.system_identifier,
        timeline=parent.timeline,
        start_lsn=parent.start_lsn,
        stop_lsn=parent.stop_lsn,
    )


def paths_to_upload(
    plan: BackupPlan, parent: ParentBackup, truncations: Truncations, deep_check: float
) -> Iterator[bytes]:
    """The files of which only changes are wanted; the server sends every other whole.

    Those are main forks of relations, in whole pages. Free space maps are not fully logged, nor are visibility maps on
    servers before 17.11 and 18.5, whatever their WAL summaries say. Left out are segments that were truncated, of which a
    server may send less than what changed, files with damaged pages, and those that are due for a deep check.
    """
    page_size, segment_blocks = parent.manifest.page_size, parent.manifest.segment_blocks
    damaged = {page.path for page in parent.manifest.damaged_pages}
    for directory in parent.directories():
        for entry in parent.entries(directory.path):
            path = os.path.join(directory.path, entry.name)
            relation = parse_relation_path(path)
            if (
                relation is not None
                and relation.fork is Fork.MAIN
                and entry.size % page_size == 0
                and path not in damaged
                and not truncations.is_cut(relation, segment_blocks)
                and not is_deep_checked(path, plan.number, deep_check)
            ):
                yield path


def is_deep_checked(path: bytes, number: int, share: float) -> bool:
    """Whether a file is read whole in the backup of this number though the server could tell its changes.

    ``share`` of all files are, others in each backup, so that after 1 / ``share`` of them every file has been.
    """
    if share <= 0:
        return False
    rounds = max(round(1 / share), 1)
    return zlib.crc32(path) % rounds == number % rounds


def _backups(repository: Repository, system_identifier: int, cluster: str, damaged: list[str]) -> Iterator[Manifest]:
    """The backups of the cluster, newest first; those that cannot be read are passed over, and ``damaged`` says so."""
    catalog = repository.catalog
    for name in reversed(catalog.names()):
        if name.system_identifier == system_identifier:
            try:
                manifest = catalog.read(name)
            except DamageError as error:
                damaged.append(str(error))
                continue
            except ObjectMissing:
                # expired since the listing
                continue
            if manifest.cluster == cluster:
                yield manifest


def _why_first(repository: Repository, cluster: str) -> str:
    for other in repository.clusters():
        newest = next(_backups(repository, other, cluster, []), None)
        if newest is not None:
            return f"backup {newest.id} is of another server: its system identifier is {other}"
    return "it is the first backup of this cluster in this repository"


def _has_same_pages(manifest: Manifest, repository: Repository, shape: ServerShape) -> bool:
    return (
        manifest.page_size == repository.parameters.page_size == manifest.block_size == shape.block_size
        and manifest.segment_blocks == shape.segment_blocks
        and manifest.server_version // 10000 == shape.version // 10000
    )


def _blocker(shape: ServerShape) -> str | None:
    """Why the server cannot tell what changed, where that is known before it is asked."""
    if shape.version < _FIRST_WITH_INCREMENTAL:
        return (
            f"PostgreSQL {shape.version // 10000} cannot tell what changed (17 and later can): everything is read, and"
            " only what changed is stored"
        )
    if not shape.summarize_wal:
        return (
            "summarize_wal is off, so that the server cannot tell what changed"
            " (ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();)"
        )
    return None
