from __future__ import annotations

import random
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.backup.local.page_check import LocalPageCheck
from pgkeep.backup.overlay import Pages
from pgkeep.postgres.layout import Fork, RelationFile
from pgkeep.postgres.pages import PAGE_SIZE, page_checksums, verify_pages

START = 0x5000
SEGMENT = 131072
RELATION = RelationFile(1663, 5, 16384, Fork.MAIN, 2)
PATH = b"base/5/16384.2"


def page(number: int, *, lsn: int = 0x100, fill: int = 0) -> bytes:
    """A page of the third segment, with a right checksum."""
    data = bytearray(random.Random(number + fill).randbytes(PAGE_SIZE))
    struct.pack_into("<IIHHHHHH", data, 0, lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 28, 512, 8192, 8196)
    struct.pack_into("<H", data, 8, int(page_checksums(bytes(data), number + 2 * SEGMENT)[0]))
    return bytes(data)


def with_wrong_byte(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


def numbers(*pages: int) -> Pages:
    return np.array(pages, np.uint32)


def never(_page: int) -> bytes:
    raise AssertionError


@pytest.fixture(autouse=True)
def no_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment before a page is read again is for the server."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_pages_in_order_are_read_once() -> None:
    check = LocalPageCheck(START, SEGMENT)
    data = b"".join(page(number) for number in (3, 4, 200))
    assert check(PATH, RELATION, numbers(3, 4, 200), data, never)[0] is data
    assert check.damaged() == []


def test_a_page_that_was_half_written_is_read_again() -> None:
    """Its header was of before the backup, and so was its LSN: WAL would not mend it."""
    check = LocalPageCheck(START, SEGMENT)
    old, new = page(7), page(7, lsn=0x4FFF, fill=1)
    torn = old[:4096] + new[4096:]

    data, damaged = check(PATH, RELATION, numbers(5, 7), page(5) + torn, {7: new}.__getitem__)

    assert data == page(5) + new
    assert not damaged.any()
    assert check.damaged() == []


def test_a_page_that_is_wrong_twice_is_damaged() -> None:
    check = LocalPageCheck(START, SEGMENT)
    bad = with_wrong_byte(page(9))

    data, damaged = check(PATH, RELATION, numbers(8, 9), page(8) + bad, {9: bad}.__getitem__)

    assert data == page(8) + bad
    assert damaged.tolist() == [False, True]
    assert [(found.path, found.block) for found in check.damaged()] == [(PATH, 9 + 2 * SEGMENT)]


def test_a_page_that_is_found_damaged_twice_is_listed_once() -> None:
    check = LocalPageCheck(START, SEGMENT)
    bad = with_wrong_byte(page(9))
    for _ in range(2):
        check(PATH, RELATION, numbers(9), bad, {9: bad}.__getitem__)
    assert len(check.damaged()) == 1


@pytest.mark.parametrize(
    "data",
    [with_wrong_byte(page(4, lsn=START)), with_wrong_byte(page(4, lsn=START + 99)), bytes(PAGE_SIZE), page(4)],
    ids=["changed as the backup began", "changed since", "new", "whole"],
)
def test_pages_that_wal_replaces_and_new_ones_are_passed_over(data: bytes) -> None:
    check = LocalPageCheck(START, SEGMENT)
    assert check(PATH, RELATION, numbers(4), data, never)[0] == data
    assert check.damaged() == []


@settings(max_examples=20)
@given(st.sets(st.integers(0, 400), min_size=1, max_size=260), st.data())
def test_scattered_pages_are_judged_as_a_run_of_pages_is(chosen: set[int], data: st.DataObject) -> None:
    pages = sorted(chosen)
    wrong = data.draw(st.sets(st.sampled_from(pages)))
    recent = data.draw(st.sets(st.sampled_from(pages)))
    file = {
        number: (with_wrong_byte if number in wrong else bytes)(page(number, lsn=START if number in recent else 1))
        for number in pages
    }
    expected = [
        int(block)
        for number in pages
        for block in verify_pages(file[number], first_block=number + 2 * SEGMENT, start_lsn=START).failures
    ]
    check = LocalPageCheck(START, SEGMENT)
    check(PATH, RELATION, numbers(*pages), b"".join(file.values()), file.__getitem__)
    assert [found.block for found in check.damaged()] == expected
    assert expected == sorted(number + 2 * SEGMENT for number in wrong - recent)
