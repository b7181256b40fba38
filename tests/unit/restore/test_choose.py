"""Which backup, which timelines, where it stops: judged by a model of a server that recovers."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from pgkeep.errors import NotFoundError, StoreError, UsageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_events import WalEvent
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.choose import choose
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.target import (
    RecoveryTarget,
    immediate,
    latest,
    target_lsn,
    target_name,
    target_time,
    target_xid,
)
from pgkeep.wal.window import WalStamp
from support.planning import at, planned, to, with_options
from support.wal_model import PAGE, SEGMENT, World, place


def refused(world: World, target: RecoveryTarget, **options: Any) -> UnreachableTarget:
    with pytest.raises(UnreachableTarget) as caught:
        choose(target, world.manifests, world.inventory(), world.times(), **options)
    return caught.value


def back_up(world: World, timeline: int, minute: float, *, commits: int = 0) -> Manifest:
    """A backup that begins with a checkpoint at this minute, and during which so many transactions end in the next one."""
    start = place(world.end_of(timeline), 8)[0]
    world.write(timeline, "checkpoint", size=120, time=at(minute))
    for number in range(commits):
        world.write(timeline, "commit", time=at(minute + (number + 1) / (commits + 1)), xid=100_000 + start + number)
    return world.back_up(timeline, start, world.write(timeline).end_lsn)


def commit(world: World, timeline: int, minute: float, **options: Any) -> WalEvent:
    return world.write(timeline, "commit", time=at(minute), xid=1000 + round(minute), **options)


@pytest.fixture
def world() -> World:
    """A transaction each minute from 1 to 30, backups at 0, 10.1 and 20.1, and a checkpoint at 40."""
    made = World()
    made.begin()
    back_up(made, 1, 0)
    for minute in range(1, 31):
        commit(made, 1, minute, size=400)
        made.write(1, size=5000)
        if minute in {10, 20}:
            back_up(made, 1, minute + 0.1)
    made.write(1, "checkpoint", size=120, time=at(40))
    return made


def record_of(world: World, minute: int) -> WalEvent:
    return next(r for r in world.records[1] if r.kind == "commit" and r.time == at(minute))


class TestTimes:
    def test_recovery_stops_before_the_first_transaction_that_ended_later(self, world: World) -> None:
        plan = planned(world, to(at(25.5)))
        assert (plan.backup, plan.stop_time, plan.next_time) == ("B003", at(25), at(26))
        assert plan.settings == {
            "recovery_target_time": "2025-06-01 00:25:30.000000+00",
            "recovery_target_inclusive": "on",
            "recovery_target_timeline": "1",
            "recovery_target_action": "promote",
        }

    def test_a_transaction_of_just_that_time_is_taken_or_left_as_asked(self, world: World) -> None:
        assert planned(world, to(at(25))).stop_time == at(25)
        assert planned(world, to(at(25), exclusive=True)).stop_time == at(24)

    def test_the_latest_backup_that_is_early_enough_is_taken(self, world: World) -> None:
        assert planned(world, to(at(20.5))).backup == "B003"
        assert planned(world, to(at(19.5))).backup == "B002"
        assert planned(world, to(at(9))).backup == "B001"

    def test_a_backup_during_which_nothing_ended_shows_the_state_since_the_last_end(self, world: World) -> None:
        assert planned(world, to(at(20.05))).backup == "B003"

    def test_a_moment_within_a_backup_needs_the_one_before(self) -> None:
        world = World()
        world.begin()
        back_up(world, 1, 0)
        commit(world, 1, 1)
        back_up(world, 1, 2, commits=3)
        commit(world, 1, 5)
        assert planned(world, to(at(2.6))).backup == "B001"
        assert planned(world, to(at(2.75))).backup == "B002"

    def test_a_time_after_the_last_transaction_is_reached_where_a_checkpoint_says_so(self, world: World) -> None:
        plan = planned(world, to(at(40)))
        assert plan.stop_lsn == world.end_of(1)
        assert plan.settings["recovery_target_lsn"] == str(world.records[1][-1].lsn)
        assert not plan.open_ended

    def test_a_time_after_all_that_is_known_is_refused_with_the_latest_that_is(self, world: World) -> None:
        error = refused(world, to(at(41)))
        assert error.before is not None
        assert error.before.lsn == world.end_of(1)
        assert '--to "2025-06-01 00:40:00.000000+00"' in (error.hint or "")
        assert error.after is None

    def test_a_receiver_that_heard_of_the_server_since_makes_it_known(self, world: World) -> None:
        stamps = [WalStamp(1, world.end_of(1), at(50))]
        assert planned(world, to(at(49)), stamps=stamps).stop_lsn == world.end_of(1)
        assert refused(world, to(at(51)), stamps=stamps).before is not None

    def test_a_receiver_that_heard_of_more_than_there_is_makes_nothing_known(self, world: World) -> None:
        assert refused(world, to(at(49)), stamps=[WalStamp(1, LSN(world.end_of(1) + 8), at(50))]).after is None

    def test_a_time_before_the_first_backup_is_refused_with_the_earliest(self, world: World) -> None:
        error = refused(world, to(at(-5)))
        assert error.before is None
        assert error.after is not None
        assert (error.after.backup, error.after.lsn) == ("B001", world.manifests[0].stop_lsn)

    def test_a_backup_is_not_older_than_its_checkpoint(self, world: World) -> None:
        """Nothing was committed meanwhile, so a server would stop for any time before; but it would show a later state."""
        assert refused(world, to(at(0))).after is not None
        assert planned(world, to(at(0) + timedelta(seconds=1))).backup == "B001"

    def test_a_time_in_a_gap_names_both_sides(self, world: World) -> None:
        gone = record_of(world, 15).lsn
        world.missing.add((1, gone - gone % SEGMENT))
        error = refused(world, to(at(17)))
        assert error.before is not None
        assert error.after is not None
        assert error.before.lsn < gone < error.after.lsn
        assert (error.before.backup, error.after.backup) == ("B002", "B003")
        for nearest in (error.before, error.after):
            option, value = nearest.options.split(" ", 1)
            assert option == "--to"
            planned(world, target_time(value.strip('"')))

    def test_a_named_backup_must_reach_it_itself(self, world: World) -> None:
        assert planned(world, to(at(25)), backup=world.manifests[0]).backup == "B001"
        error = refused(world, to(at(5)), backup=world.manifests[2])
        assert "from backup B003" in str(error)
        assert error.after is not None
        assert error.after.backup == "B003"

    def test_where_the_clock_was_set_back_a_server_stops_at_the_first(self) -> None:
        world = World()
        world.begin()
        back_up(world, 1, 0)
        for minute in (1, 10, 5, 6, 12):
            commit(world, 1, minute)
        plan = planned(world, to(at(5.5)))
        assert (plan.stop_time, plan.next_time) == (at(1), at(10))


class TestPositions:
    def test_the_record_at_the_position_is_taken_or_left_as_asked(self, world: World) -> None:
        record = record_of(world, 25)
        assert planned(world, target_lsn(str(record.lsn))).stop_lsn == record.end_lsn
        assert planned(world, with_options(target_lsn(str(record.lsn)), exclusive=True)).stop_time == at(24)

    def test_a_position_within_a_record_stops_behind_the_next_one(self, world: World) -> None:
        record = record_of(world, 25)
        after = world.records[1][world.records[1].index(record) + 1]
        assert planned(world, target_lsn(str(LSN(record.lsn + 8)))).stop_lsn == after.end_lsn

    def test_the_end_of_a_backup_is_reached_from_that_backup(self, world: World) -> None:
        stop = LSN(world.manifests[1].stop_lsn)
        assert planned(world, with_options(target_lsn(str(stop)), exclusive=True)).backup == "B002"
        assert planned(world, target_lsn(str(LSN(stop - 8)))).backup == "B001"

    def test_the_end_of_the_wal_is_reached_though_no_record_begins_there(self, world: World) -> None:
        end = world.end_of(1)
        for exclusive in (False, True):
            plan = planned(world, with_options(target_lsn(str(end)), exclusive=exclusive))
            assert plan.stop_lsn == end
            assert "no record begins" in plan.notes[0]

    def test_positions_beyond_are_refused(self, world: World) -> None:
        beyond = refused(world, target_lsn(str(LSN(world.end_of(1) + 8))))
        assert beyond.before is not None
        assert beyond.before.options == f"--to-lsn {world.end_of(1)}"
        before = refused(world, target_lsn(str(LSN(world.manifests[0].stop_lsn - 8))))
        assert before.after is not None
        assert before.after.options == f"--to-lsn {LSN(world.manifests[0].stop_lsn)}"
        for nearest in (beyond.before, before.after):
            planned(world, target_lsn(nearest.options.removeprefix("--to-lsn ")))

    def test_a_record_of_which_only_a_part_is_held_is_no_stop(self, world: World) -> None:
        last = world.records[1][-1]
        world.cut[1] = last.end_lsn - 8
        assert planned(world, target_lsn(str(last.lsn))).stop_lsn == last.lsn
        assert refused(world, target_lsn(str(LSN(last.lsn + 8)))).before is not None


class TestTransactions:
    def test_recovery_stops_behind_its_end_or_before_it(self, world: World) -> None:
        record = record_of(world, 25)
        assert planned(world, target_xid("1025")).stop_lsn == record.end_lsn
        assert planned(world, with_options(target_xid("1025"), exclusive=True)).stop_time == at(24)

    def test_a_transaction_that_was_rolled_back_counts_and_is_told(self, world: World) -> None:
        world.write(1, "abort", time=at(41), xid=5000)
        assert planned(world, target_xid("5000")).notes == ["this transaction was rolled back"]

    def test_an_unknown_one_is_refused_with_its_neighbours(self, world: World) -> None:
        world.write(1, "commit", time=at(41), xid=5000)
        error = refused(world, target_xid("3000"))
        assert error.before is not None
        assert error.after is not None
        assert (error.before.options, error.after.options) == ("--to-xid 1030", "--to-xid 5000")
        for nearest in (error.before, error.after):
            planned(world, target_xid(nearest.options.removeprefix("--to-xid ")))

    def test_one_that_ended_before_the_backup_is_refused_with_its_place(self, world: World) -> None:
        error = refused(world, target_xid("1005"), backup=world.manifests[1])
        assert f"it lies at LSN {record_of(world, 5).lsn}" in str(error)
        assert error.after is not None
        assert error.after.backup == "B002"

    def test_an_id_that_came_twice_means_the_later_one(self, world: World) -> None:
        later = world.write(1, "commit", time=at(41), xid=1005)
        assert planned(world, target_xid("1005")).stop_lsn == later.end_lsn


class TestRestorePoints:
    def test_recovery_stops_behind_it(self, world: World) -> None:
        point = world.write(1, "restore_point", time=at(41), name="before the migration", size=120)
        commit(world, 1, 42)
        plan = planned(world, target_name("before the migration"))
        assert (plan.stop_lsn, plan.backup) == (point.end_lsn, "B003")

    def test_of_several_with_one_name_the_last_is_taken_and_the_others_named(self, world: World) -> None:
        first = world.write(1, "restore_point", time=at(41), name="again", size=120)
        second = world.write(1, "restore_point", time=at(42), name="again", size=120)
        plan = planned(world, target_name("again"))
        assert plan.stop_lsn == second.end_lsn
        assert f"--to-lsn {first.lsn}" in plan.notes[0]

    def test_an_unknown_name_is_refused_with_those_that_are_like_it(self, world: World) -> None:
        world.write(1, "restore_point", time=at(41), name="before_migration", size=120)
        error = refused(world, target_name("before_migraton"))
        assert "did you mean 'before_migration'?" in str(error)
        assert error.hint == "pgkeep restore --to-name before_migration"

    def test_one_before_all_backups_is_refused_with_its_place(self) -> None:
        world = World()
        world.begin()
        point = world.write(1, "restore_point", time=at(1), name="early", size=120)
        back_up(world, 1, 2)
        error = refused(world, target_name("early"))
        assert f"it lies at LSN {point.lsn}" in str(error)
        assert error.after is not None


@pytest.fixture
def branched(world: World) -> World:
    """The server was set back to minute 12 at minute 45, and goes on as timeline 2, with a backup at 60."""
    fork = record_of(world, 12).end_lsn
    world.begin(2, 1, fork)
    world.write(2, "end_of_recovery", time=at(45))
    for minute in range(46, 60):
        commit(world, 2, minute, size=1500)
    back_up(world, 2, 60)
    commit(world, 2, 61)
    return world


class TestBranches:
    def test_the_newest_timeline_is_taken(self, branched: World) -> None:
        plan = planned(branched, to(at(50.5)))
        assert (plan.path.timeline, plan.stop_timeline, plan.backup) == (2, 2, "B002")
        assert planned(branched, to(at(60.5))).backup == "B004"

    def test_a_time_before_the_branch_is_the_same_on_both(self, branched: World) -> None:
        plan = planned(branched, to(at(11.5)))
        assert (plan.stop_timeline, plan.stop_time, plan.notes) == (1, at(11), [])

    def test_a_time_that_only_the_old_timeline_lived_is_taken_there(self, branched: World) -> None:
        """On the way to timeline 2 the same time would be the moment at which it branches off: not what the server was then."""
        plan = planned(branched, to(at(22.5)))
        assert (plan.path.timeline, plan.stop_time) == (1, at(22))
        assert "lies on timeline 2 too" in plan.notes[0]

    def test_a_timeline_may_be_chosen(self, branched: World) -> None:
        plan = planned(branched, to(at(20.5), timeline=2))
        assert (plan.path.timeline, plan.stop_time, plan.next_time) == (2, at(12), at(46))
        assert planned(branched, with_options(latest, timeline=1)).stop_lsn == branched.end_of(1)
        assert planned(branched, latest).stop_lsn == branched.end_of(2)

    def test_a_position_that_both_have_is_the_newer_ones_and_the_other_is_told(self, branched: World) -> None:
        lsn = record_of(branched, 14).lsn
        plan = planned(branched, target_lsn(str(lsn)))
        assert plan.stop_timeline == 2
        assert "--timeline 1 takes that" in plan.notes[0]
        assert planned(branched, with_options(target_lsn(str(lsn)), timeline=1)).stop_timeline == 1

    def test_a_transaction_of_the_old_timeline_is_found_there(self, branched: World) -> None:
        plan = planned(branched, target_xid("1029"))
        assert (plan.path.timeline, plan.notes) == (1, [])

    def test_an_unknown_timeline_is_refused(self, branched: World) -> None:
        with pytest.raises(NotFoundError, match=r"no 00000009\.history"):
            planned(branched, with_options(latest, timeline=9))

    def test_a_timeline_that_no_backup_leads_to_is_refused(self, branched: World) -> None:
        with pytest.raises(NotFoundError, match="does not lie on the path to timeline 2"):
            planned(branched, with_options(latest, timeline=2), backup=branched.manifests[2])

    def test_a_newer_timeline_without_a_backup_is_told(self, branched: World) -> None:
        branched.manifests = [branched.manifests[2]]
        plan = planned(branched, latest)
        assert plan.path.timeline == 1
        assert plan.notes == ["timeline 2 is newer, but no backup leads to it"]

    def test_a_standby_follows_the_latest_timeline(self, branched: World) -> None:
        _, plan = choose(with_options(latest, standby=True), branched.manifests, branched.inventory(), branched.times())
        assert (plan.signal, plan.settings) == ("standby.signal", {"recovery_target_timeline": "latest"})


class TestEnds:
    def test_latest_replays_everything_and_sets_no_target(self, world: World) -> None:
        plan = planned(world, latest)
        assert (plan.stop_lsn, plan.backup, plan.open_ended) == (world.end_of(1), "B003", True)
        assert plan.settings == {"recovery_target_timeline": "1"}

    def test_latest_is_refused_where_more_wal_lies_behind_a_gap(self, world: World) -> None:
        gone = record_of(world, 28).lsn
        world.missing.add((1, gone - gone % SEGMENT))
        with pytest.raises(NotFoundError, match=r"WAL is missing from .* cannot be reached") as caught:
            choose(latest, world.manifests, world.inventory(), world.times())
        command = re.search(r"--to-lsn (\S+)", caught.value.hint or "")
        assert command is not None
        assert planned(world, target_lsn(command[1])).stop_lsn == LSN.parse(command[1])
        assert "WAL is missing" in planned(world, latest, strict=False).notes[0]

    def test_immediate_is_the_end_of_the_newest_backup(self, world: World) -> None:
        plan = planned(world, immediate)
        assert (plan.backup, plan.stop_lsn) == ("B003", world.manifests[2].stop_lsn)
        assert plan.settings["recovery_target"] == "immediate"

    def test_immediate_stays_on_the_timeline_of_the_backup(self, branched: World) -> None:
        assert planned(branched, immediate).path.timeline == 2
        assert planned(branched, immediate, backup=branched.manifests[2]).path.timeline == 1

    def test_a_backup_without_its_own_wal_is_refused(self, world: World) -> None:
        start = world.manifests[1].start_lsn
        world.missing.add((1, start - start % SEGMENT))
        with pytest.raises(StoreError, match="backup B002 needs WAL that the repository has lost"):
            planned(world, immediate, backup=world.manifests[1])
        assert planned(world, to(at(25))).backup == "B003"

    def test_without_a_backup_there_is_nothing_to_choose(self, world: World) -> None:
        with pytest.raises(NotFoundError, match="no backup to start from"):
            choose(latest, [], world.inventory(), world.times())

    @pytest.mark.parametrize(
        "target",
        [
            with_options(latest, exclusive=True),
            with_options(immediate, exclusive=True),
            with_options(target_name("x"), exclusive=True),
            with_options(target_xid("5"), standby=True),
            with_options(latest, action="pause"),
        ],
    )
    def test_what_cannot_be_is_refused(self, world: World, target: RecoveryTarget) -> None:
        with pytest.raises(UsageError):
            planned(world, target)

    def test_a_stop_behind_a_page_header_is_where_the_page_begins(self) -> None:
        """The server says where the record before ended: in front of the header."""
        world = World()
        world.begin()
        back_up(world, 1, 0)
        world.write(1, size=PAGE - world.end_of(1) % PAGE)
        record = commit(world, 1, 5)
        assert record.lsn % PAGE in {24, 40}
        assert planned(world, to(at(4))).stop_lsn % PAGE == 0
