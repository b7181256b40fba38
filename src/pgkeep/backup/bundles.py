"""Changed pages of many files, bundled into contents: one page alone would cost an index entry and a read of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pgkeep.backup.overlay import EXTENT, Extents, Pages, joined, no_extents
from pgkeep.repository.contents import ContentWriter, Parameters, StoredContent
from pgkeep.repository.packs import PackKind

__all__ = ["PageBundler", "Placed", "zero_pages"]

Placed = Callable[[Extents, int], None]
"""Told where pages have been put, and how many stored bytes that took; pages of zeros are in no extent."""


@dataclass(frozen=True, slots=True)
class _Part:
    path: bytes
    pages: Pages
    data: bytes | memoryview
    placed: Placed


class PageBundler:
    """Collects pages in contents of up to a cell's size; safe for threads.

    The thread whose pages fill a bundle stores it, so that as many threads compress as call. `flush` when all is given.
    """

    def __init__(self, writer: ContentWriter, parameters: Parameters) -> None:
        self._writer = writer
        self._page_size = parameters.page_size
        self._room = parameters.cell_size // parameters.page_size
        self._lock = threading.Lock()
        self._parts: list[_Part] = []
        self._filled = 0

    def add(self, path: bytes, pages: Pages, data: bytes | memoryview, placed: Placed) -> None:
        """Store the pages of a file: ``data`` is their bytes, one page after the other, a cell's size at most.

        ``placed`` is called once, from any thread and perhaps at once, when they are stored; ``data`` must not change until
        then. Raises StoreError, also for what others gave.
        """
        assert len(data) == len(pages) * self._page_size
        zeros = zero_pages(data, self._page_size)
        if zeros.any():
            pages = pages[~zeros]
            data = np.frombuffer(data, np.uint8).reshape(-1, self._page_size)[~zeros].tobytes()
        if not len(pages):
            placed(no_extents(), 0)
            return
        assert len(pages) <= self._room
        full: list[_Part] = []
        with self._lock:
            if self._filled + len(pages) > self._room:
                full, self._parts, self._filled = self._parts, [], 0
            self._parts.append(_Part(path, pages, data, placed))
            self._filled += len(pages)
        self._store(full)

    def flush(self) -> None:
        """Store what is left. Raises StoreError."""
        with self._lock:
            parts, self._parts, self._filled = self._parts, [], 0
        self._store(parts)

    def _store(self, parts: list[_Part]) -> None:
        if not parts:
            return
        # threads come in any order; neighbours in a file are fetched together, so they lie together
        parts.sort(key=lambda part: (part.path, int(part.pages[0])))
        stored = self._writer.put(PackKind.DATA, b"".join([part.data for part in parts]))
        first, total = 0, sum(len(part.pages) for part in parts)
        for part in parts:
            count = len(part.pages)
            part.placed(_in_content(part.pages, first, stored), stored.stored_size * count // total)
            first += count


def zero_pages(data: bytes | bytearray | memoryview, page_size: int) -> npt.NDArray[np.bool_]:
    """For each page, whether it is all zeros."""
    pages = np.frombuffer(data, "<u8").reshape(-1, page_size // 8)
    # what is not zero mostly shows in its first words: a page's header
    zeros: npt.NDArray[np.bool_] = np.logical_not(pages[:, :8].any(axis=1))
    if zeros.any():
        zeros[zeros] = ~pages[zeros].any(axis=1)
    return zeros


def _in_content(pages: Pages, first: int, stored: StoredContent) -> Extents:
    """Extents of pages that lie one after the other in a content, from its page ``first`` on."""
    extents = np.empty(len(pages), EXTENT)
    extents["first_page"] = pages
    extents["pages"] = 1
    extents["content_page"] = np.arange(first, first + len(pages), dtype=np.uint32)
    extents["id"] = np.frombuffer(stored.id, "V32")
    return joined(extents)
