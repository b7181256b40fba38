"""What an expiry would remove of a cluster, and why everything else stays: read from the repository, without touching it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.errors import DamageError, KeyFailure, UsageError
from pgkeep.policy.clocks import check_arrivals, silence
from pgkeep.policy.retention import (
    Held,
    Hold,
    Rules,
    State,
    Verdict,
    decide,
    lies_on,
    starts_since,
    window_start,
)
from pgkeep.policy.retention_wal import NeededWal, needs_of, superfluous
from pgkeep.postgres.timeline import TimelineHistory, history_name, parse_history
from pgkeep.repository import Repository
from pgkeep.repository.expiries import ExpiredBackup, Expiries, Expiry
from pgkeep.repository.leases import oldest_lease
from pgkeep.repository.store import ObjectInfo, ObjectMissing
from pgkeep.units import format_time

__all__ = ["ClusterPlan", "WalPreview", "plan_cluster"]


@dataclass(frozen=True, slots=True)
class WalPreview:
    """How much WAL goes, as stored, the index of times included; ``complete`` false: that, and more."""

    objects: int
    bytes: int
    complete: bool


@dataclass
class ClusterPlan:
    """One cluster of a repository at one moment.

    ``verdicts`` are in the order of time; ``unreadable`` are the backups whose manifests are damaged, with the reason: they stay.
    ``needed`` is the WAL that stays, None where none may go; ``spared`` are timelines of which all WAL stays; both are explained in
    ``notes``. ``stored_before``: WAL that came later stays. ``ended`` are records of earlier expiries whose time is over.
    ``silence`` is why this machine's clock is not to be trusted without a word.
    """

    system_identifier: int
    clusters: list[str]
    now: datetime
    window_start: datetime
    verdicts: list[Verdict]
    unreadable: dict[str, str] = field(default_factory=dict)
    needed: NeededWal | None = None
    spared: set[int] = field(default_factory=set)
    stored_before: datetime = datetime.min
    ended: list[str] = field(default_factory=list)
    expired: list[ExpiredBackup] = field(default_factory=list)
    removed_by_name: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    silence: str | None = None

    @property
    def going(self) -> list[str]:
        """The ids of the backups that go: those no rule keeps, and those that were named."""
        return sorted({verdict.backup.id for verdict in self.verdicts if verdict.goes} | self.removed_by_name)

    @property
    def ids(self) -> set[str]:
        """All backups that are there now."""
        return {verdict.backup.id for verdict in self.verdicts} | self.unreadable.keys() | self.removed_by_name

    def superfluous(self, repository: Repository) -> Iterator[ObjectInfo]:
        """The WAL objects that go, as the repository lists them now. Raises StoreError."""
        if self.needed is None:
            return iter(())
        return superfluous(
            repository.store,
            self.system_identifier,
            self.needed,
            stored_before=self.stored_before,
            spared=self.spared,
        )

    def preview(self, repository: Repository, most: int = 50_000) -> WalPreview:
        """Count what `superfluous` gives, and stop after so many objects. Raises StoreError."""
        objects = size = 0
        for info in self.superfluous(repository):
            if objects == most:
                return WalPreview(objects, size, complete=False)
            objects += 1
            size += info.size
        return WalPreview(objects, size, complete=True)


def plan_cluster(
    repository: Repository,
    system_identifier: int,
    rules: Rules | None,
    now: datetime,
    states: Mapping[str, State],
    *,
    named: Collection[str] = (),
    own_leases: Collection[str] = (),
) -> ClusterPlan:
    """What goes and what stays; without rules all that is not named stays.

    ``states`` are the backups that are more than taken; ``named`` are ids that go whatever the rules say. ``own_leases`` are
    those of the caller, which hold nothing up. Raises UsageError where a named backup is pinned or the last one, PgkeepError where
    this machine's clock must be wrong, StoreError.
    """
    backups: list[Held] = []
    clusters: set[str] = set()
    segment_sizes: set[int] = set()
    unreadable: dict[str, str] = {}
    arrivals: list[tuple[str, datetime]] = []
    for name, stored, head in repository.catalog.heads(system_identifier):
        arrivals.append((name.id, stored))
        if isinstance(head, DamageError):
            unreadable[name.id] = str(head)
            continue
        clusters.add(head.cluster)
        segment_sizes.add(head.wal.segment_size)
        state = states.get(head.id, State.TAKEN)
        backups.append(
            Held(head.id, head.started, head.finished, stored, head.timeline, head.start_lsn, head.stop_lsn, state)
        )
    check_arrivals(repository, arrivals, now)
    by_rules = rules is not None
    if rules is None:
        # all that there is lies in the window
        rules = Rules(window=now - min((backup.finished for backup in backups), default=now))
    plan = ClusterPlan(system_identifier, sorted(clusters), now, window_start(rules, now), [], unreadable)
    pins = [Hold(pin.pin.backup, pin.pin.reason, pin.pin.until) for pin in repository.pins.all(system_identifier)]
    _remove_by_name(plan, backups, pins, named, now)
    remaining = [backup for backup in backups if backup.id not in plan.removed_by_name]
    paths = _living_paths(repository, plan, remaining, now)
    plan.verdicts = decide(remaining, pins, rules, now, list(paths.values()))
    known = {backup.id: backup for backup in backups}
    plan.verdicts += [Verdict(known[id_]) for id_ in sorted(plan.removed_by_name) if id_ in known]
    plan.verdicts.sort(key=lambda verdict: (verdict.backup.started, verdict.backup.id))
    past = list(Expiries(repository.store, repository.keys, system_identifier).all())
    runs = [stored if expiry is None else expiry.time for _, stored, expiry in past]
    plan.silence = silence(repository, max(runs, default=None), now) if by_rules else None
    _plan_wal(repository, plan, paths, rules, segment_sizes, past, own_leases)
    return plan


def _remove_by_name(
    plan: ClusterPlan, backups: list[Held], pins: list[Hold], named: Collection[str], now: datetime
) -> None:
    ids = {backup.id for backup in backups}
    plan.removed_by_name = set(named) & (ids | plan.unreadable.keys())
    held = sorted(pin.backup for pin in pins if pin.backup in plan.removed_by_name and pin.holds(now))
    if held:
        raise UsageError(f"backup {held[0]} is pinned", hint=f"pgkeep unpin {held[0]}")
    if plan.removed_by_name & ids and not ids - plan.removed_by_name:
        raise UsageError(
            f"{', '.join(sorted(plan.removed_by_name))} is all there is of cluster {plan.system_identifier}, and the last"
            " backup stays",
            hint="take another one first: pgkeep backup",
        )
    plan.unreadable = {id_: why for id_, why in plan.unreadable.items() if id_ not in plan.removed_by_name}


def _living_paths(
    repository: Repository, plan: ClusterPlan, backups: list[Held], now: datetime
) -> dict[int, TimelineHistory]:
    """The paths to timelines that got WAL within the window, and to those that may get more: the highest, and the newest backup's."""
    archive = repository.wal(plan.system_identifier)
    timelines = archive.timelines()
    counted = [backup for backup in backups if not backup.is_doubtful(now)]
    living = {max(timelines, default=1)}
    if counted:
        living.add(max(counted, key=lambda backup: (backup.finished, backup.id)).timeline)
    for timeline in timelines:
        stored = archive.last_stored(timeline) if timeline not in living else None
        if stored is not None and stored >= plan.window_start:
            living.add(timeline)
    paths = {}
    for timeline in sorted(living):
        try:
            paths[timeline] = parse_history(timeline, archive.get(history_name(timeline)))
        except ObjectMissing:
            paths[timeline] = TimelineHistory(timeline)
            if timeline > 1:
                plan.spared.add(timeline)
                plan.notes.append(
                    f"timeline {timeline} has no history file, so nobody knows what its WAL is good for: all of it stays"
                )
        except (DamageError, KeyFailure) as error:
            paths[timeline] = TimelineHistory(timeline)
            plan.spared.update(timelines)
            plan.notes.append(f"no WAL goes: {error}")
    return paths


def _plan_wal(
    repository: Repository,
    plan: ClusterPlan,
    paths: Mapping[int, TimelineHistory],
    rules: Rules,
    segment_sizes: set[int],
    past: list[tuple[str, datetime, Expiry | None]],
    own_leases: Collection[str],
) -> None:
    plan.expired = _expired(plan, paths.values(), plan.window_start - rules.grace)
    continuous = [verdict.backup for verdict in plan.verdicts if verdict.continuous]
    others = [verdict.backup for verdict in plan.verdicts if not verdict.goes and not verdict.continuous]
    if plan.unreadable:
        plan.notes.append(
            f"no WAL goes: the manifest of {min(plan.unreadable)} cannot be read, and nobody knows which WAL it needs"
            " (pgkeep verify tells more; pgkeep expire --backup removes it)"
        )
        return
    if not continuous or len(segment_sizes) != 1:
        what = "there is no backup that it could be told from" if not segment_sizes else None
        what = what or ("no backup counts" if not continuous else "backups have WAL segments of several sizes")
        plan.notes.append(f"no WAL goes: {what}")
        return
    for timeline, path in paths.items():
        if timeline not in plan.spared and not any(lies_on(path, backup) for backup in continuous):
            plan.spared.add(timeline)
            plan.notes.append(f"timeline {timeline} has no backup yet: all of its WAL stays")
    (segment_size,) = segment_sizes
    needs = needs_of(continuous, others, paths.values(), segment_size)
    gone: list[ExpiredBackup] = []
    if rules.grace:
        # written down by the run that removes them
        gone += plan.expired
    for name, stored, expiry in past:
        begun = stored if expiry is None else expiry.time
        if begun + rules.grace <= plan.now:
            plan.ended.append(name)
        elif expiry is None:
            plan.notes.append(f"no WAL goes before {format_time(begun + rules.grace)}: {name} cannot be read")
            return
        else:
            gone += expiry.backups
    needs += needs_of(
        [_as_held(backup, plan.now) for backup in gone if backup.continuous],
        [_as_held(backup, plan.now) for backup in gone if not backup.continuous],
        paths.values(),
        segment_size,
    )
    plan.needed = NeededWal(needs, segment_size)
    oldest = oldest_lease(repository.store, besides=own_leases)
    plan.stored_before = (plan.now if oldest is None else min(plan.now, oldest)) - rules.grace


def _expired(plan: ClusterPlan, paths: Iterable[TimelineHistory], begin: datetime) -> list[ExpiredBackup]:
    """The backups that go; of those that a recovery to a moment since ``begin`` starts from, someone may be reading the WAL behind them."""
    backups = [verdict.backup for verdict in plan.verdicts]
    read, going = set(starts_since(backups, paths, begin, plan.now)), set(plan.going)
    return [
        ExpiredBackup(backup.id, backup.timeline, backup.start_lsn, backup.stop_lsn, backup.id in read)
        for backup in backups
        if backup.id in going
    ]


def _as_held(backup: ExpiredBackup, now: datetime) -> Held:
    return Held(backup.id, now, now, now, backup.timeline, backup.start_lsn, backup.stop_lsn)
