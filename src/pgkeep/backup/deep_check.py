"""The deep check: pages that differ from the backup before though no WAL has changed them.

A disk that lost a write, a program that wrote into the data directory, WAL that was not what it should be: all leave a
page that changed while its LSN, the end of the WAL record that changed it last, did not.
"""

from __future__ import annotations

import struct
import threading

import numpy as np

from pgkeep.backup.overlay import Pages
from pgkeep.postgres.layout import Fork, parse_relation_path
from pgkeep.postgres.pages import PAGE_SIZE, page_lsns, verify_pages
from pgkeep.repository.manifests import DamagedPage, Manifest

__all__ = ["UnexplainedPages"]

_LIMIT = 10_000
"""Pages that are listed one by one; a cluster with more needs no longer list."""


_SPGIST_MAGIC = struct.pack("<I", 0xBA0BABEE)
"""What SpGistMetaPageData begins with, behind the page's header (spgist_private.h)."""


class UnexplainedPages:
    """Looks at pages that differ from the parent's, and remembers those that WAL does not explain; safe for threads.

    A page that a server changed after the parent began bears an LSN from then on: with checksums, the setting of hint bits
    writes WAL too (MarkBufferDirtyHint in bufmgr.c). Passed over are pages whose LSN lies in the first WAL segment, which no
    server uses: new ones, and those of indexes under construction (GistBuildLSN in gist.h); torn ones, whose checksum is
    wrong: the server is writing them just now; and the first page of an SP-GiST index, which holds a cache that is not
    logged (SpGistUpdateMetaPage in spgutils.c).
    """

    def __init__(self, parent: Manifest) -> None:
        self._parent = parent.id
        self._first_lsn = np.uint64(parent.wal.segment_size)
        self._start_lsn = np.uint64(parent.start_lsn)
        self._segment_blocks = parent.segment_blocks
        self._known = {(page.path, page.block) for page in parent.damaged_pages}
        self._lock = threading.Lock()
        self._found: list[DamagedPage] = []

    def __call__(self, path: bytes, pages: Pages, data: bytes) -> None:
        """Look at pages of a file, by number, and what they are now."""
        relation = parse_relation_path(path)
        if relation is None or relation.fork is not Fork.MAIN or not len(pages):
            return
        lsns = page_lsns(data)
        for index in np.flatnonzero((lsns >= self._first_lsn) & (lsns < self._start_lsn)).tolist():
            block = int(pages[index]) + relation.segment * self._segment_blocks
            page = data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            is_torn = len(verify_pages(page, first_block=block, start_lsn=None).failures) > 0
            if is_torn or (path, block) in self._known or _is_spgist_meta_page(block, page):
                continue
            with self._lock:
                if len(self._found) < _LIMIT:
                    self._found.append(DamagedPage(path, block))

    def found(self) -> list[DamagedPage]:
        """The pages, by path and block."""
        return sorted(self._found, key=lambda page: (page.path, page.block))

    def alarms(self) -> list[str]:
        """What to tell the operator; empty where every difference is explained."""
        if not self._found:
            return []
        first = self.found()[0]
        more = f" and {len(self._found) - 1} more" if len(self._found) > 1 else ""
        path = first.path.decode("utf-8", "backslashreplace")
        return [
            f"{path} block {first.block}{more} differs from backup {self._parent}, and no WAL has changed it: damage?"
        ]


def _is_spgist_meta_page(block: int, page: bytes) -> bool:
    return block == 0 and page[24:28] == _SPGIST_MAGIC
