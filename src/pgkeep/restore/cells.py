"""How pages come together before they are written: a cell of a file goes to the disk in one write, wherever its pages are stored.

A cell that incremental backups have changed is made of a content of its own and of pages of bundles, which hold pages of many cells. The
bundles of a window of cells are fetched first, and of them the pages that the window needs are held; then each cell is put together
when its own content comes. There may be a hundred extents in a cell, so that what is done for each of them is done in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pgkeep.errors import DamageError
from pgkeep.repository.page_map import Extents, Positions, bounds, split_at_grid

__all__ = ["Cell", "FileCells", "Rows", "Window", "spread"]

Rows = npt.NDArray[np.uint8]
"""Pages, one a row."""


Plain = memoryview
"""The bytes of a content."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Pages of a file that follow one another in one cell of the grid: what is written at once.

    ``size`` bytes from ``position`` on; ``own`` is the content that most of them are in, ``shared_pages`` are in others. ``is_new`` where
    the file was made just now, so that what is on the disk need not be looked at. ``is_partial`` where only the pages of ``extents``
    are wanted, and the others stay as they are on the disk.
    """

    place: bytes
    shown_path: str
    position: int
    size: int
    extents: Extents
    own: bytes
    shared_pages: int
    is_new: bool
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class FileCells:
    """The cells of files; sizes in bytes."""

    cell_size: int
    page_size: int

    def of(self, extents: Extents, place: bytes, shown_path: str, file_size: int, *, is_new: bool) -> Iterator[Cell]:
        """The cells of a file with this map, in order."""
        if not len(extents):
            return
        cell_pages = self.cell_size // self.page_size
        parts = split_at_grid(extents, cell_pages)
        first, end = bounds(parts)
        begins = np.flatnonzero(
            np.concatenate(([True], (first[1:] != end[:-1]) | (first[1:] // cell_pages != first[:-1] // cell_pages)))
        )
        ends = np.append(begins[1:], len(parts))
        own, own_pages = _owners(parts, begins)
        for number, (begin, stop) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            position = int(first[begin]) * self.page_size
            pages = int(end[stop - 1] - first[begin])
            size = min(pages * self.page_size, file_size - position)
            shared_pages = pages - int(own_pages[number])
            yield Cell(place, shown_path, position, size, parts[begin:stop], own[number], shared_pages, is_new)


def _owners(parts: Extents, begins: Positions) -> tuple[list[bytes], Positions]:
    """For each cell the content that most of its pages are in, and how many these are."""
    ids, content = np.unique(parts["id"], return_inverse=True)
    cell = np.zeros(len(parts), np.int64)
    cell[begins[1:]] = 1
    keys, pair = np.unique(np.cumsum(cell) * len(ids) + content, return_inverse=True)
    pages = np.bincount(pair, parts["pages"]).astype(np.int64)
    owner = keys // len(ids)
    order = np.lexsort((pages, owner))
    most = order[np.flatnonzero(np.diff(owner[order], append=-1))]
    return [ids[number].tobytes() for number in (keys[most] % len(ids)).tolist()], pages[most]


@dataclass(slots=True)
class _Held:
    """A content of which cells need pages: all its pages, or those alone that one window needs; none before it is fetched."""

    rows: Rows | None = None


class Window:
    """Cells that are at work together, and the contents that are held for them.

    ``contents`` are the ids of all that is needed; ``held`` those that are fetched first, by number; ``by_own`` the cells, by number,
    that can be put together once their own content is there too, by its number; ``rest`` need held ones alone.
    ``room`` is how many bytes more than it must a window may hold to spare itself a second fetch.
    """

    def __init__(self, cells: Sequence[Cell], page_size: int, *, room: int) -> None:
        self.cells = cells
        self.page_size = page_size
        parts = np.concatenate([cell.extents for cell in cells])
        number = np.repeat(np.arange(len(cells)), [len(cell.extents) for cell in cells])
        self.parts = parts
        self.number = number
        self.ends = np.searchsorted(number, np.arange(1, len(cells) + 1)).tolist()
        ids, self.content = np.unique(parts["id"], return_inverse=True)
        self.contents: list[bytes] = [content.tobytes() for content in ids]
        self.number_of = {content: position for position, content in enumerate(self.contents)}
        own = np.array([self.number_of.get(cell.own, -1) for cell in cells], np.int64)
        self.is_own = self.content == own[number]
        self._hold_what_others_hold(room // page_size)
        shared = np.flatnonzero(~self.is_own)
        shared = shared[np.argsort(self.content[shared], kind="stable")]
        held, first = np.unique(self.content[shared], return_index=True)
        self.held: dict[int, Positions] = (
            dict(zip(held.tolist(), np.split(shared, first[1:]), strict=True)) if len(held) else {}
        )
        self.by_own: dict[int, list[int]] = {}
        for cell, content in dict.fromkeys(
            zip(number[self.is_own].tolist(), self.content[self.is_own].tolist(), strict=True)
        ):
            self.by_own.setdefault(content, []).append(cell)
        self.rest = sorted(set(number[~self.is_own].tolist()) - set(number[self.is_own].tolist()))
        self._kept: dict[int, _Held] = {}
        self._whole: dict[bytes, _Held] = {}

    def prepare(self, sizes: Sequence[int], before: Window | None, room: int) -> list[int]:
        """Lay out what is held; returns the contents, by number, that are to be fetched for it.

        ``sizes`` are the contents' in bytes. Those of up to ``room`` bytes are held whole, so that the next window need not fetch
        them again, and those that the window ``before`` holds whole are used; of the others the pages that are needed are held.
        Raises DamageError where a map names pages that a content does not have.
        """
        slot = self.parts["content_page"].astype(np.int64)
        missing = []
        for content, parts in self.held.items():
            pages = self.parts["pages"][parts].astype(np.int64)
            if int((slot[parts] + pages).max()) > -(-sizes[content] // self.page_size):
                raise _too_short(self.cells[int(self.number[parts[0]])], self.contents[content])
            is_whole = sizes[content] <= room
            room -= sizes[content] if is_whole else 0
            there = before._whole.get(self.contents[content]) if before is not None and is_whole else None  # noqa: SLF001
            if there is None:
                missing.append(content)
            self._kept[content] = there or _Held()
            if is_whole:
                self._whole[self.contents[content]] = self._kept[content]
            else:
                slot[parts] = np.cumsum(pages) - pages
        self._lay_out_pages(slot)
        return missing

    def _lay_out_pages(self, source: Positions) -> None:
        """For each page its place in what it comes from, and its row in the cell; by cell and by what it comes from, its own content first."""
        order = np.lexsort((self.content, ~self.is_own, self.number))
        counts = self.parts["pages"][order]
        cell, content = self.number[order], self.content[order]
        first_page = np.array([cell.position // self.page_size for cell in self.cells], np.int64)
        self._source = spread(source[order], counts)
        self._row = spread(self.parts["first_page"][order], counts) - np.repeat(first_page[cell], counts)
        begins = np.flatnonzero((np.diff(cell, prepend=-1) != 0) | (np.diff(content, prepend=-1) != 0))
        ends = np.cumsum(counts.astype(np.int64))
        self._group_content = content[begins].tolist()
        self._group_ends = ends[np.append(begins[1:], len(order)) - 1].tolist() if len(order) else []
        self._groups = np.searchsorted(cell[begins], np.arange(len(self.cells) + 1)).tolist()

    def _hold_what_others_hold(self, room: int) -> None:
        """A content that some cells need to be held need not be fetched again for those whose own it is."""
        twice = self.is_own & np.isin(self.content, self.content[~self.is_own])
        if twice.any():
            pages = np.bincount(self.content[twice], self.parts["pages"][twice], minlength=len(self.contents))
            chosen = np.flatnonzero(pages)
            chosen = chosen[np.argsort(pages[chosen], kind="stable")]
            chosen = chosen[np.cumsum(pages[chosen]) <= room]
            self.is_own &= ~np.isin(self.content, chosen)

    def shown_paths(self) -> dict[bytes, str]:
        """Each content, with a file that needs it."""
        _, first = np.unique(self.content, return_index=True)
        return {
            content: self.cells[cell].shown_path
            for content, cell in zip(self.contents, self.number[first].tolist(), strict=True)
        }

    def is_wanted(self, content: bytes, start: int, end: int) -> bool:
        """Whether any cell needs what lies between two bytes of a content."""
        pages = self._wanted[self.number_of[content]]
        first, last = start // self.page_size, -(-end // self.page_size)
        return int(np.searchsorted(pages, first)) < int(np.searchsorted(pages, last))

    @cached_property
    def _wanted(self) -> list[Positions]:
        """For each content its pages that are needed, ascending."""
        order = np.argsort(self.content, kind="stable")
        pages = spread(self.parts["content_page"][order], self.parts["pages"][order])
        content = np.repeat(self.content[order], self.parts["pages"][order])
        return np.split(pages[np.lexsort((pages, content))], np.searchsorted(content, np.arange(1, len(self.contents))))

    def hold(self, content: int, plain: Plain) -> None:
        """Keep what is needed of a content; safe for threads. Raises DamageError."""
        kept = self._kept[content]
        rows = self._rows_of(plain)
        if self.contents[content] not in self._whole:
            parts = self.held[content]
            pages = spread(self.parts["content_page"][parts], self.parts["pages"][parts])
            if int(pages.max()) >= len(rows):
                raise _too_short(self.cells[int(self.number[parts[0]])], self.contents[content])
            rows = rows[pages]
        kept.rows = rows

    def single(self, cell: int, plain: Plain) -> memoryview | None:
        """The bytes of a cell that lies in its own content in one piece, None for any other. Raises DamageError."""
        begin, _ = self._bounds(cell)
        if self.cells[cell].is_partial or len(self.cells[cell].extents) > 1 or not self.is_own[begin]:
            return None
        start = int(self.parts["content_page"][begin]) * self.page_size
        size = self.cells[cell].size
        data = plain[start : start + size]
        if len(data) != size:
            raise _too_short(self.cells[cell], self.contents[int(self.content[begin])])
        return data

    def lies_in_place(self, cell: int) -> bool:
        """Whether the own content of a cell has its pages where the cell has them, and is no other cell's."""
        first = self._groups[cell]
        pages = slice(self._group_ends[first - 1] if first else 0, self._group_ends[first])
        return len(self.by_own[self._group_content[first]]) == 1 and bool(
            (self._source[pages] == self._row[pages]).all()
        )

    def fill(self, cell: int, rows: Rows, plain: Plain | None, *, in_place: bool = False) -> None:
        """Put the pages of a cell into their rows, ``plain`` being its own content; ``in_place`` where its pages are there already.

        Raises DamageError.
        """
        first, last = self._groups[cell], self._groups[cell + 1]
        begin = start = self._group_ends[first - 1] if first else 0
        for content, end in zip(self._group_content[first:last], self._group_ends[first:last], strict=True):
            kept = self._kept.get(content)
            if plain is not None and start == begin:
                if not in_place:
                    self._fill_own(rows, plain, slice(start, end), self.cells[cell], content)
            elif kept is not None and kept.rows is not None:
                rows[self._row[start:end]] = kept.rows[self._source[start:end]]
            start = end

    def _fill_own(self, rows: Rows, plain: Plain, pages: slice, cell: Cell, content: int) -> None:
        source, row = self._source[pages], self._row[pages]
        own = self._rows_of(plain)
        if int(source.max()) >= len(own):
            raise _too_short(cell, self.contents[content])
        rows[row] = own[source]

    def _bounds(self, cell: int) -> tuple[int, int]:
        return (self.ends[cell - 1] if cell else 0), self.ends[cell]

    def _rows_of(self, plain: Plain) -> Rows:
        whole = plain if len(plain) % self.page_size == 0 else bytes(plain) + bytes(-len(plain) % self.page_size)
        rows: Rows = np.frombuffer(whole, np.uint8).reshape(-1, self.page_size)
        return rows


def spread(starts: Positions, counts: npt.NDArray[np.uint32]) -> Positions:
    """All numbers of runs that begin at ``starts`` and have ``counts`` numbers, one run after the other."""
    lengths = counts.astype(np.int64)
    result: Positions = np.repeat(starts.astype(np.int64) - (np.cumsum(lengths) - lengths), lengths)
    return result + np.arange(len(result))


def _too_short(cell: Cell, content: bytes) -> DamageError:
    return DamageError(
        f"{cell.shown_path} cannot be restored: its map names bytes that content {content.hex()[:16]} does not have",
        path=cell.shown_path,
    )
