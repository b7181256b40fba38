from __future__ import annotations

import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.layout import Fork, RelationFile
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_summary import (
    NO_LIMIT,
    BlockChanges,
    SummaryFile,
    first_missing,
    parse_summary,
    parse_summary_name,
    summaries_between,
)

SEGMENT = 1000
"""Blocks of a full segment: so few that a chunk of a summary, 65536 blocks, holds many."""

Key = tuple[int, int, int, int]
Changes = dict[Key, tuple[int, set[int]]]

BLOCKS = st.one_of(
    st.sets(st.integers(0, 200_000), max_size=30),
    # enough of them for a bitmap, and on both sides of where it begins
    st.builds(
        lambda first, count, step: set(range(first, first + count * step, step)),
        st.integers(0, 70_000),
        st.integers(4090, 4100),
        st.integers(1, 5),
    ),
)
KEYS = st.tuples(st.just(1663), st.sampled_from([5, 16384]), st.sampled_from([0, 1259, 16400]), st.integers(0, 3))
CHANGES = st.dictionaries(KEYS, st.tuples(st.one_of(st.just(NO_LIMIT), st.integers(0, 3000)), BLOCKS), max_size=5)


def summary(changes: Changes) -> bytes:
    """A file as WriteBlockRefTable in src/common/blkreftable.c writes it, block by block."""
    data = struct.pack("<I", 0x652B137B)
    for (tablespace, database, relfilenode, fork), (limit, blocks) in sorted(changes.items()):
        chunks: dict[int, list[int]] = {}
        # a server appends blocks as WAL names them, in any order
        for block in sorted(blocks, key=lambda block: block * 7919 % 65537):
            chunks.setdefault(block >> 16, []).append(block & 0xFFFF)
        count = max(chunks, default=-1) + 1
        words = []
        for number in range(count):
            listed = chunks.get(number, [])
            if len(listed) >= 4096:
                bitmap = [0] * 4096
                for block in listed:
                    bitmap[block // 16] |= 1 << block % 16
                listed = bitmap
            words.append(listed)
        data += struct.pack("<IIIiII", tablespace, database, relfilenode, fork, limit, count)
        data += struct.pack(f"<{count}H", *map(len, words))
        data += b"".join(struct.pack(f"<{len(listed)}H", *listed) for listed in words)
    data += bytes(24)
    return data + struct.pack("<I", google_crc32c.value(data))


@given(CHANGES)
def test_what_a_server_writes_is_read_back(changes: Changes) -> None:
    found = {
        (fork.tablespace, fork.database, fork.relfilenode, fork.fork): (fork.limit_block, set(fork.blocks.tolist()))
        for fork in parse_summary(summary(changes))
    }
    assert found == changes


@given(st.lists(CHANGES, max_size=4), st.integers(0, 210))
def test_summaries_together_know_what_each_of_them_knows(several: list[Changes], segment: int) -> None:
    together = BlockChanges()
    for changes in several:
        together.add(summary(changes))
    file = RelationFile(1663, 16384, 16400, Fork.MAIN, segment)
    mine = [changes[key] for changes in several for key in [(1663, 16384, 16400, 0)] if key in changes]

    kept, blocks = together.of(file, SEGMENT)

    first = segment * SEGMENT
    shortest = min((limit for limit, _ in mine), default=NO_LIMIT)
    assert kept == min(max(shortest - first, 0), SEGMENT)
    expected = {block - first for _, changed in mine for block in changed if first <= block < first + SEGMENT}
    assert blocks.tolist() == sorted(expected)
    assert blocks.dtype == np.uint32
    assert together.is_new_database(file) == any((1663, 16384, 0, 0) in changes for changes in several)


def test_many_changes_take_a_bit_for_each_block() -> None:
    together = BlockChanges()
    for first in range(0, 65536, 1024):
        together.add(summary({(1663, 5, 1259, 0): (NO_LIMIT, set(range(first, first + 1024, 2)))}))
    kept, blocks = together.of(RelationFile(1663, 5, 1259, Fork.MAIN, 0), 131072)
    assert kept == 131072
    assert blocks.tolist() == list(range(0, 65536, 2))
    assert sum(words.nbytes for chunks in together._chunks.values() for words in chunks.values()) == 8192


def test_a_relation_that_no_summary_names_has_not_changed() -> None:
    kept, blocks = BlockChanges().of(RelationFile(1663, 5, 1259, Fork.MAIN, 3), SEGMENT)
    assert (kept, blocks.tolist()) == (SEGMENT, [])


@given(CHANGES, st.data())
def test_a_summary_with_a_wrong_byte_is_refused(changes: Changes, data: st.DataObject) -> None:
    written = bytearray(summary(changes))
    written[data.draw(st.integers(0, len(written) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamageError):
        list(parse_summary(bytes(written)))


@given(CHANGES, st.data())
def test_a_summary_that_is_cut_off_is_refused(changes: Changes, data: st.DataObject) -> None:
    written = summary(changes)
    with pytest.raises(DamageError):
        list(parse_summary(written[: data.draw(st.integers(0, len(written) - 1))]))


def test_a_summary_that_says_more_than_it_holds_is_refused() -> None:
    body = struct.pack("<I", 0x652B137B) + struct.pack("<IIIiII", 1663, 5, 1259, 0, NO_LIMIT, 1 << 20) + bytes(24)
    with pytest.raises(DamageError, match="cut off"):
        list(parse_summary(body + struct.pack("<I", google_crc32c.value(body))))


def test_the_name_of_a_summary_tells_what_it_covers() -> None:
    name = "0000000100000000020000280000000002000128.summary"
    assert parse_summary_name(name) == SummaryFile(name, 1, LSN.parse("0/2000028"), LSN.parse("0/2000128"))


@pytest.mark.parametrize("name", ["temp.summary", "0000000100000000020000280000000002000128.summar", ""])
def test_other_files_are_no_summaries(name: str) -> None:
    assert parse_summary_name(name) is None


def covering(*ranges: tuple[int, int, int]) -> list[SummaryFile]:
    return [SummaryFile("", timeline, LSN(start), LSN(end)) for timeline, start, end in ranges]


@pytest.mark.parametrize(
    ("ranges", "missing"),
    [
        ([(1, 100, 200), (1, 200, 400)], None),
        ([(1, 200, 400), (1, 100, 200)], None),
        ([(1, 0, 1000)], None),
        ([(1, 0, 350), (1, 100, 150), (1, 300, 400)], None),
        ([], 150),
        ([(1, 160, 400)], 150),
        ([(1, 100, 200), (1, 210, 400)], 200),
        ([(1, 100, 200), (1, 200, 299)], 299),
        ([(1, 100, 200), (2, 200, 400)], 200),
    ],
)
def test_a_gap_in_the_summaries_is_found(ranges: list[tuple[int, int, int]], missing: int | None) -> None:
    assert first_missing(covering(*ranges), 1, 150, 300) == missing


def test_only_summaries_of_the_range_and_the_timeline_are_taken_in_order() -> None:
    files = covering((1, 200, 300), (1, 0, 100), (2, 100, 200), (1, 100, 200), (1, 300, 400))
    assert summaries_between(files, 1, 100, 300) == covering((1, 100, 200), (1, 200, 300))
