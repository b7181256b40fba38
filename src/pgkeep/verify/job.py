"""The verify job: what is due is checked, what is whole is remembered."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pgkeep.errors import DamageError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository, Store
from pgkeep.verify.content import verify_content
from pgkeep.verify.memory import VerifyMemory
from pgkeep.verify.report import Damage, VerifyReport
from pgkeep.verify.scrub import scrub

__all__ = ["VerifyRequest", "run_verify"]


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify.

    ``backup`` limits content to one backup. What was found whole within ``max_age_seconds`` is passed over.
    """

    cluster: str | None = None
    backup: str | None = None
    scrub: bool = True
    content: bool = True
    max_age_seconds: float = 7 * 86400
    jobs: int | None = None


def run_verify(
    request: VerifyRequest, store: Store, repository: Repository | None, progress: Progress | None = None
) -> VerifyReport:
    """Verify a repository; ``repository`` may be None for a scrub alone, which needs no key.

    Damage is in the report, not raised. Raises StoreError, NotFoundError for a backup that is not there, and KeyFailure for content
    with a key that only adds.
    """
    progress = progress or Silent()
    report = VerifyReport()
    if request.content and repository is not None:
        repository.keys.require_reading()
    memory = VerifyMemory(store, repository, progress)
    max_age = timedelta(seconds=request.max_age_seconds)
    if request.scrub:
        scrub(store, memory, report, progress, max_age=max_age, jobs=request.jobs)
    if request.content and repository is not None:
        _verify_backups(request, repository, memory, report, progress, max_age)
    return report


def _verify_backups(
    request: VerifyRequest,
    repository: Repository,
    memory: VerifyMemory,
    report: VerifyReport,
    progress: Progress,
    max_age: timedelta,
) -> None:
    catalog = repository.catalog
    if request.backup is not None:
        manifests = [catalog.find(request.backup, request.cluster)]
    else:
        manifests = []
        for name in catalog.names():
            try:
                manifest = catalog.read(name)
            except DamageError as error:
                report.damage.append(Damage(error.object_name, error.path, str(error)))
                continue
            if request.cluster in {None, manifest.cluster}:
                manifests.append(manifest)
    for manifest in manifests:
        if request.backup is None and memory.backup_is_fresh(manifest.id, max_age):
            report.remembered += 1
        elif verify_content(repository, manifest, report, progress, jobs=request.jobs):
            memory.remember_content([manifest.id])
