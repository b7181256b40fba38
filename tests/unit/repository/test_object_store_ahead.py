"""Reading ahead: the bytes are those of the object, and reads that follow one another are few."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pgkeep.repository.object_store_ahead import ReadAhead

OBJECTS = {name: random.Random(name).randbytes(6 << 20) for name in ("a", "b")}


class Source:
    """Objects, and how often and how much was asked for."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int, int]] = []
        self.ahead = ReadAhead(self.read)

    def read(self, name: str, start: int, length: int) -> bytes:
        self.reads.append((name, start, length))
        return OBJECTS[name][start : start + length]


offsets = st.integers(0, (6 << 20) + 100) | st.sampled_from([0, 44, 4096, 1 << 20, (6 << 20) - 1, 6 << 20])
lengths = st.integers(1, 3000) | st.sampled_from([4096, 64 << 10, 1 << 20, (1 << 20) + 1])


@given(st.lists(st.tuples(st.sampled_from(sorted(OBJECTS)), offsets, lengths), max_size=30), st.booleans())
def test_the_bytes_are_those_of_the_object(reads: list[tuple[str, int, int]], in_order: bool) -> None:
    source = Source()
    for name, start, length in sorted(reads) if in_order else reads:
        assert source.ahead.get(name, start, length) == OBJECTS[name][start : start + length]


def test_small_reads_in_order_become_few_large_ones() -> None:
    source = Source()
    for start in range(0, 6 << 20, 8192):
        source.ahead.get("a", start, 8000)
    assert len(source.reads) < 8
    assert sum(length for _, _, length in source.reads) < 11 << 20


def test_reads_here_and_there_bring_what_they_were_asked_for() -> None:
    source = Source()
    for number in range(60):
        source.ahead.get("a", number * 37 % 60 * 100_000, 44)
    assert sum(length for _, _, length in source.reads) == 60 * 44


def test_large_reads_go_through() -> None:
    source = Source()
    for start in range(0, 6 << 20, 2 << 20):
        source.ahead.get("a", start, 2 << 20)
    assert source.reads == [("a", start, 2 << 20) for start in range(0, 6 << 20, 2 << 20)]


def test_what_was_deleted_is_forgotten() -> None:
    source = Source()
    source.ahead.get("a", 0, 10)
    source.ahead.get("b", 0, 10)
    source.ahead.forget("a")
    source.ahead.get("a", 0, 10)
    source.ahead.get("b", 0, 10)
    assert [name for name, _, _ in source.reads] == ["a", "b", "a"]
