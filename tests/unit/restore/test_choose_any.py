"""Plans in any world: what is planned is reached, what is refused cannot be, and the nearest targets are the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import NotFoundError, StoreError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal_events import WalEvent
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.choose import choose
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.target import RecoveryPlan, RecoveryTarget, target_lsn, target_name, target_time, target_xid
from pgkeep.wal.window import recovery_windows
from support.planning import MINUTE, TICK, planned, to, with_options
from support.wal_model import BASE_TIME, SEGMENT, Ended, World, place, recover


@st.composite
def worlds(draw: st.DrawFn, *, clocks_jump: bool = False) -> World:
    """Up to three timelines, with backups, gaps, and an end anywhere."""
    world = World()
    world.begin()
    now = BASE_TIME
    xid = 1000
    steps = st.tuples(st.integers(0, 11), st.integers(0, 99), st.sampled_from([90_000_000, 3_000_000, 1, 0]))
    world.write(1, "commit", time=now - MINUTE, xid=999)
    if draw(st.integers(0, 9)):
        start = world.end_of(1)
        world.write(1, "checkpoint", time=now, size=120)
        world.back_up(1, start, world.write(1).end_lsn)
    for kind, number, microseconds in draw(st.lists(steps, min_size=5, max_size=40)):
        timeline = sorted(world.records)[number % len(world.records)]
        now += timedelta(microseconds=microseconds)
        if clocks_jump and number > 90:
            now -= timedelta(minutes=5)
        xid += 1
        if kind <= 3:
            world.write(timeline, "commit" if number % 4 else "abort", time=now, xid=xid, size=48 + 8 * number)
        elif kind <= 5:
            world.write(timeline, size=24 + 8 * (number**2 % 2500))
        elif kind == 6:
            world.write(timeline, "checkpoint", time=now.replace(microsecond=0), size=120)
        elif kind == 7:
            world.write(timeline, "restore_point", time=now, name="abc"[number % 3], size=120)
        elif kind == 8:
            world.write(timeline, "switch", size=24)
        elif kind <= 10:
            start = place(world.end_of(timeline), 8)[0]
            world.write(timeline, "checkpoint", time=now.replace(microsecond=0), size=120)
            if number % 2:
                xid += 1
                world.write(timeline, "commit", time=now, xid=xid)
            world.back_up(timeline, start, world.write(timeline).end_lsn)
        elif len(world.records) < 3 and world.records[timeline]:
            fork = world.records[timeline][number % len(world.records[timeline])].end_lsn
            child = len(world.records) + 1
            world.begin(child, timeline, fork)
            world.write(child, "end_of_recovery", time=now)
    for timeline in world.records:
        starts = sorted(world.inventory().timelines[timeline].whole)
        world.missing |= {
            (timeline, start)
            for start in draw(st.sets(st.sampled_from(starts), max_size=1) if starts else st.just(set()))
        }
        if draw(st.booleans()):
            switches = world.histories[timeline].switches
            begin = switches[-1].lsn if switches else SEGMENT
            world.cut[timeline] = max(begin, world.end_of(timeline) - 8 * draw(st.integers(0, 200)))
    return world


def starts(world: World) -> Iterator[tuple[TimelineHistory, Manifest]]:
    """Every backup on every path on which it becomes consistent."""
    for path in world.histories.values():
        for manifest in world.manifests:
            if manifest.timeline not in path.timelines:
                continue
            if {path.timeline_of(manifest.start_lsn), path.timeline_of(manifest.stop_lsn - 1)} != {manifest.timeline}:
                continue
            if to_the_end(world, path, manifest).result == "end":
                yield path, manifest


def to_the_end(world: World, path: TimelineHistory, manifest: Manifest) -> Ended:
    return recover(world, manifest, {"recovery_target_timeline": str(path.timeline)})


def shows_the_state_since(world: World, path: TimelineHistory, manifest: Manifest) -> datetime:
    """A backup shows the state at the last end of a transaction that it holds, or at its checkpoint."""
    inside = [r for r in to_the_end(world, path, manifest).replayed if r.lsn < manifest.stop_lsn]
    ends = [r.time for r in inside if r.kind in {"commit", "abort"} and r.time is not None]
    checkpoints = [r.time for r in inside if r.kind == "checkpoint" and r.time is not None]
    return max(ends) if ends else checkpoints[0] + timedelta(seconds=1) if checkpoints else manifest.started


def is_known_until(world: World, path: TimelineHistory, manifest: Manifest) -> datetime:
    """The last end of a transaction, or anything that the server dated afterwards."""
    replayed = to_the_end(world, path, manifest).replayed
    last = max((r.lsn for r in replayed if r.kind in {"commit", "abort"}), default=0)
    times = [r.time for r in replayed if r.lsn >= last and r.time is not None]
    return max([shows_the_state_since(world, path, manifest), *times])


def can_be_reached(world: World, target: RecoveryTarget) -> bool:
    """Whether any backup leads to the target along any path."""
    return any(reaches(world, target, path, manifest) for path, manifest in starts(world))


def reaches(world: World, target: RecoveryTarget, path: TimelineHistory, manifest: Manifest) -> bool:
    name = {"time": "recovery_target_time", "lsn": "recovery_target_lsn", "xid": "recovery_target_xid"}
    settings = {
        "recovery_target_timeline": str(path.timeline),
        name.get(target.kind, "recovery_target_name"): target.value,
        "recovery_target_inclusive": "off" if target.exclusive else "on",
    }
    ended = recover(world, manifest, settings)
    if target.kind == "time":
        moment = target.time - TICK if target.exclusive else target.time
        if moment < shows_the_state_since(world, path, manifest):
            return False
        if ended.result == "end":
            return moment <= is_known_until(world, path, manifest)
    if target.kind == "lsn":
        if target.lsn < manifest.stop_lsn:
            return False
        if ended.result == "end":
            return target.lsn <= ended.lsn
    if target.kind == "name" and ended.result == "inconsistent":
        # the planner may go to a later one of the name
        return any(
            r.kind == "restore_point" and r.name == target.value and r.lsn >= manifest.stop_lsn
            for r in to_the_end(world, path, manifest).replayed
        )
    return ended.result == "target"


@st.composite
def targets(draw: st.DrawFn, world: World) -> RecoveryTarget:
    """At, before and after everything that there is."""
    records = [record for timeline in world.records.values() for record in timeline]
    record = draw(st.sampled_from(records)) if records else None
    kind = draw(st.sampled_from(["time", "time", "lsn", "xid", "name"]))
    exclusive = draw(st.booleans())
    nudge = draw(st.sampled_from([-1, 0, 1, 1_500_000]))
    if kind == "time":
        moment = BASE_TIME if record is None or record.time is None else record.time
        return to(moment + nudge * TICK, exclusive=exclusive)
    if kind == "lsn":
        position = SEGMENT if record is None else draw(st.sampled_from([record.lsn, record.end_lsn]))
        return with_options(target_lsn(str(LSN(position + 8 * nudge))), exclusive=exclusive)
    if kind == "xid":
        xid = 1000 if record is None or record.xid is None else record.xid
        return with_options(target_xid(str(xid + nudge)), exclusive=exclusive)
    return target_name(draw(st.sampled_from("abcd")))


@settings(max_examples=400)
@given(st.data(), st.booleans())
def test_what_is_planned_is_reached_and_what_is_refused_cannot_be(data: st.DataObject, clocks_jump: bool) -> None:
    world = data.draw(worlds(clocks_jump=clocks_jump))
    target = data.draw(targets(world))
    try:
        plan = planned(world, target)
    except (UnreachableTarget, NotFoundError, StoreError):
        assert not can_be_reached(world, target)
    else:
        if target.kind == "time" and not clocks_jump:
            assert_is_the_state_at(world, plan, target)


def assert_is_the_state_at(world: World, plan: RecoveryPlan, target: RecoveryTarget) -> None:
    """All that had ended by then is there, nothing else: even of what the repository does not hold.

    But for what ended in the same microsecond as the last that it holds: nothing tells that there was more.
    """
    ends = [r for r in world.along(plan.path) if r.kind in {"commit", "abort"} and r.time is not None]
    held = world.held(plan.path)
    for record in ends:
        assert record.time is not None
        if record.time == target.time and record not in held:
            continue
        early_enough = record.time < target.time if target.exclusive else record.time <= target.time
        assert early_enough == (record.lsn < plan.stop_lsn)


@settings(max_examples=300)
@given(st.data())
def test_the_nearest_targets_are_reached_and_nothing_lies_between(data: st.DataObject) -> None:
    world = data.draw(worlds())
    target = data.draw(targets(world).filter(lambda target: target.kind in {"time", "lsn"}))
    try:
        choose(target, world.manifests, world.inventory(), world.times())
    except UnreachableTarget as error:
        options = [nearest.options for nearest in (error.before, error.after) if nearest is not None]
    except (NotFoundError, StoreError):
        return
    else:
        return
    found = [as_target(option) for option in options]
    for nearest in found:
        planned(world, nearest)
    records = [record for timeline in world.records.values() for record in timeline]
    for record in records:
        for between in candidates(record, target):
            if all(min(key(near), key(target)) < key(between) < max(key(near), key(target)) for near in found[:1]):
                assert not can_be_reached(world, between)


def as_target(option: str) -> RecoveryTarget:
    name, value = option.split(" ", 1)
    return target_lsn(value) if name == "--to-lsn" else target_time(value.strip('"'))


def candidates(record: WalEvent, target: RecoveryTarget) -> list[RecoveryTarget]:
    if target.kind == "lsn":
        return [target_lsn(str(lsn)) for lsn in (record.lsn, record.end_lsn)]
    return [] if record.time is None else [to(record.time), to(record.time + TICK)]


def key(target: RecoveryTarget) -> Any:
    return target.time if target.kind == "time" else target.lsn


@settings(max_examples=200)
@given(worlds())
def test_both_ends_of_every_window_are_reached(world: World) -> None:
    for window in recovery_windows(world.manifests, world.inventory(), world.times()):
        for lsn in (window.start_lsn, window.end_lsn):
            target = with_options(target_lsn(str(lsn)), timeline=window.timeline, exclusive=True)
            assert planned(world, target).stop_lsn <= lsn
        for moment in (window.start_time, window.end_time):
            planned(world, to(moment, timeline=window.timeline))
