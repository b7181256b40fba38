"""From a target to a plan: reads what a repository holds of a cluster, and lets `choose` find the way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pgkeep.errors import UsageError
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.choose import choose
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.target import RecoveryPlan, RecoveryTarget, immediate, latest
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.stamps import receiver_stamps
from pgkeep.wal.times import WalTimes

__all__ = ["plan_recovery"]


def plan_recovery(
    repository: Repository,
    target: RecoveryTarget | None = None,
    *,
    cluster: str | None = None,
    backup: str | None = None,
    spool: str | None = None,
) -> tuple[Manifest, RecoveryPlan]:
    """Which backup of a cluster, and how it comes to the target.

    ``backup`` None: the best one for the target. ``target`` None: all of the WAL where no backup is named, the backup's own
    end where one is. ``spool``: where a receiver on this machine keeps its WAL; it knows how current the repository is.
    Raises UnreachableTarget, NotFoundError, UsageError, StoreError, DamageError.
    """
    wanted = target or (latest if backup is None else immediate)
    stamps = [] if spool is None else receiver_stamps(Path(spool))
    failure: UnreachableTarget | None = None
    for manifests in _candidates(repository, cluster, backup):
        newest = manifests[-1]
        inventory = WalInventory.read(repository.wal(newest.system_identifier), newest.wal.segment_size)
        times = WalTimes(repository, newest.system_identifier, inventory)
        try:
            manifest, plan = choose(
                wanted,
                manifests,
                inventory,
                times,
                backup=newest if backup is not None else None,
                stamps=stamps,
                strict=target is not None,
            )
            plan.notes.extend(times.notes)
            return manifest, plan
        except UnreachableTarget as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _candidates(repository: Repository, cluster: str | None, backup: str | None) -> Sequence[Sequence[Manifest]]:
    """The backups to choose among; where a cluster was made anew under its name, those of the newest come first."""
    if backup is not None:
        return [[repository.catalog.find(backup, cluster)]]
    # where there is none, find says so
    manifests = list(repository.catalog.read_all(cluster)) or [repository.catalog.find("latest", cluster)]
    names = sorted({manifest.cluster for manifest in manifests})
    if len(names) > 1:
        raise UsageError(
            f"{repository.store.url} has backups of several clusters",
            hint=f"choose one with --cluster: {', '.join(names)}",
        )
    by_system = sorted(manifests, key=lambda manifest: (manifest.system_identifier, manifest.id))
    groups = [list(group) for _, group in groupby(by_system, key=lambda manifest: manifest.system_identifier)]
    return sorted(groups, key=lambda group: group[-1].id, reverse=True)
