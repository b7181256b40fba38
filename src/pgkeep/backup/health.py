"""When a page map has become so fragmented that a part of it is better stored anew.

Every backup that finds changed pages puts them into bundles, and the map points at them. Left alone, a cell that was one
read would become a hundred, and bundles would be fetched for the one page of them that is still of use.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pgkeep.backup.overlay import EXTENT, Extents, Pages, overlay, runs, split_at_grid

__all__ = ["MAX_FETCH", "MAX_PIECES", "cells_to_rewrite", "unhealthy_cells"]

_Numbers = npt.NDArray[np.int64]

MAX_PIECES = 128
"""Runs in different contents that a cell may be made of: a page each in a cell of 1 MiB. A restore puts pieces together in
memory, so that their number alone costs it little, and a lower bound would store many times what changed."""

MAX_FETCH = 3
"""How many times its own size may have to be fetched for a cell, dead pages of its contents included."""


def unhealthy_cells(
    extents: Extents, cell_pages: int, *, max_pieces: int = MAX_PIECES, max_fetch: float = MAX_FETCH
) -> Pages:
    """The cells of a file that are better stored anew, by number: page // ``cell_pages``.

    What a cell fetches is estimated from this file's map alone. A content whose pages all are where they are in one cell
    is taken for that cell, whole; of another one, which may hold pages of many files, what lies between the first and the
    last page that is of use here.
    """
    pieces = split_at_grid(extents, cell_pages)
    if not len(pieces):
        return np.empty(0, np.uint32)
    cells = pieces["first_page"] // cell_pages
    begin, pages = pieces["content_page"].astype(np.int64), pieces["pages"].astype(np.int64)
    contents, content = np.unique(pieces["id"], return_inverse=True)
    low, high = _bounds(content, begin, begin + pages, len(contents))
    first_cell, last_cell = _bounds(content, cells, cells, len(contents))
    elsewhere = np.bincount(content, begin != pieces["first_page"] % cell_pages)
    size = _cell_sizes(pieces, cell_pages)
    whole = np.where((first_cell == last_cell) & (elsewhere == 0), size[first_cell], 0)
    live = np.bincount(content, pages)
    cost = np.maximum(high - low, whole) / live
    count = np.bincount(cells)
    fetched = np.bincount(cells, pages * cost[content])
    return np.flatnonzero((count > max_pieces) | (fetched > max_fetch * size)).astype(np.uint32)


def cells_to_rewrite(parent: Extents, kept_pages: int, changed: Pages, cell_pages: int) -> Pages:
    """The cells that would be unhealthy once the changed pages are bundled and laid over the parent's map."""
    return unhealthy_cells(overlay(parent, kept_pages, changed, _bundled(changed, cell_pages)), cell_pages)


def _bounds(group: _Numbers, low: _Numbers, high: _Numbers, groups: int) -> tuple[_Numbers, _Numbers]:
    """The least of ``low`` and the most of ``high`` in each group."""
    least, most = np.full(groups, np.iinfo(np.int64).max), np.zeros(groups, np.int64)
    np.minimum.at(least, group, low)
    np.maximum.at(most, group, high)
    return least, most


def _cell_sizes(pieces: Extents, cell_pages: int) -> Pages:
    """Pages of each cell; the last one ends where the last piece does."""
    end = int(pieces["first_page"][-1]) + int(pieces["pages"][-1])
    sizes = np.full(-(-end // cell_pages), cell_pages, np.uint32)
    sizes[-1] = end - (len(sizes) - 1) * cell_pages
    return sizes


def _bundled(changed: Pages, cell_pages: int) -> Extents:
    """Where the changed pages will be, but for the ids: in bundles of their own, one page after the other."""
    starts, ends = runs(changed)
    position = np.searchsorted(changed, starts)
    result = np.zeros(len(starts), EXTENT)
    result["first_page"], result["pages"] = starts, ends - starts
    result["content_page"] = position % cell_pages
    # no content has an id of so many zeros
    numbers = np.zeros((len(starts), 4), "<u8")
    numbers[:, 0] = position // cell_pages
    result["id"] = numbers.view("V32").reshape(-1)
    return result
