"""One file of which only changed pages come over the wire: its frames, put together."""

from __future__ import annotations

import os

import numpy as np

from pgkeep.backup.overlay import Pages
from pgkeep.errors import DamageError
from pgkeep.postgres.incremental_file import PREFIX
from pgkeep.postgres.layout import parse_relation_path
from pgkeep.postgres.truncations import Truncations
from pgkeep.receiver.frames import ChangedFile, FileFacts

__all__ = ["ChangedFileReader"]


class ChangedFileReader:
    """Collects the numbers of changed pages, then hands them out as the pages come."""

    def __init__(self, frame: ChangedFile, page_size: int, segment_pages: int, truncations: Truncations) -> None:
        self.count = frame.count
        self.left = frame.count
        self.numbers = b""
        self._frame = frame
        self._page_size = page_size
        self._segment_pages = segment_pages
        self._truncations = truncations
        self._pages: Pages = np.empty(0, np.uint32)

    @property
    def is_complete(self) -> bool:
        """Whether all numbers are there."""
        return len(self.numbers) >= 4 * self.count

    def begin(self) -> tuple[FileFacts, int, Pages, tuple[bytes, int, int]]:
        """The file as it will be, how many pages of the old one it keeps, which pages have changed, and what it came in.

        Raises DamageError where the numbers are not those of pages of a segment, in order.
        """
        frame, file = self._frame, self._frame.file
        self._pages = np.frombuffer(self.numbers, "<u4")
        in_order = bool((self._pages[1:] > self._pages[:-1]).all())
        if len(self._pages) != self.count or not in_order or (self._pages >= self._segment_pages).any():
            shown = file.path.decode("utf-8", "backslashreplace")
            raise DamageError(f"the server sent changes of {shown} for pages that it cannot have", path=shown)
        # servers before 17.8 and 18.2 may name a length beyond the segment's
        length = min(frame.truncation_blocks, self._segment_pages)
        end = int(self._pages[-1]) + 1 if self.count else 0
        facts = FileFacts(file.path, max(length, end) * self._page_size, file.mode, file.mtime)
        arrived_as = PREFIX + os.path.basename(file.path), frame.header_size, frame.header_crc32c
        return facts, min(length, self._most_kept()), self._pages, arrived_as

    def next_pages(self, count: int) -> Pages:
        """The numbers of the next pages that come."""
        start = self.count - self.left
        self.left -= count
        return self._pages[start : start + count]

    def _most_kept(self) -> int:
        relation = parse_relation_path(self._frame.file.path)
        assert relation is not None
        return self._truncations.kept_blocks(relation, self._segment_pages)
