"""File by file into the assembler, whose workers do the reading."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pgkeep.backup.local.changed import ChangesByLsn, ChangesBySummary, KeptFiles, Mask, OnlyChanged
from pgkeep.backup.local.page_check import LocalPageCheck
from pgkeep.backup.local.reading import OpenFile, Pace, Reads
from pgkeep.backup.local.walk import DataDirectory
from pgkeep.backup.overlay import Pages
from pgkeep.postgres.layout import RelationFile, parse_relation_path
from pgkeep.postgres.pages import PAGE_SIZE
from pgkeep.postgres.wal_summary import BlockChanges
from pgkeep.progress import Progress
from pgkeep.receiver.changed import cut_at_cells
from pgkeep.receiver.frames import FileFacts
from pgkeep.repository.contents import Parameters
from pgkeep.repository.maps import INLINE_BYTES

if TYPE_CHECKING:
    from pgkeep.backup.assembler import FileAssembler
    from pgkeep.backup.parent import ParentBackup
    from pgkeep.backup.request import ServerShape

__all__ = ["Feeder", "HowFilesChanged"]


_LARGE_ENOUGH = 1 << 20
"""Bytes from which on it pays to tell the kernel what will be read."""


class HowFilesChanged:
    """What is known of a file's changes before it is read."""

    def __init__(
        self,
        parent: ParentBackup | None,
        directory: DataDirectory,
        summaries: BlockChanges | None,
        parent_start: int | None,
        shape: ServerShape,
        *,
        number: int,
        deep_check: float,
    ) -> None:
        """At most one of ``summaries`` and ``parent_start`` is given; without them files are compared with the parent."""
        self._kept: KeptFiles | None = None
        self._by_summary: ChangesBySummary | None = None
        self._by_lsn: ChangesByLsn | None = None
        if parent is not None and (summaries is not None or parent_start is not None):
            self._kept = KeptFiles(parent, number, deep_check)
            if summaries is not None:
                self._by_summary = ChangesBySummary(summaries, shape.segment_blocks)
            if parent_start is not None:
                self._by_lsn = ChangesByLsn(parent, directory.absolute, parent_start, shape.wal_segment_size)

    def of(self, path: bytes, relation: RelationFile | None, size: int) -> OnlyChanged | Callable[[bytes], Mask] | None:
        """What is to be read, or what tells of the pages that were read whether they may have changed, or nothing."""
        if relation is None or self._kept is None or size <= INLINE_BYTES:
            return None
        parent_pages = self._kept.pages(path, relation, size)
        if parent_pages is None:
            return None
        if self._by_summary is not None:
            return self._by_summary.of(relation, parent_pages, size // PAGE_SIZE)
        if self._by_lsn is not None and self._by_lsn.holds_for(path):
            return self._by_lsn.maybe_changed
        return None


class _CheckedReader:
    """Reads pages and looks at their checksums; for worker threads."""

    def __init__(self, check: LocalPageCheck | None, page_size: int, progress: Progress) -> None:
        self._check = check
        self._page_size = page_size
        self._progress = progress

    def pages(self, file: OpenFile, relation: RelationFile, pages: Pages) -> bytes:
        """Pages of a relation's file, by number, as they were read last."""
        data = file.read_pages(pages, self._page_size)
        self._progress.advance(len(data))
        return self._checked(file, relation, pages, data)[0]

    def cell(self, file: OpenFile, relation: RelationFile | None, position: int, size: int) -> tuple[bytes, Mask]:
        """Bytes of a file, and which pages of them are damaged."""
        data = file.read(position, size)
        self._progress.advance(len(data))
        count = size // self._page_size
        if relation is None or not count:
            return data, np.zeros(count, np.bool_)
        pages = np.arange(position // self._page_size, position // self._page_size + count, dtype=np.uint32)
        whole = count * self._page_size
        if whole == size:
            return self._checked(file, relation, pages, data)
        # a file that is just being extended: the server leaves the part of a page alone, and so does its base backup
        checked, damaged = self._checked(file, relation, pages, data[:whole])
        return checked + data[whole:], damaged

    def _checked(self, file: OpenFile, relation: RelationFile, pages: Pages, data: bytes) -> tuple[bytes, Mask]:
        if self._check is None:
            return data, np.zeros(len(pages), np.bool_)

        def read_again(page: int) -> bytes:
            return file.read(page * self._page_size, self._page_size)

        return self._check(file.facts.path, relation, pages, data, read_again)


class _SuspectCell:
    """A cell of which only pages that may have changed are stored: told when they have been read."""

    def __init__(self, load: Callable[[], tuple[bytes, Mask]], maybe_changed: Callable[[bytes], Mask]) -> None:
        self._load = load
        self._maybe_changed = maybe_changed
        self._damaged: Mask | None = None

    def load(self) -> bytes:
        """Its bytes."""
        data, self._damaged = self._load()
        return data

    def differs(self, data: bytes) -> Mask:
        """Which of its pages may differ from the parent's; a damaged one is stored as it is, like any other way of reading does."""
        assert self._damaged is not None
        return self._maybe_changed(data) | self._damaged


class Feeder:
    """Opens files and hands out their reads, at the pace that was asked for; for one thread.

    ``look`` is called between them, and raises what ends the backup.
    """

    def __init__(
        self,
        assembler: FileAssembler,
        reads: Reads,
        how: HowFilesChanged,
        check: LocalPageCheck | None,
        parameters: Parameters,
        pace: Pace,
        progress: Progress,
        look: Callable[[], None],
    ) -> None:
        self._assembler = assembler
        self._reads = reads
        self._how = how
        self._reader = _CheckedReader(check, parameters.page_size, progress)
        self._progress = progress
        self._cell_size = parameters.cell_size
        self._page_size = parameters.page_size
        self._pace = pace
        self._look = look

    def give(self, found: FileFacts) -> bool:
        """A file's part in the backup; False where the server has removed it."""
        self._look()
        relation = parse_relation_path(found.path)
        how = self._how.of(found.path, relation, found.size)
        if isinstance(how, OnlyChanged) and not len(how.pages):
            # most files of most backups: they need not even be opened
            self._assembler.begin_changed(found, how.kept, how.pages)
            self._assembler.end()
            return True
        file = self._reads.open(found.path)
        if file is None:
            return False
        try:
            self._give(file, relation)
        finally:
            self._reads.give_up(file)
        return True

    def _give(self, file: OpenFile, relation: RelationFile | None) -> None:
        facts = file.facts
        how = self._how.of(facts.path, relation, facts.size)
        if facts.size <= INLINE_BYTES:
            self._give_inline(file)
        elif isinstance(how, OnlyChanged):
            assert relation is not None
            self._give_changed(file, relation, how)
        else:
            self._give_whole(file, relation, how)

    def _give_inline(self, file: OpenFile) -> None:
        size = file.facts.size
        self._pace.wait(size)
        self._assembler.begin(file.facts)
        self._assembler.inline(self._reads.later(file, lambda: file.read(0, size))())
        self._assembler.end()
        self._progress.advance(size)

    def _give_whole(
        self, file: OpenFile, relation: RelationFile | None, maybe_changed: Callable[[bytes], Mask] | None
    ) -> None:
        self._assembler.begin(file.facts)
        is_large = file.facts.size >= _LARGE_ENOUGH
        if is_large:
            file.spare_cache()
        for position in range(0, file.facts.size, self._cell_size):
            self._look()
            size = min(self._cell_size, file.facts.size - position)
            self._pace.wait(size)
            if is_large:
                file.expect(position, size)
            read = partial(self._reader.cell, file, relation, position, size)
            if maybe_changed is None:
                self._assembler.cell(self._reads.later(file, partial(_bytes_of, read)), size)
            else:
                cell = _SuspectCell(read, maybe_changed)
                self._assembler.cell(self._reads.later(file, cell.load), size, cell.differs)
        self._assembler.end()

    def _give_changed(self, file: OpenFile, relation: RelationFile, only: OnlyChanged) -> None:
        self._assembler.begin_changed(file.facts, only.kept, only.pages)
        start = 0
        for count in cut_at_cells(only.pages.tolist(), self._cell_size // self._page_size):
            self._look()
            pages = only.pages[start : start + count]
            start += count
            self._pace.wait(count * self._page_size)
            file.expect_pages(pages, self._page_size)
            read = partial(self._reader.pages, file, relation, pages)
            self._assembler.pages(self._reads.later(file, read), pages)
        self._assembler.end()


def _bytes_of(read: Callable[[], tuple[bytes, Mask]]) -> bytes:
    return read()[0]
