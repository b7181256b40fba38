"""What a listing of WAL says: spans, gaps, and how far one can go along a path of timelines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError, NotFoundError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch, format_history, history_name
from pgkeep.postgres.wal import segment_name
from pgkeep.repository.wal_objects import WalArchive, piece_name
from pgkeep.wal.inventory import TimelineWal, WalInventory, WalSpan, load_segment
from support.jobs import new_repository

SIZE = 1 << 20


def name(timeline: int, number: int) -> str:
    return segment_name(timeline, number * SIZE, SIZE)


def wal_of(number: int, timeline: int = 1) -> bytes:
    return bytes([timeline, number]) * (SIZE // 2)


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    return new_repository(tmp_path / "repository").wal(7123)


def put(archive: WalArchive, timeline: int, *numbers: int) -> None:
    for number in numbers:
        archive.put(name(timeline, number), wal_of(number, timeline))


def put_piece(archive: WalArchive, timeline: int, number: int, first: int, end: int) -> None:
    archive.put(piece_name(name(timeline, number), first, end), wal_of(number, timeline)[first:end])


def test_spans_are_unbroken_and_gaps_lie_between_them(archive: WalArchive) -> None:
    put(archive, 1, 1, 2, 4)
    put_piece(archive, 1, 5, 0, 1000)
    put_piece(archive, 1, 5, 1000, 5000)
    put_piece(archive, 1, 5, 6000, 7000)
    wal = WalInventory.read(archive, SIZE).timelines[1]
    assert wal.spans == [WalSpan(LSN(SIZE), LSN(3 * SIZE)), WalSpan(LSN(4 * SIZE), LSN(5 * SIZE + 5000))]
    assert wal.reach(SIZE + 5) == 3 * SIZE
    assert wal.reach(3 * SIZE) == 3 * SIZE
    assert wal.reach(4 * SIZE) == 5 * SIZE + 5000


def test_a_segment_from_pieces_ends_in_zeros(archive: WalArchive) -> None:
    put_piece(archive, 1, 5, 0, 3000)
    put_piece(archive, 1, 5, 2000, 5000)
    inventory = WalInventory.read(archive, SIZE)
    data, size = load_segment(archive, inventory.timelines[1], 5 * SIZE)
    assert (data[:5000], size, data[5000:]) == (wal_of(5)[:5000], 5000, bytes(SIZE - 5000))
    with pytest.raises(NotFoundError, match="nothing of WAL segment"):
        load_segment(archive, inventory.timelines[1], 6 * SIZE)


def test_a_piece_of_another_size_than_its_name_is_damage(archive: WalArchive) -> None:
    archive.put(piece_name(name(1, 5), 0, 3000), b"short")
    inventory = WalInventory.read(archive, SIZE)
    with pytest.raises(DamageError, match="piece of 5 bytes instead of 3000"):
        load_segment(archive, inventory.timelines[1], 5 * SIZE)


def test_a_whole_segment_is_taken_before_its_pieces(archive: WalArchive) -> None:
    put_piece(archive, 1, 5, 0, 3000)
    put(archive, 1, 5)
    data, size = load_segment(archive, WalInventory.read(archive, SIZE).timelines[1], 5 * SIZE)
    assert (data, size) == (wal_of(5), SIZE)


def test_a_path_goes_on_where_the_next_timeline_begins(archive: WalArchive) -> None:
    put(archive, 1, 1, 2, 3)
    put(archive, 2, 2, 3, 4)
    archive.put("00000002.history", b"1\t0/200100\tno reason\n")
    inventory = WalInventory.read(archive, SIZE)
    assert inventory.reach(inventory.history(2), SIZE) == 5 * SIZE
    assert inventory.reach(inventory.history(1), SIZE) == 4 * SIZE
    source = inventory.source(inventory.history(2), 2 * SIZE)
    assert source is not None
    assert source.timeline == 2


def test_the_end_of_the_parent_may_be_missing_where_the_child_has_it(archive: WalArchive) -> None:
    put(archive, 1, 1)
    put(archive, 2, 2, 3)
    archive.put("00000002.history", b"1\t0/200100\tno reason\n")
    inventory = WalInventory.read(archive, SIZE)
    assert inventory.reach(inventory.history(2), SIZE) == 4 * SIZE


def test_a_gap_before_the_switch_ends_the_path(archive: WalArchive) -> None:
    put(archive, 1, 1)
    put(archive, 2, 3, 4)
    archive.put("00000002.history", b"1\t0/300100\tno reason\n")
    inventory = WalInventory.read(archive, SIZE)
    assert inventory.reach(inventory.history(2), SIZE) == 2 * SIZE


def test_a_partial_segment_serves_up_to_the_switch(archive: WalArchive) -> None:
    put(archive, 1, 1)
    archive.put(name(1, 2) + ".partial", wal_of(2))
    archive.put("00000002.history", b"1\t0/200100\tno reason\n")
    inventory = WalInventory.read(archive, SIZE)
    assert inventory.timelines[1].spans == [WalSpan(LSN(SIZE), LSN(2 * SIZE + 0x100))]
    assert load_segment(archive, inventory.timelines[1], 2 * SIZE) == (wal_of(2), 0x100)


def test_a_timeline_without_a_history_file_has_no_path(archive: WalArchive) -> None:
    put(archive, 3, 1)
    inventory = WalInventory.read(archive, SIZE)
    assert inventory.newest_timeline == 3
    assert not inventory.has_history(3)
    with pytest.raises(NotFoundError, match=r"no 00000003\.history"):
        inventory.history(3)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10))))
def test_a_chain_covers_what_the_pieces_cover_from_the_first_byte_on(pieces: list[tuple[int, int]]) -> None:
    wal = TimelineWal(1, SIZE, pieces={0: [(first, first + size) for first, size in pieces]})
    held = {byte for first, size in pieces for byte in range(first, first + size)}
    expected = next(byte for byte in range(100) if byte not in held)
    assert wal.end_in(0) == expected
    covered = {byte for first, end in wal.chain(0) for byte in range(first, end)}
    assert covered == set(range(expected))


@given(st.sets(st.integers(0, 30)), st.integers(0, 30))
def test_reach_is_the_first_segment_that_is_missing(numbers: set[int], start: int) -> None:
    inventory = WalInventory(SIZE, {1: TimelineWal(1, SIZE, whole={number * SIZE for number in numbers})}, {})
    missing = next(number for number in range(start, 40) if number not in numbers)
    assert inventory.reach(TimelineHistory(1), start * SIZE) == missing * SIZE


def test_switches_of_grandchildren_are_followed() -> None:
    wal = {t: TimelineWal(t, SIZE, whole={n * SIZE for n in range(10)}) for t in (1, 2, 3)}
    path = TimelineHistory(3, (TimelineSwitch(1, LSN(2 * SIZE)), TimelineSwitch(2, LSN(5 * SIZE + 7))))
    assert WalInventory(SIZE, wal, {3: path}).reach(path, 0) == 10 * SIZE


LOG = (1 << 32) // SIZE
"""Segments in a folder."""


def test_the_end_is_read_without_the_folders_before_it(archive: WalArchive) -> None:
    for number in (1, LOG, 2 * LOG - 1, 2 * LOG, 3 * LOG, 3 * LOG + 1):
        archive.put(name(1, number), b"WAL")
    history = TimelineHistory(2, (TimelineSwitch(1, LSN(3 * LOG * SIZE + 7), "promoted"),))
    archive.put(history_name(2), format_history(history).encode())
    archive.put(name(2, 3 * LOG), b"WAL of the next")

    end, all_ = WalInventory.read_end(archive, SIZE), WalInventory.read(archive, SIZE)

    assert end.newest_timeline == all_.newest_timeline == 2
    assert end.timelines[2] == all_.timelines[2]
    assert end.history(2) == all_.history(2)
    assert (end.first_log, end.timelines[1].whole) == (3, {3 * LOG * SIZE, (3 * LOG + 1) * SIZE})
    assert end.timelines[1].spans[-1] == all_.timelines[1].spans[-1]
    assert end.timelines[1].switches == all_.timelines[1].switches


def test_the_end_is_that_of_an_older_timeline_where_the_newest_has_no_wal(archive: WalArchive) -> None:
    archive.put(name(1, LOG), b"WAL")
    archive.put(history_name(2), format_history(TimelineHistory(2, (TimelineSwitch(1, LSN(SIZE), "x"),))).encode())
    assert WalInventory.read_end(archive, SIZE).timelines[1].spans == [WalSpan(LSN(LOG * SIZE), LSN((LOG + 1) * SIZE))]

    # a folder with nothing in it that is WAL
    archive.put(f"{name(2, 9 * LOG)}.00000028.backup", b"START WAL LOCATION")
    assert (
        WalInventory.read_end(archive, SIZE).timelines[1].spans == WalInventory.read(archive, SIZE).timelines[1].spans
    )
