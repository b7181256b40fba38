from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.postgres.pages import (
    PAGE_SIZE,
    is_zero,
    page_checksums,
    page_lsns,
    sane_headers,
    verify_pages,
)

MASK = 0xFFFFFFFF
BASE_OFFSETS = """
5B1F36E9 B8525960 02AB50AA 1DE66D2A 79FF467A 9BB9F8A3 217E7CD2 83E13D2C F8D4474F E39EB970 42C6AE16 993216FA 7B093B5D
98DAFF3C F718902A 0B1C9CDB E58F764B 187636BC 5D7B3BB1 E73DE7DE 92BEC979 CCA6C0B2 304A0979 85AA43D4 783125BB 6CA8EAA2
E407EAC6 4B5CFC3E 9FBF8C76 15CA20BE F2CA9FD3 959BD756"""


def reference_checksum(page: bytes, block: int) -> int:
    """pg_checksum_page of src/include/storage/checksum_impl.h, word by word."""
    sums = [int(offset, 16) for offset in BASE_OFFSETS.split()]
    words = list(struct.unpack("<2048I", page[:8] + b"\0\0" + page[10:])) + [0] * 64
    for index, word in enumerate(words):
        mixed = sums[index % 32] ^ word
        sums[index % 32] = (mixed * 16777619 & MASK) ^ (mixed >> 17)
    result = block
    for partial in sums:
        result ^= partial
    return result % 65535 + 1


def page(seed: int, block: int, lsn: int = 1) -> bytes:
    """A page of random data with a header and a right checksum."""
    data = bytearray(random.Random(seed).randbytes(PAGE_SIZE))
    struct.pack_into("<IIHHHHHH", data, 0, lsn >> 32, lsn & MASK, 0, 0, 28, 512, 8192, 8196)
    struct.pack_into("<H", data, 8, reference_checksum(bytes(data), block))
    return bytes(data)


@pytest.fixture(scope="module")
def table() -> bytes:
    """130 pages, more than are checked in one go; blocks 7 to 136."""
    return b"".join(page(block, block, lsn=block << 30) for block in range(7, 137))


@settings(max_examples=25)
@given(st.binary(min_size=64, max_size=64), st.integers(1, 3), st.integers(0, MASK - 4), st.booleans())
def test_checksums_are_those_of_the_slow_reference(seed: bytes, count: int, first_block: int, askew: bool) -> None:
    data = random.Random(seed).randbytes(count * PAGE_SIZE)
    expected = [reference_checksum(data[i * PAGE_SIZE : (i + 1) * PAGE_SIZE], first_block + i) for i in range(count)]
    buffer = memoryview(b"x" + data)[1:] if askew else data
    assert page_checksums(buffer, first_block).tolist() == expected


def test_sound_pages_pass(table: bytes) -> None:
    check = verify_pages(table, first_block=7, start_lsn=None)
    assert (check.failures.tolist(), check.checked, check.new, check.recent) == ([], 130, 0, 0)


@given(st.integers(0, 129), st.integers(0, PAGE_SIZE - 1), st.integers(0, 7))
def test_a_page_with_a_flipped_bit_is_reported(table: bytes, index: int, byte: int, bit: int) -> None:
    data = bytearray(table)
    data[index * PAGE_SIZE + byte] ^= 1 << bit
    assert verify_pages(data, first_block=7, start_lsn=None).failures.tolist() == [7 + index]


def test_pages_in_each_others_place_are_reported(table: bytes) -> None:
    first, second, rest = table[:PAGE_SIZE], table[PAGE_SIZE : 2 * PAGE_SIZE], table[2 * PAGE_SIZE :]
    assert verify_pages(second + first + rest, first_block=7, start_lsn=None).failures.tolist() == [7, 8]


def test_the_segment_is_part_of_the_block_number(table: bytes) -> None:
    assert len(verify_pages(table, first_block=131072 + 7, start_lsn=None).failures) == 130


def test_new_pages_are_skipped() -> None:
    check = verify_pages(bytes(PAGE_SIZE) + page(1, 1) + bytes(PAGE_SIZE), first_block=0, start_lsn=None)
    assert (check.failures.tolist(), check.checked, check.new) == ([], 1, 2)


@pytest.mark.parametrize(
    ("start_lsn", "failures", "recent"), [(99, [], 2), (100, [], 2), (101, [0], 1), (201, [0, 1], 0)]
)
def test_pages_changed_since_the_start_are_skipped(start_lsn: int, failures: list[int], recent: int) -> None:
    torn = b"".join(page(block, block + 5, lsn=100 * (block + 1)) for block in range(2))
    check = verify_pages(torn, first_block=0, start_lsn=start_lsn)
    assert (check.failures.tolist(), check.recent) == (failures, recent)


@pytest.mark.parametrize("size", [1, PAGE_SIZE - 1, PAGE_SIZE + 512])
def test_a_part_of_a_page_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no whole number of pages"):
        verify_pages(bytes(size), first_block=0, start_lsn=None)


def test_no_pages_are_no_failure() -> None:
    assert verify_pages(b"", first_block=0, start_lsn=None).checked == 0


def test_a_pages_lsn_is_read(table: bytes) -> None:
    assert page_lsns(table).tolist() == [block << 30 for block in range(7, 137)]


@given(st.integers(0, 300_000), st.data())
def test_only_zeros_are_zero(size: int, data: st.DataObject) -> None:
    buffer = bytearray(size)
    assert is_zero(buffer)
    if size:
        buffer[data.draw(st.integers(0, size - 1))] = 1
        assert not is_zero(buffer)


@pytest.mark.parametrize(
    ("offset", "value", "sane"),
    [
        (10, 0x0007, True),
        (10, 0x0008, False),
        (12, 513, False),
        (14, 8200, False),
        (16, 8191, False),
        (16, 8200, False),
        (14, 0, False),
    ],
    ids=["flags", "unknown flag", "lower", "upper", "odd special", "special", "new but not empty"],
)
def test_headers_are_held_to_the_servers_rule(offset: int, value: int, sane: bool) -> None:
    data = bytearray(page(1, 1))
    struct.pack_into("<H", data, offset, value)
    assert sane_headers(page(2, 0) + data + bytes(PAGE_SIZE)).tolist() == [True, sane, True]


def test_a_check_does_not_write_to_its_buffer(table: bytes) -> None:
    before = np.frombuffer(bytearray(table), np.uint8)
    verify_pages(before.data, first_block=7, start_lsn=None)
    assert before.tobytes() == table
