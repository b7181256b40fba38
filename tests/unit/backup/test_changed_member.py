"""Members of an incremental base backup, cut into pieces of any size: their pages arrive, those of a cell together."""

from __future__ import annotations

import os
import random
import socket
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.backup.changed_file_reader import ChangedFileReader
from pgkeep.errors import DamageError
from pgkeep.postgres.incremental_file import format_header
from pgkeep.postgres.truncations import Cut, Truncations
from pgkeep.receiver.changed import ChangedMember, cut_at_cells
from pgkeep.receiver.frames import ChangedBlocks, ChangedFile, ChangedPages, FileFacts, Frame
from pgkeep.receiver.slots import Slots

PAGE, CELL_PAGES, SEGMENT = 512, 8, 1024
FACTS = FileFacts(b"base/5/16384.1", 0, 0o600, 7)

_Numbers = st.lists(st.integers(0, SEGMENT - 1), unique=True, max_size=300).map(sorted)


def page(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE)


def member(numbers: list[int], truncation: int = 20) -> bytes:
    return format_header(truncation, numbers, PAGE) + b"".join(map(page, numbers))


class Taken:
    """What comes of a member: its frames, and its pages as they lay in their slots."""

    def __init__(self, data: bytes, cuts: list[int], *, end: bool = True) -> None:
        self.frames: list[Frame] = []
        self.pages: list[bytes] = []
        memory = os.memfd_create("cells")
        os.ftruncate(memory, 2 * CELL_PAGES * PAGE)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self._slots = Slots(memory, theirs, cell_size=CELL_PAGES * PAGE, slots=2)
            self._ours = ours
            taking = ChangedMember(FACTS, self._slots, self._send, PAGE)
            for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
                taking.take(memoryview(data)[start:stop])
            if end:
                taking.end()
        os.close(memory)

    def _send(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, ChangedPages):
            room = bytes(self._slots.room(frame.slot))
            self.pages += [room[place * PAGE : (place + 1) * PAGE] for place in range(frame.count)]
            self._ours.send(frame.slot.to_bytes(4, "little"))


@given(numbers=_Numbers, data=st.data())
def test_pages_arrive_in_order_whatever_the_pieces(numbers: list[int], data: st.DataObject) -> None:
    content = member(numbers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=10)))

    taken = Taken(content, cuts)

    first = taken.frames[0]
    assert isinstance(first, ChangedFile)
    assert (first.count, first.truncation_blocks, first.header_size) == (
        len(numbers),
        20,
        len(content) - len(numbers) * PAGE,
    )
    blocks = b"".join(frame.numbers for frame in taken.frames if isinstance(frame, ChangedBlocks))
    assert list(memoryview(blocks).cast("I")) == numbers
    assert taken.pages == [page(number) for number in numbers]


@given(numbers=_Numbers, cell_pages=st.integers(1, 20))
def test_pages_of_a_cell_are_never_parted(numbers: list[int], cell_pages: int) -> None:
    groups, start = [], 0
    for count in cut_at_cells(numbers, cell_pages):
        groups.append(numbers[start : start + count])
        start += count

    assert list(chain.from_iterable(groups)) == numbers
    cells = [{number // cell_pages for number in group} for group in groups]
    assert all(0 < len(group) <= cell_pages for group in groups)
    assert sum(map(len, cells)) == len(set().union(*cells))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (member([1, 2, 3])[:-1], "fewer pages than its header says"),
        (member([1, 2, 3])[:100], "fewer pages than its header says"),
        (member([1, 2, 3]) + b"x", "more pages than its header says"),
        (member([]) + b"x", "more pages than its header says"),
        (bytes(600), "does not begin as one"),
    ],
)
def test_a_member_that_is_not_what_its_header_says_is_damage(data: bytes, message: str) -> None:
    with pytest.raises(DamageError, match=message):
        Taken(data, [])


def read(numbers: list[int], truncation: int, limits: dict[tuple[int, int, int], int]) -> ChangedFileReader:
    frame = ChangedFile(FACTS, truncation, 512, 0, len(numbers))
    cuts = {relation: Cut(blocks) for relation, blocks in limits.items()}
    reader = ChangedFileReader(frame, PAGE, SEGMENT, Truncations(cuts))
    reader.numbers = b"".join(number.to_bytes(4, "little") for number in numbers)
    return reader


@pytest.mark.parametrize(
    ("numbers", "truncation", "limit", "size", "kept"),
    [
        ([], 100, None, 100, 100),
        ([200], 100, None, 201, 100),
        ([5], 100, SEGMENT + 30, 100, 30),
        ([5], 100, SEGMENT + 300, 100, 100),
        ([5], 100, 3, 100, 0),
        ([], 5 * SEGMENT, None, SEGMENT, SEGMENT),
    ],
    ids=[
        "unchanged",
        "extended",
        "cut off and extended again",
        "cut off beyond its end",
        "cut off in an earlier segment",
        "a length beyond the segment's",
    ],
)
def test_only_pages_before_a_truncation_are_kept(
    numbers: list[int], truncation: int, limit: int | None, size: int, kept: int
) -> None:
    """Of the second segment of a relation; limits count from the relation's begin."""
    reader = read(numbers, truncation, {} if limit is None else {(1663, 5, 16384): limit})

    facts, kept_pages, _, arrived_as = reader.begin()

    assert (facts.size, kept_pages) == (size * PAGE, kept)
    assert arrived_as[0] == b"INCREMENTAL.16384.1"


@pytest.mark.parametrize("numbers", [[2, 1], [1, 1], [SEGMENT]])
def test_pages_that_a_segment_cannot_have_are_damage(numbers: list[int]) -> None:
    with pytest.raises(DamageError, match=r"base/5/16384\.1 for pages that it cannot have"):
        read(numbers, 0, {}).begin()
