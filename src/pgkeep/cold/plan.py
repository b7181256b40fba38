"""What the rules move now, and why the rest stays: by pack, read from the repository without touching it.

A pack goes where the youngest backup that needs it allows. The newest backup of each cluster allows nothing, so that what new backups
build on is always there. WAL goes once its times are indexed and no backup that stays needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pgkeep.cold.needs import packs_of, segment_of
from pgkeep.cold.prices import SMALLEST, ClassFacts
from pgkeep.cold.rto import ColdRule
from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.repository.cold_records import Cold, read_cold
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.storage_classes import HOT, StorageClasses
from pgkeep.repository.store import ObjectInfo
from pgkeep.wal.times_groups import TimesGroups

__all__ = ["ColdPlan", "KeptAt", "make_cold_plan"]

KeptAt = Callable[[datetime], set[str]]
"""The ids of the backups, of those that are there now, which retention still keeps at a moment."""

_HOT = -1


@dataclass
class ColdPlan:
    """``moves``: by class, the objects that go there. ``stays``: why objects stay that are old enough, with counts.

    ``needing`` are backups too young for an archive that need packs in one. ``wal``: as in `Cold`, for what moves now.
    """

    rules: Sequence[ColdRule]
    cold: Cold
    moves: dict[str, list[ObjectInfo]] = field(default_factory=dict)
    stays: dict[str, int] = field(default_factory=dict)
    wal: dict[str, str] = field(default_factory=dict)
    needing: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    """The packs that are cold already, and their classes."""

    @property
    def objects(self) -> int:
        """How many move."""
        return sum(map(len, self.moves.values()))

    @property
    def size(self) -> int:
        """Bytes that move."""
        return sum(info.size for infos in self.moves.values() for info in infos)

    def stay(self, reason: str) -> None:
        """Count an object that stays though it is old enough."""
        self.stays[reason] = self.stays.get(reason, 0) + 1


def make_cold_plan(
    repository: Repository,
    classes: StorageClasses,
    rules: Sequence[ColdRule],
    facts: Mapping[str, ClassFacts],
    now: datetime,
    progress: Progress,
    kept_at: KeptAt | None = None,
) -> ColdPlan:
    """Read everything and decide. ``kept_at`` None: nothing expires. Raises StoreError, DamageError."""
    rules = sorted(rules, key=lambda rule: rule.after)
    plan = ColdPlan(rules, read_cold(repository.store))
    manifests = list(repository.catalog.read_all())
    ranks = _ranks(manifests, rules, now)
    lasting = {
        rule.storage_class: None
        if kept_at is None
        else kept_at(now + timedelta(days=facts[rule.storage_class].minimum_days))
        for rule in rules
    }
    if any(rank != _HOT for rank in ranks.values()):
        _plan_packs(repository, classes, plan, manifests, ranks, lasting, facts, now, progress)
        _plan_wal(repository, classes, plan, manifests, ranks, lasting, now, progress)
    return plan


def _ranks(manifests: Sequence[Manifest], rules: Sequence[ColdRule], now: datetime) -> dict[str, int]:
    """Of each backup the last rule that lets it go, or `_HOT`."""
    newest: dict[int, str] = {}
    for manifest in manifests:
        newest[manifest.system_identifier] = max(manifest.id, newest.get(manifest.system_identifier, ""))
    ranks = {}
    for manifest in manifests:
        age = (now - manifest.finished).total_seconds()
        old_enough = [number for number, rule in enumerate(rules) if age >= rule.after]
        is_newest = newest[manifest.system_identifier] == manifest.id
        ranks[manifest.id] = _HOT if is_newest else max(old_enough, default=_HOT)
    return ranks


def _plan_packs(
    repository: Repository,
    classes: StorageClasses,
    plan: ColdPlan,
    manifests: Sequence[Manifest],
    ranks: Mapping[str, int],
    lasting: Mapping[str, set[str] | None],
    facts: Mapping[str, ClassFacts],
    now: datetime,
    progress: Progress,
) -> None:
    allowed: dict[str, int] = {}
    lasts: dict[str, set[str]] = {name: set() for name in lasting}
    progress.phase("reading backups", sum(manifest.logical_size for manifest in manifests))
    for manifest in manifests:
        rank = ranks[manifest.id]
        packs = packs_of(repository, manifest)
        for pack in packs:
            allowed[pack] = min(rank, allowed.get(pack, rank))
        for name, kept in lasting.items():
            if kept is None or manifest.id in kept:
                lasts[name] |= packs
        if rank == _HOT and not packs.isdisjoint(plan.cold.archived):
            plan.needing.append(manifest.id)
        progress.advance(manifest.logical_size)
    progress.phase("listing packs")
    for info in _listed(classes, plan.cold, "packs/data/"):
        now_in = info.storage_class or HOT[classes.scheme]
        if now_in in facts:
            plan.seen[info.name] = now_in
        rank = allowed.get(info.name, _HOT)
        if rank == _HOT:
            # of no backup: the collector's
            continue
        target = plan.rules[rank].storage_class
        reason = _reason_to_stay(info, now_in, target, plan, facts, now)
        if reason is None and info.name not in lasts[target]:
            reason = f"expire before the {facts[target].minimum_days} days that {target} charges for"
        if reason is None:
            plan.moves.setdefault(target, []).append(info)
        elif reason:
            plan.stay(reason)


def _reason_to_stay(
    info: ObjectInfo,
    now_in: str,
    target: str,
    plan: ColdPlan,
    facts: Mapping[str, ClassFacts],
    now: datetime,
) -> str | None:
    """Why an object does not go to its target; empty where there is nothing to do, None where it goes."""
    order = [rule.storage_class for rule in plan.rules]
    if now_in == target or (now_in in order and order.index(now_in) > order.index(target)):
        return ""
    if now_in in facts:
        if facts[now_in].is_archive:
            return f"are in {now_in}, from where they can only go by way of a thaw"
        if now - info.modified < timedelta(days=facts[now_in].minimum_days):
            return f"came to {now_in} less than {facts[now_in].minimum_days} days ago, which it charges for"
    if info.size < SMALLEST:
        return "are so small that they would cost more there"
    return None


def _plan_wal(
    repository: Repository,
    classes: StorageClasses,
    plan: ColdPlan,
    manifests: Sequence[Manifest],
    ranks: Mapping[str, int],
    lasting: Mapping[str, set[str] | None],
    now: datetime,
    progress: Progress,
) -> None:
    progress.phase("listing WAL")
    for system in sorted({manifest.system_identifier for manifest in manifests}):
        own = [manifest for manifest in manifests if manifest.system_identifier == system]
        # of a cluster's timelines the positions go on: what lies before the first backup that stays is needed by none that does
        first_hot = min(manifest.start_lsn for manifest in own if ranks[manifest.id] == _HOT)
        size = own[-1].wal.segment_size
        groups = TimesGroups(repository, system, size)
        for timeline in repository.wal(system).timelines():
            place = f"{system}/{timeline:08X}"
            indexed = groups.there(timeline)
            prefix = f"clusters/{system}/wal/{timeline:08X}/"
            for info in _listed(classes, plan.cold, prefix, after=plan.cold.wal_done.get(place)):
                name = info.name.rpartition("/")[2]
                segment = segment_of(name, size)
                # history files, pieces and what may still be read record by record stay
                if segment is None or segment[1] + size > first_hot or groups.group_of(segment[1]) not in indexed:
                    continue
                rank = max(
                    (n for n, rule in enumerate(plan.rules) if (now - info.modified).total_seconds() >= rule.after),
                    default=_HOT,
                )
                if rank == _HOT or (info.storage_class or HOT[classes.scheme]) != HOT[classes.scheme]:
                    continue
                target = plan.rules[rank].storage_class
                kept = lasting[target]
                if info.size < SMALLEST:
                    plan.stay("are so small that they would cost more there")
                elif kept is not None and not any(m.id in kept and m.start_lsn <= segment[1] for m in own):
                    plan.stay("are WAL that expires before its class is paid for")
                else:
                    plan.moves.setdefault(target, []).append(info)
                    plan.wal[place] = max(name, plan.wal.get(place, ""))


def _listed(classes: StorageClasses, cold: Cold, prefix: str, after: str | None = None) -> Iterator[ObjectInfo]:
    """With classes: from the listing on S3, elsewhere from the records, which spare a question for each object."""
    if classes.scheme == "s3":
        yield from classes.list(prefix, after=after)
        return
    for info in classes.store.list(prefix):
        if after is None or info.name.rpartition("/")[2] > after:
            yield ObjectInfo(info.name, info.size, info.modified, cold.packs.get(info.name))
