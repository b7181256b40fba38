from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import (
    PAGE_MAGIC,
    WalFileKind,
    check_segment_header,
    classify,
    parse_segment_name,
    read_segment_header,
    segment_name,
    segment_start,
    segments_between,
)

MIB = 1 << 20
SIZES = st.integers(20, 30).map(lambda exponent: 1 << exponent)
TIMELINES = st.integers(1, (1 << 32) - 1)
POSITIONS = st.integers(0, (1 << 64) - 1)


@given(TIMELINES, POSITIONS, SIZES)
def test_a_name_leads_back_to_the_start_of_its_segment(timeline: int, lsn: int, size: int) -> None:
    assert parse_segment_name(segment_name(timeline, lsn, size), size) == (timeline, segment_start(lsn, size))


@given(st.integers(0, 1 << 40), st.integers(-2, 40), st.integers(0, MIB), SIZES)
def test_the_segments_between_two_positions_hold_each_byte_of_them(lsn: int, more: int, odd: int, size: int) -> None:
    stop = lsn + more * size + odd
    names = segments_between(3, lsn, stop, size)
    starts = [parse_segment_name(name, size)[1] for name in names]
    assert starts == list(range(lsn - lsn % size, stop, size) if stop > lsn else [])


@pytest.mark.parametrize(
    ("lsn", "size", "name"),
    [
        ("0/0", 16 * MIB, "000000010000000000000000"),
        ("0/1000000", 16 * MIB, "000000010000000000000001"),
        ("0/1FFFFFF", 16 * MIB, "000000010000000000000001"),
        ("5/FF000000", 16 * MIB, "0000000100000005000000FF"),
        ("5/FFFFFFFF", MIB, "000000010000000500000FFF"),
        ("5/C0000000", 1024 * MIB, "000000010000000500000003"),
    ],
)
def test_a_segment_is_named_as_postgresql_names_it(lsn: str, size: int, name: str) -> None:
    assert segment_name(1, LSN.parse(lsn), size) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "00000001000000000000000",
        "00000001000000000000000a",
        "000000010000000000000100",
        "000000000000000000000001",
        "000000010000000000000001.partial",
        "000000010000000000000001\n",
    ],
)
def test_what_no_segment_is_called_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a WAL segment"):
        parse_segment_name(name, 16 * MIB)


@pytest.mark.parametrize("size", [0, -MIB, MIB // 2, 3 * MIB, 2048 * MIB])
def test_a_size_that_no_server_has_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="not the size of a WAL segment"):
        segment_name(1, 0, size)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("000000010000000000000001", WalFileKind.SEGMENT),
        ("000000010000000000000001.partial", WalFileKind.PARTIAL),
        ("00000002.history", WalFileKind.HISTORY),
        ("000000010000000000000003.00000028.backup", WalFileKind.BACKUP),
        ("000000010000000000000001.gz", None),
        ("00000002.history\n", None),
        ("0000000100000000000000", None),
        ("archive_status", None),
        ("", None),
    ],
)
def test_archived_files_are_told_apart_by_name(name: str, kind: WalFileKind | None) -> None:
    assert classify(name) == kind


def header(
    magic: int = 0xD116,
    info: int = 2,
    timeline: int = 2,
    address: int = 0x3000000,
    identifier: int = 7,
    size: int = 16 * MIB,
) -> bytes:
    return struct.pack("<HHIQI4xQII", magic, info, timeline, address, 0, identifier, size, 8192)


@pytest.mark.parametrize("major", PAGE_MAGIC)
def test_a_header_tells_its_servers_version(major: int) -> None:
    assert read_segment_header(header(magic=PAGE_MAGIC[major])).major_version == major


def test_a_segment_of_a_newer_server_is_one_too() -> None:
    assert read_segment_header(header(magic=0xD11F)).major_version is None


def test_a_header_is_read_in_full() -> None:
    found = read_segment_header(memoryview(header() + b"records"))
    assert (found.timeline, found.page_address, found.system_identifier) == (2, LSN.parse("0/3000000"), 7)
    assert (found.segment_size, found.block_size) == (16 * MIB, 8192)


@pytest.mark.parametrize(
    "data",
    [b"", header()[:39], bytes(8192), header(magic=0x1234), header(info=1)],
    ids=["empty", "cut", "zeroed", "magic", "short"],
)
def test_what_is_no_segment_is_damage(data: bytes) -> None:
    with pytest.raises(DamageError):
        read_segment_header(data)


@pytest.mark.parametrize("timeline", [2, 3], ids=["same", "copied from the parent"])
def test_a_segment_in_its_place_passes(timeline: int) -> None:
    check_segment_header(
        read_segment_header(header()),
        system_identifier=7,
        timeline=timeline,
        start=0x3000000,
        segment_size=16 * MIB,
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"identifier": 8}, "system identifier 8 instead of 7"),
        ({"timeline": 3}, "timeline 3 instead of 2 or one before it"),
        ({"timeline": 0}, "timeline 0 instead of 2"),
        ({"address": 0x4000000}, "start LSN 0/4000000 instead of 0/3000000"),
        ({"size": MIB}, "segment size 1048576 instead of 16777216"),
    ],
)
def test_a_segment_of_another_place_or_cluster_is_named(wrong: dict[str, int], named: str) -> None:
    with pytest.raises(DamageError, match=f"000000020000000000000003 is another one: it has {named}"):
        check_segment_header(
            read_segment_header(header(**wrong)),
            system_identifier=7,
            timeline=2,
            start=0x3000000,
            segment_size=16 * MIB,
        )
