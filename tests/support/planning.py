"""Plans in a world of WAL made by hand, each held against a server that follows it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from pgkeep.restore.choose import choose
from pgkeep.restore.target import RecoveryPlan, RecoveryTarget, target_time
from support.wal_model import BASE_TIME, World, recover

__all__ = ["MINUTE", "TICK", "at", "planned", "to", "with_options"]

MINUTE = timedelta(minutes=1)
TICK = timedelta(microseconds=1)


def at(minutes: float) -> datetime:
    return BASE_TIME + minutes * MINUTE


def to(moment: datetime, **options: Any) -> RecoveryTarget:
    return msgspec.structs.replace(target_time(moment.isoformat()), **options)


def with_options(target: RecoveryTarget, **options: Any) -> RecoveryTarget:
    return msgspec.structs.replace(target, **options)


def planned(world: World, target: RecoveryTarget, **options: Any) -> RecoveryPlan:
    """The plan, once a server that follows it has stopped exactly where it says."""
    manifest, plan = choose(target, world.manifests, world.inventory(), world.times(), **options)
    ended = recover(world, manifest, plan.settings)
    assert ended.lsn == plan.stop_lsn
    assert ended.result == ("end" if plan.target.kind == "latest" else "target")
    assert plan.backup == manifest.id
    assert plan.stop_timeline == world.histories[plan.path.timeline].timeline_of(plan.stop_lsn - 1)
    ends = [record for record in ended.replayed if record.kind in {"commit", "abort"}]
    assert plan.stop_time == (ends[-1].time if ends else None)
    return plan
