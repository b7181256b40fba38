"""Page checksums, looked at on the way into the repository where the server has found damage."""

from __future__ import annotations

import threading

import numpy as np

from pgkeep.backup.overlay import Pages, runs
from pgkeep.postgres.layout import is_checksummed, parse_relation_path
from pgkeep.postgres.pages import PAGE_SIZE, verify_pages
from pgkeep.repository.manifests import DamagedPage

__all__ = ["PageCheckLog"]

_LIMIT = 10_000
"""Damaged pages that are listed one by one; a cluster with more needs no longer list."""


class PageCheckLog:
    """Checks cells by PostgreSQL's own rule and remembers the pages that fail; safe for threads.

    Set ``start_lsn`` before the first cell: pages written after the backup began may be torn, and WAL mends them.
    """

    def __init__(self, segment_blocks: int) -> None:
        self.start_lsn = 0
        self._segment_blocks = segment_blocks
        self._lock = threading.Lock()
        self._damaged: list[DamagedPage] = []

    def __call__(self, path: bytes, first_page: int, data: bytes) -> None:
        """Check one cell of a file."""
        if not is_checksummed(path) or len(data) % PAGE_SIZE:
            return
        relation = parse_relation_path(path)
        first_block = first_page + (relation.segment * self._segment_blocks if relation is not None else 0)
        failures = verify_pages(data, first_block=first_block, start_lsn=self.start_lsn).failures
        if len(failures):
            with self._lock:
                room = max(_LIMIT - len(self._damaged), 0)
                self._damaged += [DamagedPage(path, int(block)) for block in failures[:room]]

    def pages(self, path: bytes, pages: Pages, data: bytes) -> None:
        """Check pages of a file by number, ascending: run by run."""
        for start, end in zip(*(edges.tolist() for edges in runs(pages)), strict=True):
            first = int(np.searchsorted(pages, start))
            self(path, start, data[first * PAGE_SIZE : (first + end - start) * PAGE_SIZE])

    def damaged(self) -> list[DamagedPage]:
        """The damaged pages, by path and block."""
        return sorted(self._damaged, key=lambda page: (page.path, page.block))
