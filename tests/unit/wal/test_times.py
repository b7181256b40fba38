"""The index of times: what it says of WAL written by hand, on one timeline and across several, whole, with holes, and damaged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError, NotFoundError, StoreError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch, format_history, history_name
from pgkeep.postgres.wal import segment_name
from pgkeep.postgres.wal_records import WalEvent, WalRecordParser
from pgkeep.repository import Repository
from pgkeep.repository.sealed import ObjectType, write_sealed
from pgkeep.repository.wal_objects import WalArchive, piece_name
from pgkeep.verify import VerifyRequest, run_verify
from pgkeep.wal.inventory import TimelineWal, WalInventory
from pgkeep.wal.times import SegmentTimes, TimesWriter, WalTimes
from pgkeep.wal.times_groups import GROUP_SEGMENTS, TimesGroups
from support.hand_wal import HandWal
from support.jobs import new_repository

SYSTEM = 7123
SIZE = 1 << 20
GROUP = GROUP_SEGMENTS * SIZE
BASE = datetime(2025, 6, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LINE = TimelineHistory(1)


@dataclass
class Place:
    """A repository with WAL, and the store's reads counted."""

    directory: Path
    repository: Repository
    reads: list[str] = field(default_factory=list)

    @property
    def archive(self) -> WalArchive:
        return self.repository.wal(SYSTEM)

    def times(self) -> WalTimes:
        """The view of what is there now."""
        return WalTimes(self.repository, SYSTEM, WalInventory.read(self.archive, SIZE))

    def put(self, wal: HandWal, *, without: tuple[int, ...] = ()) -> None:
        """Keep a timeline's segments, as whole ones."""
        for number, (start, data) in enumerate(wal.segments()):
            if number not in without:
                self.archive.put(segment_name(wal.timeline, start, SIZE), data)

    def groups(self) -> list[str]:
        """The names of the index's objects."""
        return [info.name for info in self.repository.store.list(f"clusters/{SYSTEM}/times/")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    repository = new_repository(tmp_path / "repository")
    made = Place(tmp_path / "repository", repository)
    get = repository.store.get

    def counted(name: str, start: int = 0, length: int | None = None) -> bytes:
        made.reads.append(name)
        return get(name, start, length)

    monkeypatch.setattr(repository.store, "get", counted)
    return made


def busy(segments: int, *, start: int = SIZE, timeline: int = 1, first_xid: int = 1000) -> HandWal:
    """So many segments, each with three transactions' ends and a restore point; then the beginning of one more."""
    wal = HandWal(segment_size=SIZE, start=start, timeline=timeline)
    xid = first_xid
    for number in range(segments):
        _write_some(wal, number, xid)
        xid += 3
        wal.switch()
    _write_some(wal, segments, xid)
    return wal


def _write_some(wal: HandWal, number: int, xid: int) -> None:
    moment = BASE + 10 * number * SECOND
    wal.commit(moment, xid)
    wal.commit(moment + 5 * SECOND, xid + 1, abort=True)
    wal.restore_point(moment + 6 * SECOND, f"point {number % 3}".encode())
    wal.end_prepared(moment + 7 * SECOND, xid + 2)


def plain(event: WalEvent | None) -> tuple[object, ...] | None:
    """What an event on a path and one from a parser have in common."""
    return None if event is None else (event.kind, event.lsn, event.end_lsn, event.time, event.xid, event.name)


def ends_of(events: list[WalEvent]) -> list[WalEvent]:
    return [event for event in events if event.kind in {"commit", "abort"}]


def test_a_summary_says_what_is_in_a_segment(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=3 * SIZE)
    wal.checkpoint(BASE)
    first = wal.commit(BASE + 5 * SECOND, 9)
    wal.commit(BASE - SECOND, 4_000_000_000)
    point = wal.restore_point(BASE, b"here")
    last = wal.commit(BASE, 7, abort=True)
    wal.checkpoint(BASE + 60 * SECOND)
    wal.switch()
    place.put(wal)
    (summary,) = place.times().segments(1)
    microseconds = int(BASE.timestamp()) * 1_000_000
    assert summary == SegmentTimes(
        segment="000000010000000000000003",
        start=3 * SIZE,
        events=7,
        commits=2,
        aborts=1,
        first_lsn=first.lsn,
        last_lsn=last.lsn,
        min_time=microseconds - 1_000_000,
        max_time=microseconds + 5_000_000,
        min_xid=7,
        max_xid=4_000_000_000,
        restore_points=summary.restore_points,
        checkpoint_time=microseconds + 60_000_000,
    )
    (named,) = summary.restore_points
    assert (named.name, named.lsn, named.end_lsn, named.time) == (b"here", point.lsn, point.end_lsn, microseconds)
    assert not summary.is_empty
    assert place.times().events(1, 3 * SIZE) == wal.events


def test_a_segment_without_events_is_empty(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=3 * SIZE)
    wal.fill(5000)
    place.put(wal)
    (summary,) = place.times().segments(1)
    assert summary.is_empty
    assert summary.first_lsn is summary.min_time is summary.min_xid is summary.checkpoint_time is None


def test_a_thousand_segments_are_known_by_reading_the_index_alone(place: Place) -> None:
    starts = range(SIZE, 1001 * SIZE, SIZE)
    groups = TimesGroups(place.repository, SYSTEM, SIZE)
    summaries = [
        SegmentTimes(
            segment=segment_name(1, start, SIZE), start=start, events=1, commits=1, min_time=start, max_time=start
        )
        for start in starts
    ]
    # a group that is not full at its end is not written by anyone: here it stands for the last segments
    for group in range(0, 1001 * SIZE, GROUP):
        groups.write(1, group, [summary for summary in summaries if groups.group_of(summary.start) == group])
    wal = TimelineWal(1, SIZE, whole=set(starts))
    times = WalTimes(place.repository, SYSTEM, WalInventory(SIZE, {1: wal}, {}))
    assert times.segments(1) == summaries
    assert times.restore_points() == []
    assert times.newest_time(LINE, 0) == datetime.fromtimestamp(1000 * SIZE / 1e6, UTC)
    assert sorted(place.reads) == sorted(place.groups())
    assert len(place.reads) == 63


def test_a_search_along_groups_reads_one_segment(place: Place) -> None:
    wal = busy(40)
    place.put(wal)
    assert len(place.times().write_missing_groups()) == 2
    times = place.times()
    place.reads.clear()
    sought = ends_of(wal.events)[60]
    assert sought.time is not None
    found = times.first_commit_after(LINE, 0, sought.time, exclusive=True)
    assert plain(found) == plain(sought)
    assert [name for name in place.reads if "/wal/" in name] == [
        place.archive.object_name(segment_name(1, sought.lsn, SIZE))
    ]


def test_the_first_commit_after_a_moment_is_where_recovery_stops_wherever_clocks_jump(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=SIZE)
    offsets = [0, 5, 3, 9, 9, 1, 20, 4, 9, 30]
    for xid, offset in enumerate(offsets):
        wal.commit(BASE + offset * SECOND, 100 + xid, abort=xid % 3 == 1)
        if xid % 2:
            wal.switch()
    place.put(wal)
    times = place.times()
    ends = ends_of(wal.events)
    for start in (0, *(event.lsn for event in ends), wal.end):
        for offset in range(-1, 32):
            for exclusive in (False, True):
                moment = BASE + offset * SECOND
                later = [
                    end
                    for end in ends
                    if end.lsn >= start
                    and end.time is not None
                    and (end.time >= moment if exclusive else end.time > moment)
                ]
                found = times.first_commit_after(LINE, start, moment, exclusive=exclusive)
                assert plain(found) == (plain(later[0]) if later else None)


def test_the_last_commit_before_a_moment_is_looked_for_backward(place: Place) -> None:
    wal = busy(4)
    place.put(wal)
    times = place.times()
    ends = ends_of(wal.events)
    for upto in (SIZE, *(event.lsn for event in ends), wal.end):
        for offset in range(-1, 50, 3):
            moment = BASE + offset * SECOND
            earlier = [end for end in ends if end.lsn < upto and end.time is not None and end.time <= moment]
            assert plain(times.last_commit_before(LINE, upto, moment)) == (plain(earlier[-1]) if earlier else None)
    assert times.last_commit_before(LINE, wal.end, BASE + 50 * SECOND, from_lsn=wal.end) is None


def test_a_transaction_is_found_by_its_id_from_a_start_on_though_ids_come_again(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=SIZE)
    first = wal.commit(BASE, 4_294_967_290)
    wal.commit(BASE, 3)
    wal.switch()
    prepared = wal.end_prepared(BASE, 500)
    wal.commit(BASE, 4_294_967_295, subxacts=3)
    wal.switch()
    again = wal.commit(BASE, 4_294_967_290, abort=True)
    place.put(wal)
    times = place.times()
    assert plain(times.find_xid(LINE, 0, 4_294_967_290)) == plain(first)
    assert plain(times.find_xid(LINE, first.lsn, 4_294_967_290)) == plain(first)
    assert plain(times.find_xid(LINE, first.lsn + 1, 4_294_967_290)) == plain(again)
    assert plain(times.find_xid(LINE, 0, 500)) == plain(prepared)
    assert times.find_xid(LINE, prepared.end_lsn, 500) is None
    assert times.find_xid(LINE, 0, 4) is None


def test_restore_points_of_one_name_are_given_in_order_and_found_from_a_start_on(place: Place) -> None:
    wal = busy(8)
    wal.restore_point(BASE, "Prüfung \udcff".encode("utf-8", "surrogateescape"))
    place.put(wal)
    times = place.times()
    points = [event for event in wal.events if event.kind == "restore_point"]
    assert [plain(point) for point in times.restore_points()] == [plain(point) for point in points]
    assert {point.timeline for point in times.restore_points()} == {1}
    same = [point for point in points if point.name == "point 1"]
    assert len(same) == 3
    assert plain(times.find_name(LINE, 0, "point 1")) == plain(same[0])
    assert plain(times.find_name(LINE, same[0].lsn + 1, "point 1")) == plain(same[1])
    assert times.find_name(LINE, same[2].end_lsn, "point 1") is None
    assert plain(times.find_name(LINE, 0, "Prüfung \udcff")) == plain(points[-1])


def test_a_group_is_written_once_all_of_its_segments_are_there(place: Place) -> None:
    wal = busy(20)
    place.put(wal, without=(3,))
    assert place.times().write_missing_groups() == []
    late = wal.segments()[3]
    place.archive.put(segment_name(1, late[0], SIZE), late[1])
    (name,) = place.times().write_missing_groups()
    assert name == f"clusters/{SYSTEM}/times/00000001/00000000/000000010000000000000000"
    assert place.groups() == [name]
    assert place.times().write_missing_groups() == []
    there = TimesGroups(place.repository, SYSTEM, SIZE).read(1, 0)
    assert [summary.start for summary in there] == [number * SIZE for number in range(1, 16)]


def test_the_index_says_what_the_wal_says(place: Place) -> None:
    wal = busy(40)
    place.put(wal)
    without = place.times()
    read = without.segments(1)
    assert len(without.write_missing_groups()) == 2
    assert place.times().segments(1) == read
    assert sum(summary.commits for summary in read) == 2 * 41
    assert sum(summary.aborts for summary in read) == 41


def test_a_group_waits_for_the_rest_of_a_record_in_the_next_one(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=SIZE)
    for number in range(14):
        _write_some(wal, number, 10 * number + 3)
        wal.switch()
    while len(wal.data) < 15 * SIZE - 10_000:
        wal.fill(8000)
    wal.fill_up_to(8192 - 24)
    while len(wal.data) < 15 * SIZE - 8192:
        wal.fill_up_to(8192 - 24)
    crossing = wal.commit(BASE + 999 * SECOND, 4711)
    assert crossing.lsn < 16 * SIZE < crossing.end_lsn
    place.put(wal, without=(15,))
    assert place.times().write_missing_groups() == []
    assert place.times().find_xid(LINE, 0, 4711) is None
    rest = bytes(wal.data[15 * SIZE :])
    place.archive.put(piece_name(segment_name(1, 16 * SIZE, SIZE), 0, len(rest)), rest)
    assert len(place.times().write_missing_groups()) == 1
    assert plain(place.times().find_xid(LINE, 0, 4711)) == plain(crossing)


def test_segments_in_pieces_are_read_and_never_grouped(place: Place) -> None:
    wal = busy(20)
    place.put(wal, without=(15,))
    start, data = wal.segments()[15]
    name = segment_name(1, start, SIZE)
    inside = [event for event in wal.events if start <= event.lsn < start + SIZE]
    assert inside[-1].kind == "switch"
    size = inside[-1].lsn - start
    place.archive.put(piece_name(name, 0, 150), data[:150])
    place.archive.put(piece_name(name, 100, size), data[100:size])
    times = place.times()
    assert len(times.write_missing_groups()) == 1
    assert len(place.groups()) == 1
    assert times.segments(1)[15].commits == 2
    assert times.events(1, start) == inside[:-1]


def test_what_nobody_has_is_not_found(place: Place) -> None:
    place.put(busy(2))
    with pytest.raises(NotFoundError, match="000000010000000000000009"):
        place.times().events(1, 9 * SIZE)


def _two_timelines(segments: int = 5) -> tuple[HandWal, HandWal, TimelineHistory]:
    """A parent, and a child that branches off in the middle of what the parent went on to write."""
    parent = busy(segments)
    middle = parent.events[len(parent.events) // 2]
    switch = middle.end_lsn
    begin = switch - switch % SIZE
    child = HandWal(segment_size=SIZE, start=begin, timeline=2)
    child.data += parent.data[begin - parent.start : switch - parent.start]
    child.end_of_recovery(BASE + 1000 * SECOND)
    for number in range(3):
        child.commit(BASE + (1001 + number) * SECOND, 50_000 + number)
        child.restore_point(BASE + (1001 + number) * SECOND, b"of the child")
        child.switch()
    child.commit(BASE + 2000 * SECOND, 60_000)
    return parent, child, TimelineHistory(2, (TimelineSwitch(1, LSN(switch), "no recovery target specified"),))


def test_a_path_goes_over_to_the_next_timeline_where_it_branches_off(place: Place) -> None:
    parent, child, path = _two_timelines()
    place.put(parent)
    place.put(child)
    place.archive.put(history_name(2), format_history(path).encode())
    times = place.times()
    switch = path.start_of(2)
    expected = [(1, event) for event in parent.events if event.lsn < switch] + [(2, event) for event in child.events]
    ends = [(timeline, event) for timeline, event in expected if event.kind in {"commit", "abort"}]
    for timeline, event in ends:
        assert event.xid is not None
        found = times.find_xid(path, 0, event.xid)
        assert found is not None
        assert (found.timeline, plain(found)) == (timeline, plain(event))
    gone = [event for event in ends_of(parent.events) if event.lsn >= switch]
    for event in gone:
        assert event.xid is not None
        assert times.find_xid(path, 0, event.xid) is None
        assert plain(times.find_xid(LINE, 0, event.xid)) == plain(event)
    assert times.span(path, 0, child.end) == (ends[0][1].time, ends[-1][1].time)
    assert times.newest_time(path, 0) == BASE + 2000 * SECOND
    assert times.newest_time(LINE, 0) == max(event.time for event in parent.events if event.time is not None)
    assert times.earliest_time(path, switch) == BASE + 1001 * SECOND
    points = [
        (event.lsn, timeline)
        for timeline in (1, 2)
        for event in (parent, child)[timeline - 1].events
        if event.kind == "restore_point"
    ]
    assert [(point.lsn, point.timeline) for point in times.restore_points()] == points


def test_the_parents_word_ends_at_the_switch_where_the_childs_file_is_missing(place: Place) -> None:
    parent, child, path = _two_timelines()
    place.put(parent)
    place.put(child, without=(0,))
    place.archive.put(history_name(2), format_history(path).encode())
    times = place.times()
    switch = path.start_of(2)
    for event in ends_of(parent.events):
        assert event.xid is not None
        assert plain(times.find_xid(path, 0, event.xid)) == (plain(event) if event.lsn < switch else None)
    assert times.record_from(path, switch) is None


def test_the_parents_last_record_is_completed_from_the_childs_file(place: Place) -> None:
    parent = HandWal(segment_size=SIZE, start=SIZE)
    while len(parent.data) < SIZE - 9000:
        parent.fill(800)
    while len(parent.data) < SIZE - 8192:
        parent.fill_up_to(8192 - 32)
    crossing = parent.commit(BASE, 77, subxacts=20)
    assert crossing.lsn < 2 * SIZE < crossing.end_lsn
    child = HandWal(segment_size=SIZE, start=2 * SIZE, timeline=2)
    child.data += parent.data[SIZE:]
    own = child.commit(BASE + SECOND, 78)
    path = TimelineHistory(2, (TimelineSwitch(1, crossing.end_lsn),))
    place.put(parent, without=(1,))
    place.put(child)
    place.archive.put(history_name(2), format_history(path).encode())
    times = place.times()
    assert plain(times.find_xid(path, 0, 77)) == plain(crossing)
    assert plain(times.find_xid(path, 0, 78)) == plain(own)
    record = times.last_record(path, 0, crossing.end_lsn)
    assert record is not None
    assert (record.timeline, record.lsn, record.end_lsn) == (1, crossing.lsn, crossing.end_lsn)


def test_a_timeline_that_begins_in_the_middle_of_a_group_gets_it_from_its_first_segment_on(place: Place) -> None:
    parent, child, path = _two_timelines(30)
    for number in range(30):
        child.commit(BASE, 70_000 + number)
        child.switch()
    place.archive.put(history_name(2), format_history(path).encode())
    place.put(child, without=(0,))
    # the child's first segment has not come
    first = child.start // GROUP * GROUP
    assert TimesGroups(place.repository, SYSTEM, SIZE).object_name(2, first) not in place.times().write_missing_groups()
    place.put(child)
    place.put(parent)
    place.times().write_missing_groups()
    groups = TimesGroups(place.repository, SYSTEM, SIZE)
    assert groups.read(2, first)[0].start == child.start
    place.reads.clear()
    assert len(place.times().segments(2)) == len(child.segments())
    behind = [start for start, _ in child.segments() if groups.group_of(start) == groups.group_of(child.end)]
    assert sorted(name for name in place.reads if "/wal/00000002/0000000" in name and "history" not in name) == [
        place.archive.object_name(segment_name(2, start, SIZE)) for start in behind
    ]


def test_a_damaged_group_is_read_from_the_wal_and_named_in_a_note(place: Place) -> None:
    wal = busy(20)
    place.put(wal)
    expected = place.times().segments(1)
    (name,) = place.times().write_missing_groups()
    path = place.directory / name
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError):
        TimesGroups(place.repository, SYSTEM, SIZE).read(1, 0)
    times = place.times()
    assert times.segments(1) == expected
    (note,) = times.notes
    assert name in note
    # it is never replaced: whoever mends the repository wants to see it
    assert place.times().write_missing_groups() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x81\xa7version\x01",
        b"\x84\xa7version\x09\xa8timeline\x01\xacsegment_size\xce\x00\x10\x00\x00\xa8segments\x90",
    ],
)
def test_a_group_that_is_no_group_of_this_version_is_read_from_the_wal(place: Place, content: bytes) -> None:
    wal = busy(20)
    place.put(wal)
    expected = place.times().segments(1)
    name = TimesGroups(place.repository, SYSTEM, SIZE).object_name(1, 0)
    write_sealed(place.repository.store, place.repository.keys, name, ObjectType.WAL_TIMES, content)
    times = place.times()
    assert times.segments(1) == expected
    assert len(times.notes) == 1


def test_damaged_wal_is_an_error_and_not_silence(place: Place) -> None:
    place.put(busy(3))
    path = place.directory / place.archive.object_name(segment_name(1, 2 * SIZE, SIZE))
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match="000000010000000000000002"):
        place.times().segments(1)


def test_two_writers_at_once_write_the_same(place: Place) -> None:
    wal = busy(40)
    place.put(wal)
    expected = place.times().segments(1)
    written: list[list[str]] = []
    barrier = threading.Barrier(4)

    def write() -> None:
        times = place.times()
        barrier.wait()
        written.append(times.write_missing_groups())

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for names in written for name in names) == place.groups()
    assert len(place.groups()) == 2
    assert place.times().segments(1) == expected


def _write_live(place: Place, wal: HandWal, order: list[int], *, restart_at: int | None = None) -> list[str]:
    """Store segments in this order and give each to a writer, in chunks."""
    writer, created = TimesWriter(place.repository, SYSTEM, SIZE), []
    segments = wal.segments()
    for turn, number in enumerate(order):
        if turn == restart_at:
            writer = TimesWriter(place.repository, SYSTEM, SIZE)
        start, data = segments[number]
        place.archive.put(segment_name(wal.timeline, start, SIZE), data)
        created += writer.segment(wal.timeline, start, (data[at : at + 300_000] for at in range(0, SIZE, 300_000)))
    return created


def test_a_writer_creates_each_group_as_its_last_segment_comes_and_reads_nothing(place: Place) -> None:
    wal = busy(50, start=16 * SIZE)
    created = _write_live(place, wal, list(range(50)))
    assert created == place.groups()
    assert len(created) == 3
    assert not [name for name in place.reads if "/wal/" in name]
    assert place.times().segments(1)[:48] == _read_anew(place, wal)[:48]


def _read_anew(place: Place, wal: HandWal) -> list[SegmentTimes]:
    """The summaries without the index."""
    for name in place.groups():
        place.repository.store.delete(name)
    return place.times().segments(wal.timeline)


def test_a_writer_that_begins_in_the_middle_of_a_group_reads_what_came_before(place: Place) -> None:
    wal = busy(40)
    created = _write_live(place, wal, list(range(35)), restart_at=20)
    assert created == place.groups()
    assert len(created) == 2
    kept = place.times().segments(1)
    assert kept == _read_anew(place, wal)


def test_segments_that_come_in_any_order_make_the_same_groups(place: Place) -> None:
    wal = busy(40, start=16 * SIZE)
    order = [*range(3, 20), 1, 0, 2, *reversed(range(20, 40))]
    _write_live(place, wal, order)
    assert len(place.groups()) == 2
    kept = place.times().segments(1)
    assert kept == _read_anew(place, wal)


def test_a_writer_that_was_stopped_before_its_groups_last_record_was_whole_is_made_up_for(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=SIZE)
    for number in range(14):
        _write_some(wal, number, 10 * number + 3)
        wal.switch()
    while len(wal.data) < 15 * SIZE - 8192:
        wal.fill_up_to(8192 - 24)
    wal.commit(BASE + 999 * SECOND, 4711, subxacts=10)
    wal.switch()
    wal.commit(BASE, 4712)
    assert _write_live(place, wal, list(range(17)), restart_at=15) == place.groups()
    assert len(place.groups()) == 1
    assert place.times().find_xid(LINE, 0, 4711) is not None
    kept = place.times().segments(1)
    assert kept == _read_anew(place, wal)


def test_an_open_record_is_waited_for_by_a_writer_that_goes_on(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=16 * SIZE)
    while len(wal.data) < 16 * SIZE - 8192:
        wal.fill(min(100_000, 16 * SIZE - 8192 - len(wal.data) - 200) if len(wal.data) < 16 * SIZE - 20_000 else 400)
    wal.fill_up_to(8192 - 24)
    wal.commit(BASE, 4711, subxacts=10)
    wal.switch()
    segments = wal.segments()
    writer = TimesWriter(place.repository, SYSTEM, SIZE)
    created = []
    for start, data in segments:
        place.archive.put(segment_name(1, start, SIZE), data)
        created.append(writer.segment(1, start, data))
    assert [bool(names) for names in created] == [False] * 16 + [True]
    assert plain(place.times().find_xid(LINE, 0, 4711)) == plain(wal.events[0])


def test_a_segment_that_could_not_be_read_to_its_end_is_taken_when_it_comes_again(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=16 * SIZE)
    while len(wal.data) < SIZE - 8192:
        wal.fill_up_to(8192 - 24)
    crossing = wal.commit(BASE, 4711, subxacts=10)
    assert crossing.lsn < 17 * SIZE < crossing.end_lsn
    for number in range(15):
        wal.switch()
        wal.commit(BASE, 5000 + number)
    wal.switch()

    def broken(data: bytes) -> Iterator[bytes]:
        yield data[:70_000]
        raise StoreError("the spool is gone")

    writer = TimesWriter(place.repository, SYSTEM, SIZE)
    for number, (start, data) in enumerate(wal.segments()):
        place.archive.put(segment_name(1, start, SIZE), data)
        if number == 1:
            with pytest.raises(StoreError, match="the spool is gone"):
                writer.segment(1, start, broken(data))
        writer.segment(1, start, data)
    assert len(place.groups()) == 1
    assert plain(place.times().find_xid(LINE, 0, 4711)) == plain(crossing)
    kept = place.times().segments(1)
    assert kept == _read_anew(place, wal)


def test_a_scrub_knows_the_index_and_finds_damage_in_it(place: Place) -> None:
    place.put(busy(20))
    (name,) = place.times().write_missing_groups()
    request = VerifyRequest(content=False, max_age_seconds=0)
    assert run_verify(request, place.repository.store, None).damage == []
    path = place.directory / name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    (damage,) = run_verify(request, place.repository.store, None).damage
    assert damage.object_name == name


def test_records_are_found_from_a_position_on_and_back_from_one(place: Place) -> None:
    wal = HandWal(segment_size=SIZE, start=SIZE)
    for number in range(60):
        wal.fill(7 + number * number * 9)
        wal.commit(BASE, 5)
    wal.switch()
    wal.fill(SIZE + 70_000)
    wal.commit(BASE, 6)
    size = wal.end - wal.segments()[-1][0]
    last, data = wal.segments()[-1]
    place.put(wal, without=(len(wal.segments()) - 1,))
    place.archive.put(piece_name(segment_name(1, last, SIZE), 0, size), data[:size])
    times = place.times()
    every = [
        (record.lsn, record.end_lsn) for record in WalRecordParser(SIZE, every=True).feed(wal.start, bytes(wal.data))
    ]
    assert [lsn for lsn, _ in every] == wal.starts
    for lsn, end in every[::7] + every[-4:]:
        for position in (lsn - 1, lsn, lsn + 1, end):
            following = next((record for record in every if record[0] >= position), None)
            found = times.record_from(LINE, position)
            assert (None if found is None else (found.lsn, found.end_lsn)) == following
            before = [record for record in every if record[1] <= position]
            found = times.last_record(LINE, SIZE, position)
            assert (None if found is None else (found.lsn, found.end_lsn)) == (before[-1] if before else None)
    assert times.record_from(LINE, 100 * SIZE) is None


moments = st.integers(0, 30).map(lambda seconds: BASE + seconds * SECOND)


@given(
    st.lists(st.tuples(moments, st.integers(1, 20), st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 30),
    moments,
    st.integers(1, 20),
)
def test_every_search_gives_what_a_look_at_every_record_gives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[datetime, int, bool, bool]],
    from_index: int,
    moment: datetime,
    xid: int,
) -> None:
    place = Place(Path(), new_repository(tmp_path_factory.mktemp("times") / "repository", encrypted=False))
    wal = HandWal(segment_size=SIZE, start=SIZE)
    for time, number, aborted, switches in rows:
        wal.commit(time, number, abort=aborted)
        if switches:
            wal.switch()
    place.put(wal)
    times = place.times()
    ends = ends_of(wal.events)
    start = ends[min(from_index, len(ends) - 1)].lsn
    behind = [end for end in ends if end.lsn >= start]
    timed = [end.time for end in behind if end.time is not None]

    def first(found: list[WalEvent]) -> tuple[object, ...] | None:
        return plain(found[0]) if found else None

    after = [end for end in behind if end.time is not None and end.time > moment]
    at_or_after = [end for end in behind if end.time is not None and end.time >= moment]
    assert plain(times.first_commit_after(LINE, start, moment)) == first(after)
    assert plain(times.first_commit_after(LINE, start, moment, exclusive=True)) == first(at_or_after)
    assert plain(times.find_xid(LINE, start, xid)) == first([end for end in behind if end.xid == xid])
    assert times.span(LINE, start, wal.end) == (timed[0], timed[-1])
    assert times.newest_time(LINE, start) == max(timed)
    assert times.earliest_time(LINE, start) == min(timed)
