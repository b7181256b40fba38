"""Thawing a backup: asked for once, waited for as long as it takes, and safe to run again at any time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pgkeep.cold.needs import ColdNeed, archived_needs, candidates
from pgkeep.cold.prices import CLASSES, ClassFacts
from pgkeep.errors import NotFoundError, UsageError
from pgkeep.postgres.timeline import TimelineHistory, history_name, parse_history
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.cold_records import read_cold
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.storage_classes import storage_classes
from pgkeep.units import utc_now

__all__ = ["ThawReport", "ThawRequest", "run_thaw"]

_AT_ONCE = 16

DEFAULT_TIER = {"s3": "Standard", "az": "Standard", "gs": ""}


@dataclass(frozen=True)
class ThawRequest:
    """``tier`` None: Standard. Thawed objects stay for ``days``. ``poll`` is seconds between two looks while it waits.

    ``facts`` are the classes as the configuration corrects them, None as they come.
    """

    backup: str
    cluster: str | None = None
    tier: str | None = None
    days: int = 7
    wait: bool = False
    dry_run: bool = False
    poll: float = 60.0
    facts: Mapping[str, ClassFacts] | None = None


@dataclass
class ThawReport:
    """``before`` is what was found. ``requested`` objects and bytes were asked for now, ``left`` cannot be read yet.

    ``ready_by``: when the last of them should be there; None where nothing is waited for.
    """

    backup: str
    tier: str
    before: ColdNeed
    requested: int = 0
    requested_bytes: int = 0
    left: int = 0
    ready_by: datetime | None = None
    thawed_until: datetime | None = None
    objects: list[str] = field(default_factory=list)


def run_thaw(request: ThawRequest, repository: Repository, progress: Progress | None = None) -> ThawReport:
    """Ask for what of a backup is archived and was not asked for yet: its packs, and its WAL up to where the next backup is consistent.

    Raises NotFoundError, UsageError for a tier that a class does not have, StoreError, DamageError.
    """
    progress = progress or Silent()
    manifest = repository.catalog.find(request.backup, request.cluster)
    classes = storage_classes(repository.store)
    if classes is None:
        return ThawReport(manifest.id, "", ColdNeed())
    facts = request.facts or CLASSES[classes.scheme]
    tier = request.tier or DEFAULT_TIER[classes.scheme]
    progress.phase("asking for storage classes")
    path, end = _way(repository, manifest)
    names = candidates(repository, read_cold(repository.store), manifest, path=path, end=end)
    need = archived_needs(classes, names, facts)
    report = ThawReport(manifest.id, tier, need, left=len(need.objects), thawed_until=need.thawed_until)
    report.objects = [state.name for state in need.objects]
    if not need.objects:
        return report
    known = {name: facts[name] for name in need.by_class if name in facts}
    for name, each in known.items():
        if each.tier(tier) is None:
            raise UsageError(
                f"{name} has no tier {tier!r}", hint=f"one of {', '.join(each.name for each in each.tiers)}: --tier"
            )
    hours = max((found.hours for each in known.values() if (found := each.tier(tier)) is not None), default=0.0)
    report.ready_by = utc_now() + timedelta(hours=hours)
    waiting = [state for state in need.objects if not state.thawing]
    if request.dry_run:
        return report
    progress.phase("asking for objects", sum(state.size for state in waiting))
    spelled = {name: found.name for name, each in known.items() if (found := each.tier(tier)) is not None}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="thaw") as executor:
        asked = executor.map(
            lambda state: classes.thaw(state.name, spelled.get(state.storage_class, tier), request.days), waiting
        )
        for state, _ in zip(waiting, asked, strict=True):
            report.requested += 1
            report.requested_bytes += state.size
            progress.advance(state.size)
    if request.wait:
        _wait(request, repository, report, [state.name for state in need.objects], progress)
    return report


def _wait(
    request: ThawRequest, repository: Repository, report: ThawReport, names: Sequence[str], progress: Progress
) -> None:
    classes = storage_classes(repository.store)
    assert classes is not None
    progress.phase("waiting for the archive", report.before.size)
    left = list(names)
    sizes = {state.name: state.size for state in report.before.objects}
    while True:
        now = archived_needs(classes, left)
        still = {state.name for state in now.objects}
        progress.advance(sum(sizes[name] for name in left if name not in still))
        left = [name for name in left if name in still]
        if now.thawed_until is not None:
            report.thawed_until = min(now.thawed_until, report.thawed_until or now.thawed_until)
        report.left = len(left)
        if not left:
            report.ready_by = None
            return
        time.sleep(request.poll)


def _way(repository: Repository, manifest: Manifest) -> tuple[TimelineHistory, int]:
    """The timelines from a backup on to the next one of its cluster, and the position from which restores would start there."""
    later = [
        other
        for other in repository.catalog.read_all(manifest.cluster)
        if other.system_identifier == manifest.system_identifier and other.start_lsn > manifest.start_lsn
    ]
    following = min(later, key=lambda other: other.start_lsn, default=None)
    if following is None:
        return TimelineHistory(manifest.timeline), manifest.stop_lsn
    archive = repository.wal(manifest.system_identifier)
    path = TimelineHistory(manifest.timeline)
    if following.timeline != manifest.timeline:
        if not archive.exists(history_name(following.timeline)):
            raise NotFoundError(
                f"the repository has no {history_name(following.timeline)}", hint="pgkeep list --window"
            )
        found = parse_history(following.timeline, archive.get(history_name(following.timeline)))
        path = found if manifest.timeline in found.timelines else path
    return path, following.stop_lsn
