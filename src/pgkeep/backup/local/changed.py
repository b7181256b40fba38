"""Which pages of a file may differ from the parent backup's, known before they are stored.

From WAL summaries (17 and later) the pages are known before they are read. Without them a page's own LSN tells, once it has been read:
the end of the WAL record that changed it last. That holds where data checksums are on, and no other way:

* Whatever changes a page writes WAL and sets its LSN, but for hint bits, and with checksums the first of these after a
  checkpoint does too (MarkBufferDirtyHint in src/backend/storage/buffer/bufmgr.c). A backup begins with a checkpoint, so that a page
  that changed since the parent began bears an LSN from then on. Without checksums VACUUM marks heap pages all-visible
  without a new LSN (visibilitymap_set in src/backend/access/heap/visibilitymap.c), and the visibility map, which is always read,
  would then say of the parent's page what it does not say itself.
* Pages without a real LSN count as changed: new ones (zeros), those written without WAL, and those of GiST indexes as they are
  built (GistBuildLSN 1 in src/include/access/gist.h). The first segment of a cluster's WAL holds no LSN of a page.
* Pages keep their old LSNs when files are copied as such: CREATE DATABASE with STRATEGY FILE_COPY, and ALTER DATABASE SET TABLESPACE
  (src/backend/commands/dbcommands.c). Both make the database's PG_VERSION anew, so its mtime tells.
* A file that was dropped and made again under its old name has no page of before: all are new, or written by WAL since.

Free space maps are not fully logged, visibility maps neither on some versions: they are read and compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pgkeep.backup.incremental import is_deep_checked
from pgkeep.backup.overlay import Pages
from pgkeep.postgres.layout import Fork, RelationFile
from pgkeep.postgres.pages import page_lsns
from pgkeep.postgres.wal_summary import BlockChanges

if TYPE_CHECKING:
    from pgkeep.backup.parent import ParentBackup

__all__ = ["ChangesByLsn", "ChangesBySummary", "KeptFiles", "OnlyChanged", "maybe_changed"]

_MOST = 0.9
"""Share of changed pages from which on a file is read whole (GetFileBackupMethod in basebackup_incremental.c)."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class OnlyChanged:
    """Of a file the first ``kept`` pages are the parent's but for those in ``pages``; all others are in ``pages``."""

    kept: int
    pages: Pages


def maybe_changed(data: bytes, parent_start: int, wal_segment_size: int) -> Mask:
    """For each page, whether its LSN leaves it open that it changed since the parent began."""
    lsns = page_lsns(data)
    changed: Mask = (lsns >= np.uint64(parent_start)) | (lsns < np.uint64(wal_segment_size))
    return changed


class KeptFiles:
    """Which files the parent has in a form that only changes need be taken of; the rest is compared with it by content."""

    def __init__(self, parent: ParentBackup, number: int, deep_check: float) -> None:
        self._parent = parent
        self._number = number
        self._deep_check = deep_check
        self._damaged = {page.path for page in parent.manifest.damaged_pages}

    def pages(self, path: bytes, relation: RelationFile, size: int) -> int | None:
        """How many pages the parent has of a file of ``size`` bytes; None where the file must be read and compared."""
        page_size = self._parent.manifest.page_size
        if relation.fork is not Fork.MAIN or size % page_size or path in self._damaged:
            return None
        if is_deep_checked(path, self._number, self._deep_check):
            return None
        entry = self._parent.entry(path)
        if entry is None or entry.size % page_size or (entry.inline is not None and entry.size):
            return None
        return entry.size // page_size


class ChangesBySummary:
    """Changes that WAL summaries tell."""

    def __init__(self, changes: BlockChanges, segment_blocks: int) -> None:
        self._changes = changes
        self._segment_blocks = segment_blocks

    def of(self, relation: RelationFile, parent_pages: int, pages: int) -> OnlyChanged | None:
        """What to read of a file that has ``pages`` pages now; None where that is nearly all of it."""
        if self._changes.is_new_database(relation):
            return None
        kept, changed = self._changes.of(relation, self._segment_blocks)
        kept = min(kept, parent_pages, pages)
        wanted = np.concatenate((changed[changed < kept], np.arange(kept, pages, dtype=np.uint32)))
        return OnlyChanged(kept, wanted) if len(wanted) <= pages * _MOST else None


class ChangesByLsn:
    """Changes that pages' own LSNs tell."""

    def __init__(
        self, parent: ParentBackup, absolute: Callable[[bytes], bytes], parent_start: int, wal_segment_size: int
    ) -> None:
        self._parent = parent
        self._absolute = absolute
        self._parent_start = parent_start
        self._wal_segment_size = wal_segment_size
        self._same_databases: dict[bytes, bool] = {}

    def holds_for(self, path: bytes) -> bool:
        """Whether a relation's file is of a database that has been where it is since the parent began."""
        directory = os.path.dirname(path)
        if directory == b"global":
            return True
        if directory not in self._same_databases:
            self._same_databases[directory] = self._is_same_database(directory)
        return self._same_databases[directory]

    def maybe_changed(self, data: bytes) -> Mask:
        """For each page, whether it may have changed."""
        return maybe_changed(data, self._parent_start, self._wal_segment_size)

    def _is_same_database(self, directory: bytes) -> bool:
        version = os.path.join(directory, b"PG_VERSION")
        entry = self._parent.entry(version)
        try:
            made = int(os.stat(self._absolute(version)).st_mtime)
        except FileNotFoundError:
            return False
        # Of a database made within the parent's first second, and made again within it, both times would be the same; file systems'
        # own clock is a timer tick late on top.
        return entry is not None and entry.mtime == made < int(self._parent.manifest.started.timestamp()) - 1
