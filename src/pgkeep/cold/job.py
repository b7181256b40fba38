"""The cold run: plan, and move object by object. It may be killed at any moment and run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pgkeep.cold.plan import ColdPlan, KeptAt, make_cold_plan
from pgkeep.cold.prices import CLASSES, ClassFacts
from pgkeep.cold.rto import ColdRule, Objective, conflicts
from pgkeep.errors import ConfigError, PgkeepError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.cold_records import write_cold
from pgkeep.repository.leases import running
from pgkeep.repository.storage_classes import StorageClasses, storage_classes
from pgkeep.repository.store import ObjectInfo, ObjectMissing
from pgkeep.units import utc_now

__all__ = ["RESOURCE", "ColdReport", "ColdRequest", "check_rules", "run_cold"]

RESOURCE = "cold storage"

_AT_ONCE = 16
_BATCH = 256
"""Objects that move before the run looks again whether a backup began."""


@dataclass(frozen=True)
class ColdRequest:
    """``facts`` are the classes as the configuration corrects them, None as they come; ``objectives`` those of the repository's clusters.

    ``kept_at``: what retention keeps, see `pgkeep.cold.plan.KeptAt`; None: nothing expires.
    """

    rules: Sequence[ColdRule]
    objectives: Sequence[Objective] = ()
    facts: Mapping[str, ClassFacts] | None = None
    kept_at: KeptAt | None = None
    dry_run: bool = False


@dataclass
class ColdReport:
    """``moved`` objects and bytes; ``locked`` stay until their lock ends. ``complete``: no backup came between."""

    plan: ColdPlan
    moved: int = 0
    moved_bytes: int = 0
    locked: int = 0
    complete: bool = True
    notes: list[str] = field(default_factory=list)


def check_rules(
    repository_url: str, scheme: str | None, request: ColdRequest, taken: Sequence[str] | None = None
) -> list[PgkeepError]:
    """What is wrong with rules, before anything moves. ``taken`` are the classes that the store was found to take."""
    if scheme is None:
        return [
            ConfigError(f"{repository_url} is a directory and has no storage classes", hint="leave out its cold rules")
        ]
    facts = request.facts or CLASSES[scheme]
    errors: list[PgkeepError] = []
    for rule in request.rules:
        if rule.storage_class not in facts:
            errors.append(
                ConfigError(
                    f"{rule.storage_class!r} is no storage class that {repository_url} could move to",
                    hint=f"one of {', '.join(facts)}",
                )
            )
        elif (
            taken is not None
            and rule.storage_class not in taken
            and scheme == "s3"
            and rule.storage_class != "ONEZONE_IA"
        ):
            errors.append(
                ConfigError(
                    f"{repository_url} was found not to take the storage class {rule.storage_class}",
                    hint=f"it takes {', '.join(taken) or 'none'}",
                )
            )
    errors += [
        ConfigError(
            f"the cold rules break an objective: {sentence}",
            hint="raise after, take a class that is read at once, or change objectives.rto",
        )
        for sentence in conflicts(request.rules, facts, request.objectives)
    ]
    return errors


def run_cold(request: ColdRequest, repository: Repository, progress: Progress | None = None) -> ColdReport:
    """Move what the rules say. With ``dry_run`` the plan alone.

    Raises ConfigError where the rules cannot be or would break an objective, BusyError, StoreError, DamageError.
    """
    progress = progress or Silent()
    classes = storage_classes(repository.store)
    taken = repository.capabilities.storage_classes if repository.capabilities is not None else None
    wrong = check_rules(repository.store.url, None if classes is None else classes.scheme, request, taken)
    if wrong:
        raise wrong[0]
    assert classes is not None
    facts = request.facts or CLASSES[classes.scheme]
    if request.dry_run:
        return ColdReport(
            make_cold_plan(repository, classes, request.rules, facts, utc_now(), progress, request.kept_at)
        )
    with repository.lease(RESOURCE) as lease:
        if lease.took_over:
            # whoever removes a dead writer's lease is the only one to know that it may have left packs behind
            repository.adopt_orphans()
        plan = make_cold_plan(repository, classes, request.rules, facts, utc_now(), progress, request.kept_at)
        report = ColdReport(plan)
        _Mover(repository, classes, report, progress).run()
    return report


class _Mover:
    def __init__(self, repository: Repository, classes: StorageClasses, report: ColdReport, progress: Progress) -> None:
        self._repository = repository
        self._store = repository.store
        self._classes = classes
        self._report = report
        self._progress = progress
        self._can_be_locked = bool(repository.capabilities is not None and repository.capabilities.keeps_versions)

    def run(self) -> None:
        plan = self._report.plan
        if not plan.moves:
            return
        intents = [
            write_cold(self._store, target, [info.name for info in infos if _is_pack(info)], plan.wal)
            for target, infos in plan.moves.items()
        ]
        self._progress.phase("moving", plan.size)
        for target, infos in plan.moves.items():
            for start in range(0, len(infos), _BATCH):
                if self._is_needed():
                    return
                self._move(infos[start : start + _BATCH], target)
        self._close(intents)

    def _is_needed(self) -> bool:
        """A backup that runs may build on packs that are about to move: it goes first."""
        holders = [resource for resource in running(self._store) if resource.startswith("backup")]
        if holders:
            self._report.complete = False
            self._report.notes.append("a backup began, and goes first: run it again to move the rest")
        return bool(holders)

    def _move(self, infos: Sequence[ObjectInfo], target: str) -> None:
        def move(info: ObjectInfo) -> bool | None:
            if self._can_be_locked:
                until = self._classes.state(info.name).locked_until
                if until is not None and until > utc_now():
                    # the copy would be a second version, and the first one would be paid for until its lock ends
                    return False
            try:
                self._classes.change(info.name, target)
            except ObjectMissing:
                return None
            return True

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="cold") as executor:
            for info, moved in zip(infos, executor.map(move, infos), strict=True):
                if moved:
                    self._report.moved += 1
                    self._report.moved_bytes += info.size
                elif moved is False:
                    self._report.locked += 1
                self._progress.advance(info.size)

    def _close(self, intents: Sequence[str]) -> None:
        """One record for each class, of what the store showed and of what moved now, in place of all there were."""
        plan = self._report.plan
        by_class: dict[str, list[str]] = {}
        going = {info.name for infos in plan.moves.values() for info in infos}
        for name, storage_class in plan.seen.items():
            if name not in going:
                by_class.setdefault(storage_class, []).append(name)
        for target, infos in plan.moves.items():
            by_class.setdefault(target, []).extend(info.name for info in infos if _is_pack(info))
        wal = dict(plan.cold.wal)
        for place, name in plan.wal.items():
            wal[place] = max(name, wal.get(place, ""))
        for storage_class, names in by_class.items():
            write_cold(self._store, storage_class, names, wal, done=not self._report.locked)
        if not by_class:
            return
        for name in [*plan.cold.records, *intents]:
            try:
                self._store.delete(name)
            except StoreError:
                self._report.notes.append("old records below cold/ cannot be deleted with these credentials, and stay")
                break


def _is_pack(info: ObjectInfo) -> bool:
    return info.name.startswith("packs/")
