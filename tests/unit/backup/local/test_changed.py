from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.backup.local.changed import ChangesBySummary, OnlyChanged, maybe_changed
from pgkeep.postgres.layout import Fork, RelationFile
from pgkeep.postgres.pages import PAGE_SIZE
from pgkeep.postgres.wal_summary import BlockChanges

SEGMENT = 64
FILE = RelationFile(1663, 5, 16384, Fork.MAIN, 1)
MIB = 1 << 20


class Known(BlockChanges):
    """Changes that are known already."""

    def __init__(self, kept: int, blocks: set[int], *, new_database: bool = False) -> None:
        super().__init__()
        self._limits[1663, 5, 16384, 0] = SEGMENT + kept
        self._chunks[1663, 5, 16384, 0] = {0: np.array(sorted(blocks), np.uint16) + np.uint16(SEGMENT)}
        if new_database:
            self._limits[1663, 5, 0, 0] = 0


def page_with(lsn: int) -> bytes:
    return struct.pack("<II", lsn >> 32, lsn & 0xFFFFFFFF).ljust(PAGE_SIZE, b"x")


@given(st.lists(st.one_of(st.integers(0, 40 * MIB), st.integers(0, 1 << 63)), min_size=1), st.integers(MIB, 30 * MIB))
def test_a_page_may_have_changed_if_its_lsn_is_not_older_than_the_parent_or_no_real_one(
    lsns: list[int], parent_start: int
) -> None:
    data = b"".join(map(page_with, lsns))
    expected = [lsn >= parent_start or lsn < MIB for lsn in lsns]
    assert maybe_changed(data, parent_start, MIB).tolist() == expected


def test_new_pages_and_pages_of_an_index_that_was_just_built_may_have_changed() -> None:
    """Neither has a real LSN: zeros, and GistBuildLSN."""
    assert maybe_changed(bytes(PAGE_SIZE) + page_with(1), 9 * MIB, MIB).all()


@given(
    st.integers(0, SEGMENT),
    st.sets(st.integers(0, SEGMENT - 1), max_size=30),
    st.integers(0, SEGMENT),
    st.integers(1, SEGMENT),
)
def test_every_page_of_a_file_is_either_the_parents_or_read(
    kept: int, blocks: set[int], parent_pages: int, pages: int
) -> None:
    """Read are those that WAL changed, and all from where the file was cut, or where the parent's ends."""
    only = ChangesBySummary(Known(kept, blocks), SEGMENT).of(FILE, parent_pages, pages)

    common = min(kept, parent_pages, pages)
    expected = sorted({block for block in blocks if block < common} | set(range(common, pages)))
    if only is None:
        assert len(expected) > 0.9 * pages
    else:
        assert (only.kept, only.pages.tolist()) == (common, expected)
        assert only.pages.dtype == np.uint32


def test_a_file_that_did_not_change_is_not_read() -> None:
    only = ChangesBySummary(BlockChanges(), SEGMENT).of(FILE, 40, 40)
    assert isinstance(only, OnlyChanged)
    assert (only.kept, only.pages.tolist()) == (40, [])


def test_files_of_a_database_that_was_created_since_are_read_whole() -> None:
    assert ChangesBySummary(Known(SEGMENT, set(), new_database=True), SEGMENT).of(FILE, 40, 40) is None
