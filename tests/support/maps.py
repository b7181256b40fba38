"""Page maps as anyone can read them: where each page is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pgkeep.backup.overlay import EXTENT, Extents

__all__ = ["Model", "content_id", "extents_of", "pages_of"]

Model = dict[int, tuple[int, int]]
"""Page -> number of the content, page in it."""


def content_id(number: int) -> bytes:
    """An id that ends in zeros for some numbers, as one in 256 does."""
    return number.to_bytes(32, "little")


def pages_of(extents: Extents) -> Model:
    """The model that a map means; asserts that the map is one: in order, without overlap or empty extents."""
    model: Model = {}
    end = 0
    for extent in extents:
        first, pages, begin = (int(extent[name]) for name in ("first_page", "pages", "content_page"))
        assert first >= end
        assert pages > 0
        end = first + pages
        number = int.from_bytes(extent["id"].tobytes(), "little")
        model.update({first + step: (number, begin + step) for step in range(pages)})
    return model


def extents_of(model: Mapping[int, tuple[int, int]]) -> Extents:
    """A map of one extent a page."""
    extents = np.zeros(len(model), EXTENT)
    for row, (page, (number, begin)) in zip(extents, sorted(model.items()), strict=True):
        row["first_page"], row["pages"], row["content_page"] = page, 1, begin
        row["id"] = np.frombuffer(content_id(number), "V32")[0]
    return extents
