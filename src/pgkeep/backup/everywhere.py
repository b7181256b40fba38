"""One backup for all repositories of a cluster: the server is read once, and what was stored is copied to the others.

The backup is taken into the repository that has the newest backup of the cluster, since least must be read for it; of several, into one
on a file system before one in a bucket, then in the order of the configuration. From there the others get it, and what they missed
while they were away: in each, a backup exists once it is whole there. A repository that fails stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pgkeep.backup.job import run_backup
from pgkeep.backup.request import BackupRequest
from pgkeep.errors import BusyError, DamageError, KeyFailure, PgkeepError, RepositoryError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.store import ObjectMissing

__all__ = ["Stored", "run_backup_everywhere"]

_OWN_FAULT = (StoreError, RepositoryError, BusyError, KeyFailure, DamageError)
"""Errors that say that a repository cannot be used; another one may."""


@dataclass
class Stored:
    """What became of the backup in one repository: ``manifest``, as that has it, or the ``error`` why it is behind.

    ``caught_up`` are the ids of earlier backups that it had missed and has now.
    """

    name: str
    manifest: Manifest | None = None
    error: PgkeepError | None = None
    caught_up: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Open:
    stored: Stored
    repository: Repository
    newest: str


def run_backup_everywhere(
    request: BackupRequest,
    repositories: Sequence[tuple[str, Callable[[], Repository]]],
    progress: Progress | None = None,
) -> list[Stored]:
    """Take one backup and store it in every repository, given by name and how to open it; the outcomes, in their order.

    Raises what `run_backup` does where no repository has taken it: of several errors the first.
    """
    progress = progress or Silent()
    if len(repositories) == 1:
        name, open_it = repositories[0]
        return [Stored(name, run_backup(request, open_it(), progress))]
    outcomes = [Stored(name) for name, _ in repositories]
    opened = []
    for stored, (_, open_it) in zip(outcomes, repositories, strict=True):
        try:
            repository = open_it()
            opened.append(_Open(stored, repository, _newest(repository, request.cluster)))
        except _OWN_FAULT as error:
            _failed(stored, error, progress)
    first = _take(request, opened, progress)
    if first is None:
        raise next(stored.error for stored in outcomes if stored.error is not None)
    for each in opened:
        if each is not first and each.stored.error is None:
            _bring(request, first, each, progress)
    return outcomes


def _newest(repository: Repository, cluster: str) -> str:
    """The id of the newest backup of a cluster that can be read, empty where there is none."""
    catalog = repository.catalog
    for name in reversed(catalog.names()):
        try:
            if catalog.read(name).cluster == cluster:
                return name.id
        except (DamageError, ObjectMissing):
            # verify tells of the one, and the other has expired since the listing
            continue
    return ""


def _take(request: BackupRequest, opened: Sequence[_Open], progress: Progress) -> _Open | None:
    """Read the server into the first repository that takes it."""
    by_speed = sorted(opened, key=lambda each: not each.repository.store.url.startswith("file://"))
    for each in sorted(by_speed, key=lambda each: each.newest, reverse=True):
        try:
            each.stored.manifest = run_backup(request, each.repository, progress)
        except _OWN_FAULT as error:
            _failed(each.stored, error, progress)
        else:
            return each
    return None


def _bring(request: BackupRequest, first: _Open, other: _Open, progress: Progress) -> None:
    """Copy what the other lacks: earlier backups where it has been away, and the new one."""
    # only where there are several: it takes time and memory to import
    from pgkeep.copies import CopyRequest, run_copy

    assert first.stored.manifest is not None
    new = first.stored.manifest.id
    try:
        report = run_copy(
            CopyRequest(cluster=request.cluster, jobs=request.jobs), first.repository, other.repository, progress
        )
    except _OWN_FAULT as error:
        _failed(other.stored, error, progress)
        return
    for copied in report.backups:
        if copied.manifest.id == new:
            other.stored.manifest = copied.manifest
        else:
            other.stored.caught_up.append(copied.manifest.id)
    if other.stored.caught_up:
        progress.note(f"repository {other.stored.name} was behind, and has {', '.join(other.stored.caught_up)} now")
    if other.stored.manifest is None:
        errors = dict(report.failures)
        _failed(other.stored, errors.get(new) or StoreError(f"backup {new} was not copied"), progress)


def _failed(stored: Stored, error: PgkeepError, progress: Progress) -> None:
    stored.error = error
    progress.note(f"repository {stored.name} is behind: {error}")
