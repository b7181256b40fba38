from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.backup.health import MAX_FETCH, MAX_PIECES, cells_to_rewrite, unhealthy_cells
from pgkeep.backup.overlay import Pages, joined, no_extents
from support.maps import Model, extents_of

CELL = 16


def fresh(cells: int) -> Model:
    """A file as a full read leaves it: a content a cell."""
    return {page: (1000 + page // CELL, page % CELL) for page in range(cells * CELL)}


def pages(*numbers: int) -> Pages:
    return np.array(numbers, np.uint32)


def test_a_file_as_a_full_read_leaves_it_is_healthy() -> None:
    assert unhealthy_cells(joined(extents_of(fresh(5))), CELL).tolist() == []
    assert unhealthy_cells(no_extents(), CELL).tolist() == []


def test_a_cell_in_more_pieces_than_allowed_is_rewritten_and_its_neighbours_are_not() -> None:
    """Each page from another bundle, from the second cell on."""
    model = fresh(3)
    for number in range(4):
        model[CELL + 1 + 2 * number] = (number, 4)
    # the rest before, between and after them are pieces too
    assert unhealthy_cells(joined(extents_of(model)), CELL, max_pieces=8).tolist() == [1]
    assert unhealthy_cells(joined(extents_of(model)), CELL, max_pieces=9).tolist() == []


def test_a_cell_that_lives_on_the_remains_of_large_contents_is_rewritten() -> None:
    """Seven pages, each the first of a bundle whose last page is of use elsewhere, and what lies between of none."""
    model = fresh(4)
    for page in range(4 * CELL + 1, 4 * CELL + 8):
        model[page] = (page, 0)
        model[page + CELL] = (page, CELL - 1)
    model |= {6 * CELL + page: (1, page) for page in range(CELL)}
    assert unhealthy_cells(joined(extents_of(model)), CELL).tolist() == [4, 5]
    assert unhealthy_cells(joined(extents_of(model)), CELL, max_fetch=100).tolist() == []


def test_a_bundle_with_pages_of_many_files_is_not_held_against_one() -> None:
    """A page of a small file that lies in the middle of a bundle."""
    assert unhealthy_cells(extents_of({0: (1, 90), 1: (1, 91), 2: (1, 92)}), CELL).tolist() == []


@given(
    model=st.dictionaries(st.integers(0, 5 * CELL), st.tuples(st.integers(0, 5), st.integers(0, CELL - 1))),
    pieces=st.integers(1, 10),
)
def test_pieces_are_counted_within_the_cell(model: Model, pieces: int) -> None:
    expected = []
    for cell in range(6):
        inside = {page: place for page, place in model.items() if page // CELL == cell}
        if len(joined(extents_of(inside))) > pieces:
            expected.append(cell)

    found = unhealthy_cells(joined(extents_of(model)), CELL, max_pieces=pieces, max_fetch=1e9)

    assert found.tolist() == expected


def test_a_page_that_lies_in_a_bundle_as_in_its_cell_does_not_make_it_a_cell() -> None:
    """One page of a bundle is at its own place by chance; that a cell was not fetched whole for it shows in the others."""
    model = fresh(2) | {3: (1, 3), CELL + 5: (1, 4)}
    assert unhealthy_cells(joined(extents_of(model)), CELL, max_fetch=1.5).tolist() == []


def test_what_a_change_would_make_unhealthy_is_known_before_it_is_stored() -> None:
    cell = 2 * MAX_PIECES
    parent = joined(extents_of({page: (1000 + page // cell, page % cell) for page in range(3 * cell)}))
    scattered = pages(*range(cell, cell + MAX_PIECES + 2, 2))

    assert cells_to_rewrite(parent, 3 * cell, scattered, cell).tolist() == [1]
    assert cells_to_rewrite(parent, 3 * cell, scattered[::2], cell).tolist() == []
    assert cells_to_rewrite(parent, 3 * cell, pages(*range(cell, 2 * cell)), cell).tolist() == []
    assert cells_to_rewrite(parent, cell, scattered, cell).tolist() == []


def test_a_hundred_rounds_of_changes_leave_every_cell_healthy() -> None:
    """As a backup does it: what would be unhealthy is stored anew."""
    chance = np.random.default_rng(1)
    model, number = fresh(8), 2000
    for _ in range(100):
        changed = np.unique(chance.integers(0, 8 * CELL, 6)).astype(np.uint32)
        rewritten = cells_to_rewrite(joined(extents_of(model)), 8 * CELL, changed, CELL)
        number += 1
        model |= {int(page): (number, place) for place, page in enumerate(changed)}
        for cell in rewritten.tolist():
            number += 1
            model |= {page: (number, page % CELL) for page in range(cell * CELL, (cell + 1) * CELL)}
        assert unhealthy_cells(joined(extents_of(model)), CELL, max_fetch=MAX_FETCH + 1).tolist() == []
