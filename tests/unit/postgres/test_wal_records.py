"""The parser of WAL records, on WAL written by hand."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError, PgkeepError
from pgkeep.postgres.wal_records import WalEvent, WalRecordParser
from support.hand_wal import HandWal, commit_data, main_data, record_bytes

MOMENT = datetime(2025, 6, 1, 3, 15, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MIB = 1 << 20


def parsed(wal: HandWal) -> list[WalEvent]:
    return WalRecordParser(wal.segment_size).feed(wal.start, bytes(wal.data))


def in_cuts(wal: HandWal, first: int, cuts: list[int]) -> list[WalEvent]:
    parser = WalRecordParser(wal.segment_size)
    events: list[WalEvent] = []
    for begin, end in zip([first, *cuts], [*cuts, len(wal.data)], strict=True):
        events += parser.feed(wal.start + begin, bytes(wal.data[begin:end]))
    return events


@pytest.mark.parametrize("version", [15, 16, 17, 18])
def test_every_kind_of_event_is_found_with_its_time_xid_and_name(version: int) -> None:
    wal = HandWal(version=version)
    size = 16 if version >= 18 else 12
    wal.checkpoint(MOMENT.replace(microsecond=0), shutdown=True)
    wal.commit(MOMENT, 1001)
    wal.commit(MOMENT + SECOND, 1002, abort=True)
    wal.fill(500)
    wal.commit(MOMENT, 1003, subxacts=3, relations=2, statistics=5, statistic_size=size, invalidations=7)
    wal.commit(MOMENT, 1004, abort=True, subxacts=900, database=True)
    wal.commit(MOMENT, 1005, before=b"\xfd\x01\x00")
    wal.commit(MOMENT, 1006, before=b"\xfd\x01\x00\xfc\xe8\x03\x00\x00")
    wal.end_prepared(MOMENT, 77)
    wal.end_prepared(MOMENT, 78, abort=True, gid=b"a transaction")
    wal.end_prepared(
        MOMENT,
        79,
        database=True,
        subxacts=9,
        relations=4,
        statistics=3,
        statistic_size=size,
        invalidations=5,
        gid=b"b",
    )
    wal.restore_point(MOMENT, b"before the migration")
    wal.restore_point(MOMENT, b"\xff not UTF-8")
    wal.restore_point(MOMENT, b"x" * 63)
    wal.checkpoint(MOMENT.replace(microsecond=0))
    wal.end_of_recovery(MOMENT)
    wal.write(main_data(b"12345678"), resource_manager=1, info=0x10, xid=5)
    wal.write(main_data(commit_data(MOMENT)), resource_manager=2, info=0x00, xid=5)
    events = parsed(wal)
    assert events == wal.events
    assert [event.xid for event in events if event.kind in {"commit", "abort"}] == [
        *range(1001, 1007),
        77,
        78,
        79,
    ]


def test_an_end_beside_a_page_is_the_page_itself_and_the_next_record_stands_behind_its_header() -> None:
    wal = HandWal()
    wal.commit(MOMENT, 1)
    wal.fill_up_to(8192 - 40)
    first = wal.commit(MOMENT, 2)
    second = wal.commit(MOMENT, 3)
    assert first.end_lsn == MIB + 8192
    assert second.lsn == first.end_lsn + 24
    assert parsed(wal) == wal.events


@pytest.mark.parametrize("room", range(8, 72, 8))
def test_a_record_that_crosses_a_page_anywhere_is_found(room: int) -> None:
    wal = HandWal()
    wal.fill_up_to(8192 - room)
    wal.commit(MOMENT, 4)
    wal.fill_up_to(8192 - room)
    wal.end_prepared(MOMENT, 5, gid=b"g", subxacts=3)
    wal.fill(100)
    assert parsed(wal) == wal.events
    assert len(wal.events) == 2


@pytest.mark.parametrize("room", range(8, 40, 8))
def test_a_record_that_crosses_a_segment_anywhere_is_found(room: int) -> None:
    wal = HandWal()
    while len(wal.data) < MIB - 8192:
        wal.fill(8000)
    wal.fill_up_to(8192 - room)
    event = wal.commit(MOMENT, 4)
    wal.fill(100)
    assert event.lsn < 2 * MIB < event.end_lsn
    assert parsed(wal) == wal.events
    (_, first), (start, second) = wal.segments()
    parser = WalRecordParser(MIB)
    found = parser.feed(MIB, first)
    assert found == []
    assert parser.open_lsn == event.lsn
    assert parser.feed(start, second) == wal.events
    assert parser.open_lsn is None


def test_a_record_of_many_pages_is_found_in_the_feed_that_completes_it() -> None:
    wal = HandWal()
    wal.fill(3000)
    event = wal.commit(MOMENT, 4, subxacts=20_000)
    wal.fill(10)
    parser = WalRecordParser(MIB)
    assert parser.feed(wal.start, bytes(wal.data[:50_000])) == []
    assert parser.open_lsn == event.lsn
    assert parser.feed(wal.start + 50_000, bytes(wal.data[50_000:])) == [event]
    assert parser.open_lsn is None


def test_a_switch_ends_with_its_segment() -> None:
    wal = HandWal()
    wal.commit(MOMENT, 4)
    switch = wal.switch()
    wal.commit(MOMENT, 5)
    assert switch.end_lsn == 2 * MIB
    assert parsed(wal) == wal.events


def test_zeros_behind_the_end_and_pages_of_an_older_use_are_no_records() -> None:
    wal = HandWal(start=16 * MIB)
    wal.commit(MOMENT, 4)
    older = HandWal(start=MIB)
    for xid in range(2000):
        older.commit(MOMENT, xid)
    data = bytes(wal.data) + bytes(-len(wal.data) % 8192)
    stale = data + bytes(older.data[len(data) :])
    assert WalRecordParser(MIB).feed(wal.start, stale) == wal.events
    assert WalRecordParser(MIB).feed(wal.start, data + bytes(MIB - len(data))) == wal.events


def test_what_a_user_stores_never_passes_for_a_record() -> None:
    wal = HandWal()
    # 40 rows that look like commits at every place where a record could stand
    fake = record_bytes(main_data(commit_data(MOMENT)), resource_manager=1, info=0, xid=666, previous=wal.start + 40)
    wal.fill(10)
    for pad in range(8):
        wal.write(b"\xff\x00" + b"x" * pad + (fake + bytes(-len(fake) % 8)) * 40)
    wal.write(main_data((fake + bytes(-len(fake) % 8)) * 2000))
    event = wal.commit(MOMENT, 7)
    assert parsed(wal) == [event]


def test_a_record_whose_bytes_are_not_what_was_written_is_none() -> None:
    wal = HandWal()
    for xid in range(1, 100):
        wal.commit(MOMENT, xid)
    for event in wal.events:
        torn = bytearray(wal.data)
        torn[event.lsn - wal.start + 27] ^= 0x10
        assert WalRecordParser(MIB).feed(wal.start, torn) == [other for other in wal.events if other != event]


def test_a_record_that_a_crash_cut_off_and_the_next_page_left_behind_is_passed_over() -> None:
    wal = HandWal()
    wal.fill_up_to(8192 - 48)
    lost = record_bytes(main_data(commit_data(MOMENT, subxacts=50)), resource_manager=1, info=0x80, xid=5)
    wal.data += lost[:48]
    # XLP_FIRST_IS_OVERWRITE_CONTRECORD
    wal.data += wal.header(wal.end, flags=0x0008)
    wal.write(struct.pack("<BB16x", 255, 16), resource_manager=0, info=0xD0)
    event = wal.commit(MOMENT, 6)
    assert parsed(wal) == [event]
    assert in_cuts(wal, 0, list(range(0, len(wal.data), 100))[1:]) == [event]


def test_a_feed_elsewhere_begins_anew() -> None:
    wal = HandWal()
    wal.fill(3000)
    cut_off = wal.commit(MOMENT, 4, subxacts=5000)
    later = wal.commit(MOMENT, 5)
    parser = WalRecordParser(MIB)
    assert parser.feed(wal.start, bytes(wal.data[:10_000])) == []
    place = later.lsn - wal.start - 16
    assert parser.feed(wal.start + place, bytes(wal.data[place:])) == [later]
    assert parser.open_lsn is None
    assert parser.feed(wal.start, bytes(wal.data)) == [cut_off, later]


def test_every_record_is_given_to_who_asks_for_all() -> None:
    wal = HandWal()
    for size in (2, 300, 9000, 40_000, 2, 8):
        wal.fill(size)
        wal.commit(MOMENT, size)
    every = WalRecordParser(MIB, every=True).feed(wal.start, bytes(wal.data))
    assert [record.lsn for record in every] == wal.starts
    assert [record for record in every if record.kind != "other"] == wal.events


def test_moments_that_no_calendar_has_are_the_nearest_that_it_has() -> None:
    wal = HandWal()
    data = struct.pack("<q", (1 << 63) - 5)
    wal.write(main_data(data), resource_manager=1, info=0, xid=9)
    (event,) = parsed(wal)
    assert event.time == datetime.max.replace(tzinfo=UTC)


def test_wal_in_pages_of_another_size_is_refused() -> None:
    wal = HandWal()
    wal.commit(MOMENT, 4)
    wal.data[36:40] = struct.pack("<I", 16384)
    with pytest.raises(PgkeepError, match="pages of 16384 bytes"):
        parsed(wal)


def test_wal_in_segments_of_another_size_is_refused() -> None:
    wal = HandWal(segment_size=16 * MIB, start=16 * MIB)
    wal.commit(MOMENT, 4)
    with pytest.raises(DamageError, match="segments of 16777216 bytes, not of 1048576"):
        WalRecordParser(MIB).feed(wal.start, bytes(wal.data))


moments = st.datetimes(datetime(1999, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@st.composite
def wals(draw: st.DrawFn) -> HandWal:
    wal = HandWal(start=draw(st.sampled_from([MIB, (1 << 32) - MIB, (9 << 40) + MIB])))
    # near a segment's end, so that records go on in the next one
    while draw(st.booleans()) and len(wal.data) < MIB - 100_000:
        wal.fill(MIB - 60_000 - len(wal.data))
    for _ in range(draw(st.integers(1, 40))):
        moment, xid = draw(moments), draw(st.integers(1, (1 << 32) - 1))
        match draw(st.integers(0, 7)):
            case 0 | 1:
                wal.fill(draw(st.integers(2, 300)))
            case 2:
                wal.fill(draw(st.integers(2, 20_000)))
            case 3 | 4:
                wal.commit(moment, xid, abort=draw(st.booleans()))
            case 5:
                wal.commit(moment, xid, subxacts=draw(st.integers(1, 6000)))
            case 6:
                wal.end_prepared(moment, xid, invalidations=draw(st.integers(0, 60)))
            case _:
                wal.restore_point(moment, b"point")
    return wal


@given(wals(), st.data())
def test_wal_fed_in_any_cuts_gives_what_it_gives_as_a_whole(wal: HandWal, data: st.DataObject) -> None:
    assert parsed(wal) == wal.events
    size = len(wal.data)
    first = data.draw(st.one_of(st.just(0), st.integers(0, size)))
    near = st.builds(
        lambda page, distance: min(max(page * 8192 + distance, first), size),
        st.integers(first // 8192, size // 8192),
        st.integers(-30, 60),
    )
    cuts = sorted(data.draw(st.lists(st.one_of(st.integers(first, size), near), max_size=25)))
    assert in_cuts(wal, first, cuts) == [event for event in wal.events if event.lsn >= wal.start + first]


def test_a_feed_that_begins_in_a_page_finds_its_first_record_by_its_crc() -> None:
    wal = HandWal()
    for xid in range(1, 40):
        wal.commit(MOMENT, xid)
    for begin in (41, 60, 80, 81, 500, 1000):
        found = WalRecordParser(MIB).feed(wal.start + begin, bytes(wal.data[begin:]))
        assert found == [event for event in wal.events if event.lsn >= wal.start + begin]


@pytest.mark.parametrize("begin", range(1, 40))
def test_what_is_left_of_a_header_is_not_taken_for_one(begin: int) -> None:
    """The magic number says how long the entries of dropped statistics are, and only a whole one does."""
    wal = HandWal(version=18)
    wal.fill(100)
    wal.end_prepared(MOMENT, 77, statistics=3, statistic_size=16)
    wal.fill(9000)
    wal.end_prepared(MOMENT, 78, statistics=3, statistic_size=16)
    found = WalRecordParser(MIB).feed(wal.start + begin, bytes(wal.data[begin:]))
    assert [event.xid for event in found] == [77, 78]


@given(wals(), st.data())
def test_damaged_wal_gives_no_events_that_were_not_written(wal: HandWal, data: st.DataObject) -> None:
    damaged = bytearray(wal.data)
    # the first page's long header says what the file is; that it differs is an error of its own
    for _ in range(data.draw(st.integers(1, 20))):
        place = data.draw(st.integers(40, len(damaged)))
        size = data.draw(st.integers(1, 50))
        if (place + size) % MIB > size + 40:
            damaged[place : place + size] = data.draw(st.binary(min_size=size, max_size=size))
    found = WalRecordParser(MIB).feed(wal.start, damaged[: len(wal.data)])
    assert all(event in wal.events for event in found)
