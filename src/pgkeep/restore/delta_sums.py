"""What cells lack on the disk, told by the sums of their pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pgkeep.repository.block_sums import BLOCK_SIZE, Sums
from pgkeep.repository.page_map import bounds, narrowed
from pgkeep.restore.cells import Cell, spread
from pgkeep.restore.source import ContentSource

__all__ = ["WantedSums", "wanted_size"]


class WantedSums:
    """The sums that the pages of cells are to have; safe for threads once it is made.

    ``read_sums`` is called with packs, and returns when the source has read the sums of their contents.
    """

    def __init__(
        self, cells: Sequence[Cell], source: ContentSource, read_sums: Callable[[list[str]], None], page_size: int
    ) -> None:
        self.cells = cells
        parts = np.concatenate([cell.extents for cell in cells])
        ids, content = np.unique(parts["id"], return_inverse=True)
        contents = [number.tobytes() for number in ids]
        first_of = np.cumsum([0, *(len(cell.extents) for cell in cells)])
        shown = {
            contents[number]: cell.shown_path
            for cell, first, end in zip(cells, first_of[:-1], first_of[1:], strict=True)
            for number in content[first:end].tolist()
        }
        locations = source.locate(shown)
        found: list[Sums | None] = [None] * len(contents)
        if page_size == BLOCK_SIZE:
            read_sums(source.packs_without_sums(locations.values()))
            found = [source.sums_of(locations[number]) for number in contents]
            source.forget_old_sums()
        sizes = np.array([0 if sums is None else len(sums) for sums in found], np.int64)
        begin = np.cumsum(sizes) - sizes
        sums = np.concatenate([np.empty(0, np.uint64), *(sums for sums in found if sums is not None)])
        counts = parts["pages"]
        part = np.repeat(np.arange(len(parts)), counts)
        content_page = spread(parts["content_page"].astype(np.int64), counts)
        self._is_known = content_page < sizes[content[part]]
        self._sums = np.zeros(len(part), np.uint64)
        self._sums[self._is_known] = sums[(begin[content[part]] + content_page)[self._is_known]]
        first_page = np.repeat([cell.position // page_size for cell in cells], np.diff(first_of))
        self._row = spread(parts["first_page"].astype(np.int64), counts) - first_page[part]
        self._ends = np.concatenate(([0], np.cumsum(counts.astype(np.int64))))[first_of].tolist()

    def lacking(self, number: int, there: Sums) -> Cell | None:
        """What a cell lacks, given the sums of the pages at its place; None where it lacks nothing."""
        cell = self.cells[number]
        pages = slice(self._ends[number], self._ends[number + 1])
        row = self._row[pages]
        if not self._is_known[pages].all() or int(row[-1]) >= len(there):
            return cell
        differs = there[row] != self._sums[pages]
        count = int(np.count_nonzero(differs))
        if count == 0:
            return None
        if count == len(differs):
            return cell
        extents = cell.extents
        part = np.repeat(np.arange(len(extents)), extents["pages"])
        begins = differs & np.append(True, ~differs[:-1] | (part[1:] != part[:-1]))
        ends = differs & np.append(~differs[1:] | (part[1:] != part[:-1]), True)
        first_page = row + bounds(extents)[0][0] - row[0]
        lacking = narrowed(extents[part[begins]], first_page[begins], first_page[ends] + 1)
        return replace(cell, extents=lacking, is_partial=True)


def wanted_size(cell: Cell, page_size: int) -> int:
    """The bytes of a cell that are wanted; the last page of a file may be cut off."""
    if not cell.is_partial:
        return cell.size
    _, end = bounds(cell.extents)
    cut_off = max(int(end[-1]) * page_size - cell.position - cell.size, 0)
    return int(cell.extents["pages"].sum()) * page_size - cut_off
