"""Page checksums, looked at while the server may be writing the same pages.

The rule is that of the server's own base backup (verify_page_checksum in src/backend/backup/basebackup.c): a page whose LSN is not
older than the backup may be torn, and WAL replay replaces it. Any other page with a wrong checksum is read once more after
a moment, since it may have been half written; if it is still wrong, it is damaged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pgkeep.backup.overlay import Pages
from pgkeep.postgres.layout import RelationFile
from pgkeep.postgres.pages import PAGE_SIZE, verify_pages
from pgkeep.repository.manifests import DamagedPage

__all__ = ["LocalPageCheck"]

_MOMENT = 0.05
"""Seconds until a page is read again: a server writes one in a thousandth of that."""

_LIMIT = 10_000
"""Damaged pages that are listed one by one; a cluster with more needs no longer list."""

Mask = npt.NDArray[np.bool_]


class LocalPageCheck:
    """Checks pages that were just read, and remembers the damaged ones; safe for threads.

    ``start_lsn`` is where the backup began, ``segment_blocks`` the blocks of a full segment.
    """

    def __init__(self, start_lsn: int, segment_blocks: int) -> None:
        self._start_lsn = start_lsn
        self._segment_blocks = segment_blocks
        self._lock = threading.Lock()
        self._damaged: dict[tuple[bytes, int], DamagedPage] = {}

    def __call__(
        self, path: bytes, relation: RelationFile, pages: Pages, data: bytes, read_again: Callable[[int], bytes]
    ) -> tuple[bytes, Mask]:
        """Check pages of a file, by number; ``read_again`` reads one of them anew.

        Returns their bytes, as they were read last, and which pages are damaged.
        """
        wrong = self._wrong(relation, pages, data)
        if not wrong.any():
            return data, wrong
        if len(self._damaged) < _LIMIT:
            # not for each cell of a cluster whose every page is wrong
            time.sleep(_MOMENT)
        mended = bytearray(data)
        suspects = np.flatnonzero(wrong)
        for index in suspects.tolist():
            mended[index * PAGE_SIZE : (index + 1) * PAGE_SIZE] = read_again(int(pages[index]))
        data = bytes(mended)
        wrong = self._wrong(relation, pages, data)
        self._note(path, pages[wrong] + np.uint32(relation.segment * self._segment_blocks))
        return data, wrong

    def damaged(self) -> list[DamagedPage]:
        """The damaged pages, by path and block."""
        with self._lock:
            return [page for _, page in sorted(self._damaged.items())]

    def _wrong(self, relation: RelationFile, pages: Pages, data: bytes) -> Mask:
        blocks = pages + np.uint32(relation.segment * self._segment_blocks)
        return np.isin(blocks, verify_pages(data, first_block=blocks, start_lsn=self._start_lsn).failures)

    def _note(self, path: bytes, blocks: Pages) -> None:
        with self._lock:
            for block in blocks[: max(_LIMIT - len(self._damaged), 0)].tolist():
                self._damaged[path, block] = DamagedPage(path, block)
