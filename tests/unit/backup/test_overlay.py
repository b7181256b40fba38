from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.backup.overlay import (
    EXTENT,
    Pages,
    cut,
    decode_map,
    joined,
    no_extents,
    overlay,
    runs,
    split_at_grid,
)
from pgkeep.errors import DamageError
from pgkeep.repository.maps import Extent, decode_extents, encode_extents
from support.maps import Model, content_id, extents_of, pages_of

pages = st.integers(0, 60)
# few contents and pages in them, so that neighbours in a file are often neighbours in their content
models = st.dictionaries(pages, st.tuples(st.integers(0, 3), st.integers(0, 40))) | st.dictionaries(
    pages, st.integers(0, 2)
).map(lambda numbers: {page: (number, page) for page, number in numbers.items()})
page_sets = st.sets(pages)


def array(numbers: set[int]) -> Pages:
    return np.array(sorted(numbers), np.uint32)


@given(parent=models, kept=st.integers(0, 70), changed=page_sets, zeros=page_sets)
def test_an_overlay_is_what_a_dictionary_of_pages_says(
    parent: Model, kept: int, changed: set[int], zeros: set[int]
) -> None:
    """Whatever the maps: kept pages stay, changed ones are where they were placed, the others are zeros."""
    placed: Model = {page: (9, number) for number, page in enumerate(sorted(changed - zeros))}
    expected = {page: place for page, place in parent.items() if page < kept and page not in changed} | placed

    result = overlay(joined(extents_of(parent)), kept, array(changed), joined(extents_of(placed)))

    assert pages_of(result) == expected


@given(parent=models, changed=page_sets)
def test_an_overlay_has_no_neighbours_that_could_be_one(parent: Model, changed: set[int]) -> None:
    placed: Model = {page: (9, number) for number, page in enumerate(sorted(changed))}

    result = overlay(extents_of(parent), 100, array(changed), extents_of(placed))

    assert joined(result).tobytes() == result.tobytes()


@given(parent=models, backups=st.lists(st.tuples(page_sets, st.integers(0, 70)), max_size=5))
def test_overlays_add_up(parent: Model, backups: list[tuple[set[int], int]]) -> None:
    model, extents = dict(parent), joined(extents_of(parent))
    for number, (changed, kept) in enumerate(backups, 10):
        placed: Model = {page: (number, place) for place, page in enumerate(sorted(changed))}
        model = {page: place for page, place in model.items() if page < kept and page not in changed} | placed
        extents = overlay(extents, kept, array(changed), joined(extents_of(placed)))

    assert pages_of(extents) == model


@given(model=models, start=pages, end=st.integers(0, 70))
def test_a_cut_holds_the_pages_between(model: Model, start: int, end: int) -> None:
    expected = {page: place for page, place in model.items() if start <= page < end}
    assert pages_of(cut(joined(extents_of(model)), start, end)) == expected


@given(model=models)
def test_joined_extents_are_as_few_as_can_be(model: Model) -> None:
    """One fewer for every page that goes on where the page before it ended."""
    going_on = sum(
        1 for page, (number, place) in model.items() if page - 1 in model and model[page - 1] == (number, place - 1)
    )

    result = joined(extents_of(model))

    assert pages_of(result) == model
    assert len(result) == len(model) - going_on


@given(model=models, cell_pages=st.integers(1, 20))
def test_a_map_split_at_the_grid_is_the_same_and_crosses_no_cell(model: Model, cell_pages: int) -> None:
    whole = joined(extents_of(model))

    pieces = split_at_grid(whole, cell_pages)

    assert pages_of(pieces) == model
    last = pieces["first_page"] + pieces["pages"] - 1
    assert (pieces["first_page"] // cell_pages == last // cell_pages).all()
    assert joined(pieces).tobytes() == whole.tobytes()


@given(numbers=page_sets)
def test_runs_are_the_numbers_without_gaps(numbers: set[int]) -> None:
    starts, ends = runs(array(numbers))
    assert [number for start, end in zip(starts, ends, strict=True) for number in range(start, end)] == sorted(numbers)
    assert (starts[1:] > ends[:-1]).all()


@given(extents=st.lists(st.builds(Extent, st.integers(0, 2**32 - 1), st.integers(1, 9), pages, st.just(b"i" * 32))))
def test_the_array_has_the_layout_of_a_page_map(extents: list[Extent]) -> None:
    encoded = encode_extents(extents)
    assert decode_map(encoded).tobytes() == encoded
    assert decode_extents(decode_map(encoded).tobytes()) == extents


def test_a_page_map_that_is_cut_off_is_damage() -> None:
    with pytest.raises(DamageError, match="cut off"):
        decode_map(bytes(45))


def test_ids_that_differ_in_their_last_byte_are_not_joined() -> None:
    """Nor are those that end in zeros taken for shorter ones."""
    extents = np.zeros(3, EXTENT)
    extents["first_page"] = extents["content_page"] = [0, 1, 2]
    extents["pages"] = 1
    for row, number in zip(extents, (1, 1, 1 + (1 << 248)), strict=True):
        row["id"] = np.frombuffer(content_id(number), "V32")[0]

    assert joined(extents)["pages"].tolist() == [2, 1]
    assert joined(no_extents()).tobytes() == b""


def test_a_segment_at_its_largest_is_laid_over_in_no_time() -> None:
    """131,072 pages, every other one changed: no loop over pages."""
    everything = np.arange(131_072, dtype=np.uint32)
    parent = extents_of({0: (1, 0)}).repeat(1)
    parent["pages"] = len(everything)
    placed = np.zeros(len(everything) // 2, EXTENT)
    placed["first_page"], placed["pages"] = everything[::2], 1
    placed["content_page"] = np.arange(len(placed)) % 128
    placed["id"] = np.frombuffer(content_id(2), "V32")[0]

    result = overlay(parent, len(everything), everything[::2], placed)

    assert len(result) == len(everything)
    assert (result["first_page"] == everything).all()
    assert (result["content_page"][1::2] == everything[1::2]).all()
