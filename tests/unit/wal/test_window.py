"""Recovery windows of worlds made by hand, and of any."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from pgkeep.postgres.lsn import LSN
from pgkeep.repository.manifests import Manifest
from pgkeep.wal.inventory import WalSpan
from pgkeep.wal.window import WalStamp, Window, recovery_windows
from support.wal_model import BASE_TIME, SEGMENT, World, place

MINUTE = timedelta(minutes=1)


def at(minute: float) -> datetime:
    return BASE_TIME + minute * MINUTE


def back_up(world: World, timeline: int, minute: float) -> Manifest:
    start = place(world.end_of(timeline), 8)[0]
    world.write(timeline, "checkpoint", size=120, time=at(minute))
    return world.back_up(timeline, start, world.write(timeline).end_lsn)


def write(world: World, timeline: int, *minutes: float) -> None:
    for minute in minutes:
        world.write(timeline, "commit", time=at(minute), xid=round(1000 + minute), size=4000)


def windows_of(world: World, *stamps: WalStamp) -> list[Window]:
    return recovery_windows(world.manifests, world.inventory(), world.times(), stamps)


@pytest.fixture
def world() -> World:
    """A transaction a minute from 1 to 20 on timeline 1, and backups at 0.5 and 10.5."""
    made = World()
    made.begin()
    write(made, 1, 0.4)
    back_up(made, 1, 0.5)
    write(made, 1, *range(1, 11))
    back_up(made, 1, 10.5)
    write(made, 1, *range(11, 21))
    return made


def test_a_window_goes_from_the_end_of_the_first_backup_to_the_end_of_the_wal(world: World) -> None:
    (window,) = windows_of(world)
    first, second = world.manifests
    assert (window.start_lsn, window.end_lsn) == (first.stop_lsn, world.end_of(1))
    assert (window.start_time, window.end_time) == (at(0.5) + timedelta(seconds=1), at(20))
    assert [(start.backup, start.lsn, start.time) for start in window.starts] == [
        (first.id, first.stop_lsn, window.start_time),
        (second.id, second.stop_lsn, at(10)),
    ]
    assert window.gap is None


def test_a_window_ends_with_the_last_record_that_is_whole(world: World) -> None:
    last = world.records[1][-1]
    world.cut[1] = last.end_lsn - 8
    (window,) = windows_of(world)
    assert (window.end_lsn, window.end_time) == (last.lsn, at(19))


def test_a_gap_ends_a_window_and_a_later_backup_begins_the_next(world: World) -> None:
    gone = next(r.lsn for r in world.records[1] if r.time == at(5))
    start = gone - gone % SEGMENT
    world.missing.add((1, start))
    early, late = windows_of(world)
    assert early.gap == WalSpan(LSN(start), LSN(start + SEGMENT))
    assert early.end_lsn <= start
    assert (late.start_lsn, late.gap) == (world.manifests[1].stop_lsn, None)


def test_wal_behind_a_gap_without_a_backup_is_in_no_window(world: World) -> None:
    gone = next(r.lsn for r in world.records[1] if r.time == at(15))
    world.missing.add((1, gone - gone % SEGMENT))
    (window,) = windows_of(world)
    assert window.end_lsn <= gone
    assert window.gap is not None


def test_a_branch_begins_where_it_branches_off_and_when_it_was_made(world: World) -> None:
    fork = next(r.end_lsn for r in world.records[1] if r.time == at(12))
    world.begin(2, 1, fork)
    world.write(2, "end_of_recovery", time=at(30))
    write(world, 2, 31, 32)
    old, new = windows_of(world)
    assert (old.timeline, old.end_lsn, old.end_time) == (1, world.end_of(1), at(20))
    assert (new.timeline, new.start_lsn, new.start_time) == (2, fork, at(30))
    assert (new.end_lsn, new.end_time) == (world.end_of(2), at(32))
    assert [start.backup for start in new.starts] == [world.manifests[1].id]


def test_a_branch_that_no_wal_leads_to_has_no_window(world: World) -> None:
    fork = next(r.end_lsn for r in world.records[1] if r.time == at(12))
    world.begin(2, 1, fork)
    write(world, 2, 31)
    world.missing |= {(1, fork - fork % SEGMENT - SEGMENT)}
    assert [window.timeline for window in windows_of(world)] == [1]


def test_a_receiver_knows_that_nothing_happened_since(world: World) -> None:
    (window,) = windows_of(world, WalStamp(1, world.end_of(1), at(25)))
    assert window.end_time == at(25)
    (window,) = windows_of(world, WalStamp(2, world.end_of(1), at(25)))
    assert window.end_time == at(20)


def test_without_backups_there_is_no_window(world: World) -> None:
    world.manifests.clear()
    assert windows_of(world) == []
