"""Which moment a drill goes back to when nobody names one: any of the recovery window, chosen by a seed that is recorded.

Where the window has a switch of timelines that can be crossed, the moment lies behind one and the backup before it: that is the way that
breaks first.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta

import msgspec

from pgkeep.drill.record import DrillTarget
from pgkeep.errors import NotFoundError
from pgkeep.postgres.lsn import LSN
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.target import RecoveryPlan, RecoveryTarget
from pgkeep.wal.overview import Overview, read_overview
from pgkeep.wal.window import WalStamp, Window, WindowStart

__all__ = ["Moment", "new_seed", "random_moment", "resolved", "window_of"]

_SEEDS = 1 << 31


@dataclass(frozen=True, slots=True)
class Moment:
    """Where to begin, and where to stop."""

    backup: str
    target: RecoveryTarget


def new_seed() -> int:
    """One that can be read out over the telephone."""
    return random.SystemRandom().randrange(_SEEDS)


def window_of(repository: Repository, cluster: str, stamps: Sequence[WalStamp]) -> Overview:
    """What can be reached in a repository, of the newest system of a cluster. Raises NotFoundError."""
    manifests = list(repository.catalog.read_all(cluster))
    if not manifests:
        raise NotFoundError(
            f"there is no backup of cluster {cluster} in {repository.store.url} yet", hint="pgkeep backup takes one"
        )
    newest = manifests[-1].system_identifier
    own: list[Manifest] = [manifest for manifest in manifests if manifest.system_identifier == newest]
    return read_overview(repository, newest, own, stamps)


def random_moment(
    overview: Overview,
    manifests: Sequence[Manifest],
    seed: int,
    backup: str | None = None,
    *,
    besides: Collection[str] = (),
) -> Moment:
    """The same for the same window and seed; ``backup`` where only the target is to be chosen, ``besides`` are backups to leave out.

    Raises NotFoundError.
    """
    born = {manifest.id: manifest.timeline for manifest in manifests}
    choices = [
        (window, start)
        for window in overview.windows
        for start in window.starts
        if backup in {None, start.backup} and start.backup not in besides and start.lsn <= window.end_lsn
    ]
    if not choices:
        raise NotFoundError(
            "nothing can be reached from any backup"
            if backup is None
            else f"nothing can be reached from backup {backup}",
            hint="pgkeep list --window shows what can, and what is missing",
        )
    crossing = [
        (window, start) for window, start in choices if born.get(start.backup, window.timeline) < window.timeline
    ]
    chance = random.Random(seed)  # noqa: S311 - it is to be repeated, not to be secret
    window, start = chance.choice(crossing or choices)
    return Moment(start.backup, _within(window, start, chance))


def _within(window: Window, start: WindowStart, chance: random.Random) -> RecoveryTarget:
    if chance.random() < 0.5 and window.end_time > start.time:
        span = window.end_time - start.time
        moment = start.time + timedelta(microseconds=chance.randrange(span // timedelta(microseconds=1) + 1))
        value = moment.astimezone(UTC).isoformat(timespec="microseconds")
        return RecoveryTarget(kind="time", value=value, timeline=window.timeline)
    lsn = LSN(chance.randint(start.lsn, max(window.end_lsn, start.lsn)))
    return RecoveryTarget(kind="lsn", value=str(lsn), timeline=window.timeline)


def resolved(how: DrillTarget, plan: RecoveryPlan) -> DrillTarget:
    """The target with what the plan found out about it."""
    target = plan.target
    return msgspec.structs.replace(
        how,
        kind=target.kind,
        value=target.value,
        exclusive=target.exclusive,
        timeline=plan.stop_timeline,
        time=target.time if target.kind == "time" else plan.stop_time,
        lsn=str(plan.stop_lsn),
    )
