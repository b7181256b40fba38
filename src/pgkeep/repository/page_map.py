"""Page maps as arrays: many extents at a time.

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
    "Positions",
    "bounds",
    "decode_map",
    "narrowed",
    "no_extents",
    "split_at_grid",
]

EXTENT = np.dtype([("first_page", "<u4"), ("pages", "<u4"), ("content_page", "<u4"), ("id", "V32")])
"""One extent of a page map: ``pages`` pages from ``first_page`` on are in content ``id`` from ``content_page`` on."""

Extents = npt.NDArray[np.void]
"""Extents of one file, in order of page."""

Pages = npt.NDArray[np.uint32]
"""Numbers of pages of one file, ascending, each once."""

Positions = npt.NDArray[np.int64]


def no_extents() -> Extents:
    """The map of a file that is all zeros."""
    return np.empty(0, EXTENT)


def decode_map(encoded: bytes) -> Extents:
    """The extents of a page map; ``tobytes`` is the way back. Raises DamageError where it is cut off."""
    if len(encoded) % EXTENT.itemsize:
        raise DamageError("a page map is cut off")
    return np.frombuffer(encoded, EXTENT)


def split_at_grid(extents: Extents, cell_pages: int) -> Extents:
    """The same map with every extent cut where a cell of ``cell_pages`` pages begins."""
    first, last = bounds(extents)
    counts = np.where(last > first, (last - 1) // cell_pages - first // cell_pages + 1, 0)
    source = np.repeat(np.arange(len(extents)), counts)
    number = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    cell = (first[source] // cell_pages + number) * cell_pages
    return narrowed(extents[source], np.maximum(first[source], cell), np.minimum(last[source], cell + cell_pages))


def bounds(extents: Extents) -> tuple[Positions, Positions]:
    """First page of each extent, and the page behind its last."""
    first = extents["first_page"].astype(np.int64)
    return first, first + extents["pages"]


def narrowed(extents: Extents, starts: Positions, ends: Positions) -> Extents:
    """Each extent narrowed to the pages from its start to its end; an extent may come several times."""
    result = np.empty(len(extents), EXTENT)
    result["id"] = extents["id"]
    result["content_page"] = extents["content_page"] + (starts - extents["first_page"]).astype(np.uint32)
    result["first_page"] = starts
    result["pages"] = ends - starts
    return result
