"""The verify job: what is due is checked, what is whole is remembered."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pgkeep.cold.needs import ColdBackup, refuse_cold
from pgkeep.errors import DamageError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository, Store
from pgkeep.repository.distrust import note_distrusted, read_distrusted
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.packs import check_hash
from pgkeep.repository.store import ObjectMissing
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

    Damage is in the report, not raised. Raises StoreError, and for a backup that was named NotFoundError where it is not there and
    ColdBackup where it must be thawed first; KeyFailure for content with a key that only adds.
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
    _note_damaged_packs(store, report, progress)
    return report


def _note_damaged_packs(store: Store, report: VerifyReport, progress: Progress) -> None:
    """So that nothing new rests on them, and the next backup stores anew what they held."""
    damaged = {damage.object_name or "" for damage in report.damage}
    packs = {name for name in damaged if name.startswith("packs/")}
    try:
        whole = {name for name in read_distrusted(store).keys() - packs if _is_whole(store, name)}
        note_distrusted(store, damaged=packs, whole=whole)
    except StoreError as error:
        progress.note(
            f"which packs are damaged could not be written down, so that new backups may rest on them: {error}"
        )


def _is_whole(store: Store, pack: str) -> bool:
    try:
        check_hash(store, pack)
    except (DamageError, ObjectMissing):
        return False
    return True


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
            except ObjectMissing:
                # expired since the listing
                continue
            if request.cluster in {None, manifest.cluster}:
                manifests.append(manifest)
    for manifest in manifests:
        if request.backup is None and memory.backup_is_fresh(manifest.id, max_age):
            report.remembered += 1
        elif _is_cold(request, repository, manifest, report):
            continue
        elif verify_content(repository, manifest, report, progress, jobs=request.jobs):
            memory.remember_content([manifest.id])


def _is_cold(request: VerifyRequest, repository: Repository, manifest: Manifest, report: VerifyReport) -> bool:
    """Whether a backup is passed over since it must be thawed to be read; one that was named is refused."""
    try:
        refuse_cold(repository, manifest, work="verify")
    except ColdBackup:
        if request.backup is not None:
            raise
        report.cold.append(manifest.id)
        return True
    except DamageError:
        # the verification itself names every file that has it
        return False
    return False
