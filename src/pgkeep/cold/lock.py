"""Locks as long as the backups need them: what a newer backup shares with an older one is locked for as long as the newer one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pgkeep.cold.needs import packs_of
from pgkeep.errors import ConfigError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.locks import Extended, extend
from pgkeep.repository.manifests import BackupName, Manifest
from pgkeep.repository.repository import ROOT_NAME
from pgkeep.repository.storage_classes import StorageClasses, storage_classes
from pgkeep.units import utc_now

__all__ = ["LockReport", "run_lock", "shortest_lock"]


@dataclass
class LockReport:
    """``backups`` whose locks were looked at; of ``objects`` that they need ``extended`` were (or would be) locked for longer."""

    backups: list[str] = field(default_factory=list)
    objects: int = 0
    extended: int = 0
    missing: list[str] = field(default_factory=list)
    until: datetime | None = None


def run_lock(
    repository: Repository, progress: Progress | None = None, *, backup: str | None = None, dry_run: bool = False
) -> LockReport:
    """See that everything that backups need is locked for as long as each is to be: its age counts from when it was finished.

    ``backup``: that one alone. Raises ConfigError where nothing is locked, StoreError, DamageError.
    """
    progress = progress or Silent()
    classes, time = _classes(repository)
    manifests = list(repository.catalog.read_all()) if backup is None else [repository.catalog.find(backup)]
    report = LockReport()
    # the youngest first: what it needs is locked for long enough for all others then
    seen: set[str] = set()
    for manifest in sorted(manifests, key=lambda manifest: manifest.finished, reverse=True):
        until = manifest.finished + time
        if until <= utc_now():
            continue
        names = needed_objects(repository, manifest) - seen
        result: Extended = extend(classes, sorted(names), until, progress, dry_run=dry_run)
        seen |= names
        report.backups.append(manifest.id)
        report.objects += result.seen
        report.extended += result.extended
        report.missing += result.missing
        report.until = until if report.until is None else max(until, report.until)
    return report


def needed_objects(repository: Repository, manifest: Manifest) -> set[str]:
    """The objects without which a backup cannot be restored. Raises StoreError, DamageError."""
    archive = repository.wal(manifest.system_identifier)
    store = repository.store
    names = {info.name for prefix in ("keys/", "index/", "packs/meta/") for info in store.list(prefix)}
    names |= packs_of(repository, manifest)
    names |= {archive.object_name(name) for name in manifest.wal.segments}
    return names | {ROOT_NAME, BackupName(manifest.id, manifest.system_identifier).object_name}


def shortest_lock(repository: Repository, manifest: Manifest) -> datetime | None:
    """Until when the manifest of a backup is locked; None where it is not. Raises StoreError."""
    classes, _ = _classes(repository)
    name = BackupName(manifest.id, manifest.system_identifier).object_name
    return classes.state(name).locked_until


def _classes(repository: Repository) -> tuple[StorageClasses, timedelta]:
    classes = storage_classes(repository.store)
    lock = None if classes is None else classes.store.address.lock
    if classes is None or lock is None:
        raise ConfigError(
            f"{repository.store.url} locks nothing",
            hint='lock = "compliance" and lock_for = "14d" in its configuration',
        )
    if repository.capabilities is not None and not repository.capabilities.keeps_versions:
        raise StoreError(
            f"{repository.store.url} has no object lock",
            hint="make the bucket with object lock; it keeps versions then",
        )
    return classes, lock[1]
