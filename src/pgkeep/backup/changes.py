"""What differs from the parent backup, and nothing else, on its way into the repository.

Two ways lead here. A file that was read whole is compared with the parent, cell by cell (`Changes.store_cell`). Of a file
whose changed pages are known, only these are read (`Changes.begin`). Either way pages that changed are bundled, the map
points at the parent's contents for the others, and cells that would become too fragmented are stored anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pgkeep.backup.bundles import PageBundler, Placed
from pgkeep.backup.health import cells_to_rewrite, unhealthy_cells
from pgkeep.backup.overlay import EXTENT, Extents, Pages, cut, joined, no_extents, overlay
from pgkeep.backup.parent import ParentBackup
from pgkeep.errors import DamageError
from pgkeep.repository.contents import ContentWriter, Parameters
from pgkeep.repository.maps import FileEntry
from pgkeep.repository.packs import PackKind

__all__ = ["ChangedFile", "Changes", "Chosen", "OldFile", "PageWatch"]

Chosen = npt.NDArray[np.bool_]
"""For each page of a cell, yes or no."""

_Rows = npt.NDArray[np.uint8]


class PageWatch(Protocol):
    """Looks at pages that differ from the parent's, by number, with their bytes; called from worker threads."""

    def __call__(self, path: bytes, pages: Pages, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class OldFile:
    """A file as the parent has it: its map, its size in pages, and how many stored bytes a page takes on average.

    ``unhealthy`` are the cells that want to be stored anew, by number.
    """

    extents: Extents
    pages: int
    stored_per_page: float
    unhealthy: frozenset[int] = frozenset()

    def stored_size(self, extents: Extents) -> int:
        """What these of its extents take, as far as the average tells."""
        return round(int(extents["pages"].sum()) * self.stored_per_page)


class Changes:
    """Stores changes against a parent; safe for threads. `flush` when all is given."""

    def __init__(
        self, parent: ParentBackup, writer: ContentWriter, parameters: Parameters, watch: PageWatch | None = None
    ) -> None:
        self.parent = parent
        self.page_size = parameters.page_size
        self.cell_pages = parameters.cell_size // parameters.page_size
        self.bundler = PageBundler(writer, parameters)
        self._writer = writer
        self._watch = watch

    def old_file(self, path: bytes) -> OldFile | None:
        """What the parent has of a file that is made of whole pages, or None. Raises DamageError."""
        entry = self._old_entry(path)
        if entry is None:
            return None
        old = self._with_map(entry)
        return replace(old, unhealthy=frozenset(unhealthy_cells(old.extents, self.cell_pages).tolist()))

    def _old_entry(self, path: bytes) -> FileEntry | None:
        entry = self.parent.entry(path)
        if entry is None or entry.size % self.page_size or (entry.inline is not None and entry.size):
            return None
        return entry

    def _with_map(self, entry: FileEntry) -> OldFile:
        extents = self.parent.extents(entry)
        mapped = int(extents["pages"].sum())
        return OldFile(extents, entry.size // self.page_size, entry.stored_size / max(mapped, 1))

    def store_cell(self, path: bytes, old: OldFile, first_page: int, data: bytes, placed: Placed) -> None:
        """Store a cell of whole pages as far as it differs from the parent's. Raises StoreError, DamageError."""
        count = len(data) // self.page_size
        before = cut(old.extents, first_page, first_page + count)
        if self._is_content(before, data):
            placed(before, old.stored_size(before))
            return
        if not self.parent.reads_pages:
            # nothing to compare its pages with
            self.store_whole(first_page, data, placed)
            return
        rows = self._rows(data)
        differs = (rows != self._rows(self.parent.pages(before, first_page, count))).any(axis=1)
        if self._watch is not None and differs.any():
            # pages that are new have no past that they could differ from without a reason
            watched = differs & self._is_known(old, first_page, count)
            self._watch(path, _numbers(watched, first_page), rows[watched].tobytes())
        self._store_differing(path, old, first_page, data, differs, placed)

    def store_differing(
        self, path: bytes, old: OldFile, first_page: int, data: bytes, differs: Chosen, placed: Placed
    ) -> None:
        """The same, but that ``differs`` is taken for granted: the pages that may be others than the parent's.

        Raises StoreError, DamageError.
        """
        differs = differs | ~self._is_known(old, first_page, len(differs))
        self._store_differing(path, old, first_page, data, differs, placed)

    def _store_differing(
        self, path: bytes, old: OldFile, first_page: int, data: bytes, differs: Chosen, placed: Placed
    ) -> None:
        end = first_page + len(differs)
        before = cut(old.extents, first_page, end)
        pages = _numbers(differs, first_page)
        # the cell is at hand: what was unhealthy before is mended whether it has changed or not
        if first_page // self.cell_pages in old.unhealthy or len(pages) * 2 > len(differs):
            self.store_whole(first_page, data, placed)
            return
        if not len(pages):
            placed(before, old.stored_size(before))
            return
        if len(cells_to_rewrite(before, end, pages, self.cell_pages)):
            self.store_whole(first_page, data, placed)
            return

        def bundled(extents: Extents, stored_size: int) -> None:
            kept = overlay(before, end, pages, no_extents())
            placed(overlay(before, end, pages, extents), stored_size + old.stored_size(kept))

        self.bundler.add(path, pages, self._rows(data)[differs].tobytes(), bundled)

    def begin(self, path: bytes, kept_pages: int, changed: Pages, file_pages: int) -> ChangedFile:
        """A file of ``file_pages`` pages of which only ``changed`` will be given.

        Of the others the first ``kept_pages`` are as the parent has them, the rest are zeros. Raises DamageError where
        the parent has no such file.
        """
        entry = self._old_entry(path)
        if entry is None:
            shown = path.decode("utf-8", "backslashreplace")
            raise DamageError(f"changes of {shown} were sent, and its parent backup has no such file", path=shown)
        pages = entry.size // self.page_size
        if not len(changed) and kept_pages == file_pages == pages:
            # most files of most backups: their maps need not even be read
            return ChangedFile(self, path, OldFile(no_extents(), pages, 0), pages, changed, pages, is_unchanged=True)
        return ChangedFile(self, path, self._with_map(entry), min(kept_pages, file_pages, pages), changed, file_pages)

    def store_whole(self, first_page: int, data: bytes | bytearray, placed: Placed) -> None:
        """Store a cell as a content of its own."""
        if data == bytes(len(data)):
            placed(no_extents(), 0)
            return
        stored = self._writer.put(PackKind.DATA, data)
        extent = np.zeros(1, EXTENT)
        extent["first_page"], extent["pages"] = first_page, len(data) // self.page_size
        extent["id"] = np.frombuffer(stored.id, "V32")
        placed(extent, stored.stored_size)

    def flush(self) -> None:
        """Store what waits for its bundle to fill."""
        self.bundler.flush()

    def _is_content(self, before: Extents, data: bytes) -> bool:
        """Whether the parent has just this cell as one content."""
        return (
            len(before) == 1
            and int(before["pages"][0]) * self.page_size == len(data)
            and int(before["content_page"][0]) == 0
            and before["id"][0].tobytes() == self._writer.content_id(data)
        )

    def _is_known(self, old: OldFile, first_page: int, count: int) -> Chosen:
        """For each page of a cell, whether the parent's file is long enough to have it."""
        known: Chosen = np.arange(first_page, first_page + count) < old.pages
        return known

    def _rows(self, data: bytes | bytearray) -> _Rows:
        rows: _Rows = np.frombuffer(data, np.uint8)
        return rows.reshape(-1, self.page_size)


class ChangedFile:
    """A file whose changed pages are given by `take`, all those of a cell in one call; `map` is what comes out.

    Where it ``is_unchanged``, it is just as in the parent, and there is nothing to ask for. ``untouched`` are the cells that `rewrite` must see to besides. Both may be called from any thread; ``done`` is called
    when the pages of a call are stored.
    """

    def __init__(
        self,
        changes: Changes,
        path: bytes,
        old: OldFile,
        kept_pages: int,
        changed: Pages,
        file_pages: int,
        *,
        is_unchanged: bool = False,
    ) -> None:
        self._changes = changes
        self._path = path
        self._old = old
        self._kept_pages = kept_pages
        self._changed = changed
        self._file_pages = file_pages
        self._lock = threading.Lock()
        self._placed: list[Extents] = []
        self._new_size = 0
        self.is_unchanged = is_unchanged
        cell_pages = changes.cell_pages
        # where the parent's pages cannot be read, a cell is put together when its file is read whole: see deep_check
        self._rewritten = np.empty(0, np.uint32)
        if changes.parent.reads_pages:
            self._rewritten = cells_to_rewrite(old.extents, kept_pages, changed, cell_pages)
        self.untouched: list[int] = self._rewritten[~np.isin(self._rewritten, changed // cell_pages)].tolist()

    def take(self, pages: Pages, data: bytes, done: Callable[[], None]) -> None:
        """Changed pages, ascending, and their bytes. Raises StoreError, DamageError."""
        cells = pages // self._changes.cell_pages
        apart = np.isin(cells, self._rewritten)
        rows = np.frombuffer(data, np.uint8).reshape(len(pages), -1)
        for cell in np.unique(cells[apart]).tolist():
            mine = cells == cell
            self._rewrite(cell, pages[mine], rows[mine])
        if apart.all():
            done()
            return

        def bundled(extents: Extents, stored_size: int) -> None:
            self._note(extents, stored_size)
            done()

        rest = rows[~apart].tobytes() if apart.any() else data
        self._changes.bundler.add(self._path, pages[~apart], rest, bundled)

    def rewrite(self, cell: int) -> None:
        """Store one of the ``untouched`` cells anew. Raises StoreError, DamageError."""
        self._rewrite(cell, np.empty(0, np.uint32), np.empty((0, self._changes.page_size), np.uint8))

    def map(self) -> tuple[Extents, int]:
        """The file's map, and the stored bytes that it takes; when all has been placed."""
        kept = overlay(self._old.extents, self._kept_pages, self._replaced(), no_extents())
        stored_size = self._old.stored_size(kept) + self._new_size
        if self._placed:
            together = np.concatenate((kept, *self._placed))
            kept = joined(together[np.argsort(together["first_page"], kind="stable")])
        return kept, stored_size

    def _replaced(self) -> Pages:
        """All pages that the parent's map is no longer asked for."""
        if not len(self._rewritten):
            return self._changed
        cell_pages = self._changes.cell_pages
        starts = self._rewritten.astype(np.int64) * cell_pages
        inside = (starts[:, None] + np.arange(cell_pages)).reshape(-1)
        return np.union1d(self._changed, inside).astype(np.uint32)

    def _rewrite(self, cell: int, pages: Pages, rows: _Rows) -> None:
        first = cell * self._changes.cell_pages
        count = min(self._changes.cell_pages, self._file_pages - first)
        kept = cut(self._old.extents, 0, self._kept_pages)
        data = self._changes.parent.pages(kept, first, count)
        np.frombuffer(data, np.uint8).reshape(count, -1)[pages - first] = rows
        self._changes.store_whole(first, data, self._note)

    def _note(self, extents: Extents, stored_size: int) -> None:
        with self._lock:
            self._placed.append(extents)
            self._new_size += stored_size


def _numbers(chosen: Chosen, first_page: int) -> Pages:
    return (np.flatnonzero(chosen) + first_page).astype(np.uint32)
