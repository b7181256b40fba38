"""Remove what no rule keeps: backups, then WAL. Contents stay until collection finds them without a backup.

In this order, so that a crash at any moment leaves garbage and never a backup that lacks something:

1. a record of what goes, so that its WAL stays for who reads it now, and the next run knows of it,
2. the manifests: with them the backups are gone,
3. pins of backups that are gone, then the index of times and the WAL that nothing needs, oldest first,
4. records of earlier expiries whose time is over.

Whatever is left undone, the next run finds by looking. Nothing waits for it: backups, receivers and restores go on beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from pgkeep.errors import PgkeepError
from pgkeep.policy.clocks import check_against_store, dates_by_our_clock
from pgkeep.policy.expiry_plan import ClusterPlan, plan_cluster
from pgkeep.policy.retention import Rules, State
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.expiries import Expiries
from pgkeep.repository.leases import Lease
from pgkeep.repository.manifests import BackupName
from pgkeep.repository.store import ObjectInfo
from pgkeep.units import utc_now

__all__ = ["ExpireReport", "ExpireRequest", "pin_lease", "plan_expiry", "run_expire"]

_DELETED_AT_ONCE = 8

_BATCH = 1000


@dataclass(frozen=True)
class ExpireRequest:
    """``rules`` None: nothing goes but what is named. ``cluster``: only those that have a backup under this name.

    ``states``: of backups that are more than taken. ``remove``: ids that go whatever the rules say. ``now`` None: this machine's clock,
    which must agree with the store's. ``clock_is_right``: a person has looked at it, though nothing came for long.
    """

    rules: Rules | None
    cluster: str | None = None
    states: Mapping[str, State] = field(default_factory=dict)
    remove: Sequence[str] = ()
    now: datetime | None = None
    clock_is_right: bool = False


@dataclass
class ExpireReport:
    """What was removed of one cluster; ``wal_bytes`` as stored, the index of times included."""

    plan: ClusterPlan
    backups: list[str] = field(default_factory=list)
    wal_objects: int = 0
    wal_bytes: int = 0


def plan_expiry(request: ExpireRequest, repository: Repository) -> list[ClusterPlan]:
    """What `run_expire` would remove now, of each cluster; only reads. Raises UsageError, PgkeepError, StoreError."""
    now = request.now or utc_now()
    plans = [
        plan_cluster(repository, cluster, request.rules, now, request.states, named=request.remove)
        for cluster in repository.clusters()
    ]
    return [plan for plan in plans if request.cluster is None or request.cluster in plan.clusters]


def run_expire(
    request: ExpireRequest,
    repository: Repository,
    progress: Progress | None = None,
    *,
    shown: Sequence[ClusterPlan] | None = None,
) -> list[ExpireReport]:
    """Remove what has expired. Of ``shown`` plans nothing goes that they did not say, though more may stay by now.

    Safe to interrupt and to run again. Raises BusyError where another expiry runs, UsageError, PgkeepError where this machine's
    clock differs from the store's, StoreError.
    """
    plans = plan_expiry(request, repository) if shown is None else shown
    return [_expire_cluster(request, repository, plan, progress or Silent()) for plan in plans]


def pin_lease(repository: Repository, system_identifier: int) -> Lease:
    """Held by who pins, and by who removes backups that are not pinned."""
    return repository.lease(f"pins of cluster {system_identifier}")


def _expire_cluster(
    request: ExpireRequest, repository: Repository, shown: ClusterPlan, progress: Progress
) -> ExpireReport:
    system = shown.system_identifier
    with _adopting(repository, repository.lease(f"expiry of cluster {system}")) as expiring:
        if request.now is None:
            check_against_store(repository, expiring)
        with _adopting(repository, pin_lease(repository, system)) as pinning:
            own = (expiring.name, pinning.name)
            plan = plan_cluster(
                repository,
                system,
                request.rules,
                shown.now,
                request.states,
                named=shown.removed_by_name,
                own_leases=own,
            )
            if plan.silence is not None and request.now is None and not request.clock_is_right:
                raise PgkeepError(
                    f"{plan.silence}; nothing was removed",
                    hint="look at the clock (date, timedatectl); where it is right: pgkeep expire --clock-is-right",
                )
            report = ExpireReport(plan, sorted(set(plan.going) & set(shown.going)))
            _remove_backups(repository, plan, report, progress)
        _remove_wal(repository, plan, report, progress)
        for name in plan.ended:
            repository.store.delete(name)
    return report


@contextmanager
def _adopting(repository: Repository, lease: Lease) -> Iterator[Lease]:
    with lease:
        if lease.took_over:
            # whoever removes a dead writer's lease is the only one to know that it may have left packs behind
            repository.adopt_orphans()
        yield lease


def _remove_backups(repository: Repository, plan: ClusterPlan, report: ExpireReport, progress: Progress) -> None:
    store = repository.store
    if report.backups or dates_by_our_clock(repository):
        # without a backup, it says to the next run when this one was
        expired = [backup for backup in plan.expired if backup.id in report.backups]
        Expiries(store, repository.keys, plan.system_identifier).write(plan.now, expired)
    if report.backups:
        progress.phase("removing backups")
        for id_ in report.backups:
            store.delete(BackupName(id_, plan.system_identifier).object_name)
    there = plan.ids.difference(report.backups)
    for stored in list(repository.pins.all(plan.system_identifier)):
        # also those that an interrupted run has left
        if stored.pin.backup not in there:
            store.delete(stored.name)


def _remove_wal(repository: Repository, plan: ClusterPlan, report: ExpireReport, progress: Progress) -> None:
    if set(plan.going) != set(report.backups):
        # what a person has not seen go stays, and its WAL with it: the next run shows it
        progress.note("more backups have expired since this was planned; their WAL and they go in the next run")
        return
    progress.phase("removing WAL")
    with ThreadPoolExecutor(_DELETED_AT_ONCE, thread_name_prefix="expire") as executor:
        for batch in _batches(plan.superfluous(repository)):
            for info, _ in zip(
                batch, executor.map(lambda info: repository.store.delete(info.name), batch), strict=True
            ):
                report.wal_objects += 1
                report.wal_bytes += info.size
                progress.advance(info.size)


def _batches(infos: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    iterator = iter(infos)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
