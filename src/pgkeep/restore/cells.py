"""How pages come together before they are written: a cell of a file goes to the disk in one write, wherever its pages are stored.

A cell that incremental backups have changed is made of a content of its own and of pages of bundles, which hold pages of many cells. The
bundles of a window of cells are fetched first, and of them the pages that the window needs are held; then each cell is put together
when its own content comes. There may be a hundred extents in a cell, so that what is done for each of them is done in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pgkeep.errors import DamageError
from pgkeep.repository.page_map import Extents, Positions, bounds, split_at_grid

__all__ = ["Cell", "FileCells", "Rows", "Window"]

Rows = npt.NDArray[np.uint8]
"""Pages, one a row."""

_Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cell:
    """Pages of a file that follow one another in one cell of the grid: what is written at once.

    ``size`` bytes from ``position`` on; ``own`` is the content that most of them are in, ``shared_pages`` are in others. ``is_new`` where
    the file was made just now, so that what is on the disk need not be looked at.
    """

    place: bytes
    shown_path: str
    position: int
    size: int
    extents: Extents
    own: bytes
    shared_pages: int
    is_new: bool


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


class Window:
    """Cells that are at work together, and the pages that are held for them.

    ``contents`` are the ids of all that is needed; ``held`` those that are fetched first, by number; ``by_own`` the cells, by number,
    that can be put together once their own content is there too, by its number; ``rest`` need held ones alone. With
    ``wanted``, one for each extent of the cells in turn, the others are passed over, and what is on the disk there stays.
    ``room`` is how many bytes more than it must a window may hold to spare itself a second fetch.
    """

    def __init__(self, cells: Sequence[Cell], page_size: int, *, room: int, wanted: _Chosen | None = None) -> None:
        self.cells = cells
        self.page_size = page_size
        parts = np.concatenate([cell.extents for cell in cells])
        number = np.repeat(np.arange(len(cells)), [len(cell.extents) for cell in cells])
        self.is_whole = wanted is None or bool(wanted.all())
        if wanted is not None:
            parts, number = parts[wanted], number[wanted]
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
        pages = parts["pages"][shared].astype(np.int64)
        slot = parts["content_page"].astype(np.int64)
        slot[shared] = np.cumsum(pages) - pages
        self.held_pages = int(pages.sum())
        held, first = np.unique(self.content[shared], return_index=True)
        self.held: dict[int, Positions] = (
            dict(zip(held.tolist(), np.split(shared, first[1:]), strict=True)) if len(held) else {}
        )
        self._slot = slot
        self._lay_out_pages(slot)
        self.by_own: dict[int, list[int]] = {}
        for cell, content in dict.fromkeys(
            zip(number[self.is_own].tolist(), self.content[self.is_own].tolist(), strict=True)
        ):
            self.by_own.setdefault(content, []).append(cell)
        self.rest = sorted(set(number[~self.is_own].tolist()) - set(number[self.is_own].tolist()))
        self._rows = np.empty((0, page_size), np.uint8)

    def _lay_out_pages(self, source: Positions) -> None:
        """For each page where it comes from, in its own content or among those held, and its row in the cell; own ones first."""
        order = np.lexsort((~self.is_own, self.number))
        counts = self.parts["pages"][order]
        cell = np.repeat(self.number[order], counts)
        first_page = np.array([cell.position // self.page_size for cell in self.cells], np.int64)
        self._source = _spread(source[order], counts)
        self._row = _spread(self.parts["first_page"][order], counts) - first_page[cell]
        numbers = np.arange(len(self.cells) + 1)
        self._page_ends = np.searchsorted(cell, numbers).tolist()
        own_pages = np.bincount(cell, np.repeat(self.is_own[order], counts), minlength=len(self.cells))
        self._own_pages = own_pages.astype(np.int64).tolist()

    def _hold_what_others_hold(self, room: int) -> None:
        """A content that some cells need to be held need not be fetched again for those whose own it is."""
        twice = self.is_own & np.isin(self.content, self.content[~self.is_own])
        if twice.any():
            pages = np.bincount(self.content[twice], self.parts["pages"][twice], minlength=len(self.contents))
            chosen = np.flatnonzero(pages)
            chosen = chosen[np.argsort(pages[chosen], kind="stable")]
            chosen = chosen[np.cumsum(pages[chosen]) <= room]
            self.is_own &= ~np.isin(self.content, chosen)

    @property
    def is_last(self) -> _Chosen:
        """For each extent whether it is its cell's last."""
        ends: _Chosen = np.diff(self.number, append=-1) != 0
        return ends

    def shown_paths(self) -> dict[bytes, str]:
        """Each content, with a file that needs it."""
        _, first = np.unique(self.content, return_index=True)
        return {
            content: self.cells[cell].shown_path
            for content, cell in zip(self.contents, self.number[first].tolist(), strict=True)
        }

    def begin(self, room: Rows) -> None:
        """Hold what is to be held in these rows, if there are enough of them."""
        enough = len(room) >= self.held_pages
        self._rows = room[: self.held_pages] if enough else np.empty((self.held_pages, self.page_size), np.uint8)

    def hold(self, content: int, plain: bytes) -> None:
        """Keep what is needed of a content; safe for threads. Raises DamageError."""
        parts = self.held[content]
        source = _spread(self.parts["content_page"][parts], self.parts["pages"][parts])
        slot = int(self._slot[parts[0]])
        rows = self._rows_of(plain, source, self.cells[int(self.number[parts[0]])], content)
        np.take(rows, source, axis=0, out=self._rows[slot : slot + len(source)], mode="clip")

    def single(self, cell: int, plain: bytes) -> memoryview | None:
        """The bytes of a cell that lies in its own content in one piece, None for any other. Raises DamageError."""
        begin, _ = self._bounds(cell)
        if len(self.cells[cell].extents) > 1 or not self.is_own[begin]:
            return None
        start = int(self.parts["content_page"][begin]) * self.page_size
        size = self.cells[cell].size
        data = memoryview(plain)[start : start + size]
        if len(data) != size:
            raise _too_short(self.cells[cell], self.contents[int(self.content[begin])])
        return data

    def fill(self, cell: int, rows: Rows, plain: bytes | None) -> int:
        """Put the wanted pages of a cell into their rows, ``plain`` being its own content; returns how many. Raises DamageError."""
        begin, end = self._page_ends[cell], self._page_ends[cell + 1]
        own_end = begin + self._own_pages[cell]
        if plain is not None:
            source, row = self._source[begin:own_end], self._row[begin:own_end]
            first, last = self._bounds(cell)
            own = self._rows_of(
                plain, source, self.cells[cell], int(self.content[first:last][self.is_own[first:last]][0])
            )
            if self.is_whole and len(own) <= len(rows) and (source == row).all():
                # what is superseded of it is overwritten at once
                rows[: len(own)] = own
            else:
                rows[row] = own[source]
        if own_end < end:
            rows[self._row[own_end:end]] = self._rows[self._source[own_end:end]]
        return int(end - begin)

    def _bounds(self, cell: int) -> tuple[int, int]:
        return (self.ends[cell - 1] if cell else 0), self.ends[cell]

    def _rows_of(self, plain: bytes, source: Positions, cell: Cell, content: int) -> Rows:
        if len(plain) % self.page_size:
            plain += bytes(-len(plain) % self.page_size)
        rows: Rows = np.frombuffer(plain, np.uint8).reshape(-1, self.page_size)
        if len(source) and int(source.max()) >= len(rows):
            raise _too_short(cell, self.contents[content])
        return rows


def _spread(starts: Positions, counts: npt.NDArray[np.uint32]) -> Positions:
    """All numbers of runs that begin at ``starts`` and have ``counts`` numbers, one run after the other."""
    lengths = counts.astype(np.int64)
    result: Positions = np.repeat(starts.astype(np.int64) - (np.cumsum(lengths) - lengths), lengths)
    return result + np.arange(len(result))


def _too_short(cell: Cell, content: bytes) -> DamageError:
    return DamageError(
        f"{cell.shown_path} cannot be restored: its map names bytes that content {content.hex()[:16]} does not have",
        path=cell.shown_path,
    )
