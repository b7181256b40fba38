"""What a truncated relation keeps, and which truncations a server may have merged in the wrong order."""

from __future__ import annotations

import pytest

from pgkeep.postgres.layout import Fork, RelationFile
from pgkeep.postgres.truncations import Cut, Truncations

RELATION = (1663, 5, 16384)


def file(segment: int, relfilenode: int = 16384) -> RelationFile:
    return RelationFile(1663, 5, relfilenode, Fork.MAIN, segment)


@pytest.mark.parametrize(("segment", "kept"), [(0, 100), (1, 50), (2, 0)])
def test_blocks_before_the_cut_are_kept(segment: int, kept: int) -> None:
    """In segments of 100 blocks, of a relation that was cut off to 150."""
    truncations = Truncations({RELATION: Cut(150)})

    assert truncations.kept_blocks(file(segment), 100) == kept
    assert truncations.is_cut(file(segment), 100) == (kept < 100)
    assert truncations.kept_blocks(file(segment, 16385), 100) == 100


@pytest.mark.parametrize(
    ("known", "now", "endangered"),
    [
        ({}, {}, False),
        ({}, {RELATION: Cut(5)}, False),
        ({}, {RELATION: Cut(5, 5)}, True),
        ({RELATION: Cut(5)}, {RELATION: Cut(5, 5)}, False),
        ({RELATION: Cut(5)}, {RELATION: Cut(3, 5)}, False),
        ({RELATION: Cut(5)}, {RELATION: Cut(3, 3)}, True),
        ({(1663, 5, 1): Cut(1)}, {RELATION: Cut(3, 7)}, True),
    ],
    ids=[
        "no truncation",
        "in the last summary",
        "in an earlier summary, unknown",
        "in an earlier summary, known",
        "known, and shorter in the last summary",
        "known, and shorter in an earlier summary",
        "of another relation",
    ],
)
def test_a_truncation_that_a_later_summary_follows_must_have_been_known(
    known: dict[tuple[int, int, int], Cut], now: dict[tuple[int, int, int], Cut], endangered: bool
) -> None:
    assert Truncations(now).endangers_more_than(Truncations(known)) is endangered
