"""Page maps (`pgkeep.repository.page_map`) laid over each other, cut, and joined."""

from __future__ import annotations

import numpy as np

from pgkeep.repository.page_map import (
    EXTENT,
    Extents,
    Pages,
    Positions,
    bounds,
    decode_map,
    narrowed,
    no_extents,
    split_at_grid,
)

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
    first, last = bounds(extents)
    chosen = (first < end) & (last > start)
    if not chosen.any():
        return no_extents()
    return narrowed(extents[chosen], np.maximum(first[chosen], start), np.minimum(last[chosen], end))


def joined(extents: Extents) -> Extents:
    """The same map with neighbours joined that are neighbours in their content too."""
    if len(extents) < 2:
        return extents
    first, last = bounds(extents)
    goes_on = (
        (first[1:] == last[:-1])
        & (extents["content_page"][1:] == extents["content_page"][:-1] + extents["pages"][:-1])
        & (extents["id"][1:] == extents["id"][:-1])
    )
    begins = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    result = extents[begins].copy()
    result["pages"] = np.add.reduceat(extents["pages"], begins)
    return result


def runs(pages: Pages) -> tuple[Positions, Positions]:
    """Starts and ends of the runs of consecutive numbers."""
    numbers = pages.astype(np.int64)
    if not len(numbers):
        return numbers, numbers
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    return numbers[np.concatenate(([0], breaks + 1))], numbers[np.concatenate((breaks, [len(numbers) - 1]))] + 1


def _without(extents: Extents, starts: Positions, ends: Positions) -> Extents:
    """The map without the pages of these runs."""
    first, last = bounds(extents)
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
    return narrowed(extents[owner[chosen]], begins[chosen], finishes[chosen])
