"""Pieces of files put together: every byte once, neighbours in one write, and no more held than there is room for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pgkeep.restore.runs import Piece, Run, assemble

CELL = 8 << 10


def piece(content: int, position: int, size: int = 1024, *, place: bytes = b"a") -> Piece:
    return Piece(place, "a", bytes([content]), 0, position, size)


@st.composite
def files(draw: st.DrawFn) -> list[Piece]:
    """The pieces of two files, with gaps."""
    pieces = []
    for place in (b"a", b"b"):
        position = 0
        for gap, size, content in draw(
            st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), st.integers(1, 9), st.integers(0, 7)), max_size=30)
        ):
            position += gap * 1024
            pieces.append(piece(content, position, size * 1024, place=place))
            position += size * 1024
    return pieces


@given(files(), st.integers(0, 6))
def test_each_piece_is_written_once_and_when_all_that_its_run_needs_is_there(pieces: list[Piece], room: int) -> None:
    assembly = assemble(pieces, CELL, {bytes([content]): 1 for content in range(8)}, room)

    runs: list[tuple[set[bytes], Run]] = [({own}, run) for own, runs in assembly.by_content.items() for run in runs]
    runs += [(set(), run) for run in assembly.rest]
    assert Counter(piece for _, run in runs for piece in run) == Counter(pieces)
    assert len(assembly.held) <= room
    assert not assembly.held & assembly.by_content.keys()
    for own, run in runs:
        assert {piece.content for piece in run} <= assembly.held | own
        for before, after in pairwise(run):
            assert before.place == after.place
            assert before.position + before.size == after.position
            assert before.position // CELL == after.position // CELL


def test_a_cell_that_bundles_have_changed_is_one_write() -> None:
    """Most of it is in content 1; content 2 is a bundle."""
    cell = [piece(1, 0, 3072), piece(2, 3072), piece(1, 4096, 4096)]

    assembly = assemble(cell, CELL, {b"\1": 8192, b"\2": 8192}, 8192)

    assert assembly.held == {b"\2"}
    assert assembly.by_content == {b"\1": [cell]}
    assert assembly.rest == []


def test_cells_of_one_content_each_hold_nothing() -> None:
    pieces = [piece(number, number * CELL, CELL) for number in range(5)]

    assembly = assemble(pieces, CELL, dict.fromkeys(map(bytes, ([n] for n in range(5))), CELL), 1 << 20)

    assert assembly.held == set()
    assert assembly.by_content == {bytes([number]): [[pieces[number]]] for number in range(5)}


def test_what_does_not_fit_is_written_piece_by_piece() -> None:
    """No room for the bundle: the cell is written around it."""
    cell = [piece(1, 0, 3072), piece(2, 3072), piece(1, 4096, 4096)]

    assembly = assemble(cell, CELL, {b"\1": 8192, b"\2": 8192}, 8191)

    assert assembly.held == set()
    assert assembly.by_content == {b"\1": [cell[:1], cell[2:]], b"\2": [cell[1:2]]}
