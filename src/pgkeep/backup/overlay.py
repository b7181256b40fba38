"""Page maps as arrays: laid over each other, cut, and joined, many extents at a time.

The arrays have the layout of a page map (`pgkeep.repository.maps`), so that one becomes the other without a copy. All of
them are in order of page and do not overlap; a page that no extent covers is all zeros.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pgkeep.errors import DamageError

__all__ = [
    "EXTENT",
    "Extents",
    "Pages",
    "cut",
    "decode_map",
    "joined",
    "no_extents",
    "overlay",
    "runs",
    "split_at_grid",
]

EXTENT = np.dtype([("first_page", "<u4"), ("pages", "<u4"), ("content_page", "<u4"), ("id", "V32")])
"""One extent of a page map: ``pages`` pages from ``first_page`` on are in content ``id`` from ``content_page`` on."""

Extents = npt.NDArray[np.void]
"""Extents of one file, in order of page."""

Pages = npt.NDArray[np.uint32]
"""Numbers of pages of one file, ascending, each once."""

_Positions = npt.NDArray[np.int64]


def no_extents() -> Extents:
    """The map of a file that is all zeros."""
    return np.empty(0, EXTENT)


def decode_map(encoded: bytes) -> Extents:
    """The extents of a page map; ``tobytes`` is the way back. Raises DamageError where it is cut off."""
    if len(encoded) % EXTENT.itemsize:
        raise DamageError("a page map is cut off")
    return np.frombuffer(encoded, EXTENT)


def overlay(parent: Extents, kept_pages: int, changed: Pages, placed: Extents) -> Extents:
    """The map of a file after a change.

    Of the parent's map the first ``kept_pages`` pages stay, but for those that ``changed`` names; ``placed`` says where
    the changed ones are. What is changed and not placed is zeros, and so is a hole of the parent.
    """
    starts, ends = runs(changed)
    kept = _without(cut(parent, 0, kept_pages), starts, ends)
    if not len(placed):
        return joined(kept)
    together = np.concatenate((kept, placed))
    return joined(together[np.argsort(together["first_page"], kind="stable")])


def cut(extents: Extents, start: int, end: int) -> Extents:
    """The part of a map that covers the pages from ``start`` up to, not including, ``end``."""
    first, last = _bounds(extents)
    chosen = (first < end) & (last > start)
    if not chosen.any():
        return no_extents()
    return _between(extents[chosen], np.maximum(first[chosen], start), np.minimum(last[chosen], end))


def joined(extents: Extents) -> Extents:
    """The same map with neighbours joined that are neighbours in their content too."""
    if len(extents) < 2:
        return extents
    first, last = _bounds(extents)
    goes_on = (
        (first[1:] == last[:-1])
        & (extents["content_page"][1:] == extents["content_page"][:-1] + extents["pages"][:-1])
        & (extents["id"][1:] == extents["id"][:-1])
    )
    begins = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    result = extents[begins].copy()
    result["pages"] = np.add.reduceat(extents["pages"], begins)
    return result


def runs(pages: Pages) -> tuple[_Positions, _Positions]:
    """Starts and ends of the runs of consecutive numbers."""
    numbers = pages.astype(np.int64)
    if not len(numbers):
        return numbers, numbers
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    return numbers[np.concatenate(([0], breaks + 1))], numbers[np.concatenate((breaks, [len(numbers) - 1]))] + 1


def split_at_grid(extents: Extents, cell_pages: int) -> Extents:
    """The same map with every extent cut where a cell of ``cell_pages`` pages begins."""
    first, last = _bounds(extents)
    counts = np.where(last > first, (last - 1) // cell_pages - first // cell_pages + 1, 0)
    source = np.repeat(np.arange(len(extents)), counts)
    number = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    cell = (first[source] // cell_pages + number) * cell_pages
    return _between(extents[source], np.maximum(first[source], cell), np.minimum(last[source], cell + cell_pages))


def _without(extents: Extents, starts: _Positions, ends: _Positions) -> Extents:
    """The map without the pages of these runs."""
    first, last = _bounds(extents)
    edges = np.unique(np.concatenate((first, last, starts, ends)))
    if not len(extents) or len(edges) < 2:
        return extents
    # between two edges next to each other, nothing begins or ends: it is kept or not as a whole
    begins, finishes = edges[:-1], edges[1:]
    owner = np.searchsorted(first, begins, side="right") - 1
    covered = (owner >= 0) & (begins < last[owner])
    run = np.searchsorted(starts, begins, side="right") - 1
    dropped = (run >= 0) & (begins < ends[run]) if len(starts) else np.zeros(len(begins), bool)
    chosen = covered & ~dropped
    return _between(extents[owner[chosen]], begins[chosen], finishes[chosen])


def _bounds(extents: Extents) -> tuple[_Positions, _Positions]:
    first = extents["first_page"].astype(np.int64)
    return first, first + extents["pages"]


def _between(extents: Extents, starts: _Positions, ends: _Positions) -> Extents:
    """Each extent narrowed to the pages from its start to its end; an extent may come several times."""
    result = np.empty(len(extents), EXTENT)
    result["id"] = extents["id"]
    result["content_page"] = extents["content_page"] + (starts - extents["first_page"]).astype(np.uint32)
    result["first_page"] = starts
    result["pages"] = ends - starts
    return result
