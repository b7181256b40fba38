"""Members of an incremental backup as they stream in: the changed pages of a file, those of a cell always together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import google_crc32c

from pgkeep.errors import DamageError
from pgkeep.postgres.incremental_file import PREFIX_SIZE, header_size, parse_header
from pgkeep.receiver.frames import BLOCKS_SIZE, ChangedBlocks, ChangedFile, ChangedPages, FileFacts, Frame
from pgkeep.receiver.slots import Slots

__all__ = ["ChangedMember", "cut_at_cells"]


class ChangedMember:
    """Takes the bytes of one ``INCREMENTAL.`` member, and sends its header and its pages as frames."""

    def __init__(self, facts: FileFacts, slots: Slots, send: Callable[[Frame], None], page_size: int) -> None:
        """``facts`` are the real file's, but for the size, which is the member's."""
        self._facts = facts
        self._slots = slots
        self._send = send
        self._page_size = page_size
        self._header = b""
        self._wanted = PREFIX_SIZE
        self._in_pages = False
        self._groups: Iterator[int] = iter(())
        self._slot = -1
        self._filled = self._group_size = 0
        self._room = memoryview(b"")

    def take(self, piece: memoryview) -> None:
        """More of the member. Raises DamageError where it is none."""
        while piece and not self._in_pages:
            part = piece[: self._wanted - len(self._header)]
            self._header += part
            piece = piece[len(part) :]
            if len(self._header) == PREFIX_SIZE:
                self._wanted = header_size(self._header, self._page_size)
            if len(self._header) == self._wanted:
                self._send_header()
        while piece:
            if self._slot < 0:
                self._group_size = next(self._groups, 0) * self._page_size
                if not self._group_size:
                    raise DamageError(f"{self._shown_path} has more pages than its header says")
                self._slot = self._slots.take()
                self._room = self._slots.room(self._slot)
                self._filled = 0
            part = piece[: self._group_size - self._filled]
            end = self._filled + len(part)
            self._room[self._filled : end] = part
            self._filled = end
            piece = piece[len(part) :]
            if end == self._group_size:
                self._send(ChangedPages(self._slot, end // self._page_size))
                self._slot = -1

    def end(self) -> None:
        """The member is complete. Raises DamageError where it is not."""
        if not self._in_pages or self._slot >= 0 or next(self._groups, 0):
            raise DamageError(f"{self._shown_path} has fewer pages than its header says")

    def _send_header(self) -> None:
        header = parse_header(self._header, self._page_size)
        crc32c = google_crc32c.value(self._header)
        self._send(ChangedFile(self._facts, header.truncation_blocks, header.size, crc32c, header.count))
        for start in range(0, len(header.blocks), BLOCKS_SIZE):
            self._send(ChangedBlocks(header.blocks[start : start + BLOCKS_SIZE]))
        self._groups = cut_at_cells(memoryview(header.blocks).cast("I"), self._slots.cell_size // self._page_size)
        self._header = b""
        self._in_pages = True

    @property
    def _shown_path(self) -> str:
        return self._facts.path.decode("utf-8", "backslashreplace")


def cut_at_cells(pages: Sequence[int], cell_pages: int) -> Iterator[int]:
    """How many of the page numbers, which ascend, go together each time: at most ``cell_pages``, no cell of the grid in two."""
    start = 0
    while start < len(pages):
        end = min(start + cell_pages, len(pages))
        if end < len(pages) and pages[end - 1] // cell_pages == pages[end] // cell_pages:
            end = bisect_left(pages, pages[end] // cell_pages * cell_pages, start, end)
        yield end - start
        start = end
