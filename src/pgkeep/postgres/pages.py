"""Data pages: their checksums, LSNs and headers, for many pages at once.

Checksum: src/include/storage/checksum_impl.h. Header: src/include/storage/bufpage.h. Which pages are looked at:
src/backend/backup/basebackup.c. Pages are PostgreSQL's default of 8192 bytes, of a little-endian machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PAGE_SIZE", "PageCheck", "is_zero", "page_checksums", "page_lsns", "sane_headers", "verify_pages"]

PAGE_SIZE = 8192

BytesLike = bytes | bytearray | memoryview
_Words = npt.NDArray[np.uint32]

# The checksum runs 32 sums side by side over a page's 64 rows of 32 words, each an FNV-1a variant (checksum_impl.h).
_LANES = 32
_ROWS = PAGE_SIZE // (_LANES * 4)
_PAGE_WORDS = _ROWS * _LANES
# Arrays, not scalars: numpy would make them arrays anew at every operation.
_PRIME = np.array(16777619, np.uint32)
_SHIFT = np.array(17, np.uint32)
_MIXING_ROUNDS = 2
_CHECKSUM_WORD = 2
_LOW_HALF = np.uint32(0xFFFF)
_WITHOUT_CHECKSUM = np.uint32(0xFFFF0000)
_BASE_OFFSETS = np.frombuffer(
    bytes.fromhex(
        "5B1F36E9 B8525960 02AB50AA 1DE66D2A 79FF467A 9BB9F8A3 217E7CD2 83E13D2C"
        "F8D4474F E39EB970 42C6AE16 993216FA 7B093B5D 98DAFF3C F718902A 0B1C9CDB"
        "E58F764B 187636BC 5D7B3BB1 E73DE7DE 92BEC979 CCA6C0B2 304A0979 85AA43D4"
        "783125BB 6CA8EAA2 E407EAC6 4B5CFC3E 9FBF8C76 15CA20BE F2CA9FD3 959BD756"
    ),
    dtype=">u4",
).astype(np.uint32)

# Pages in one go: their sums, and what is computed with them, stay in a core's first-level cache.
_BATCH = 128

_VALID_FLAG_BITS = 0x0007
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class PageCheck:
    """What came out of a check: relation-wide numbers of the pages that fail, and how many pages were checked at all.

    ``new`` pages carry no checksum yet; ``recent`` ones were written after the LSN that the check was given.
    """

    failures: _Words
    checked: int
    new: int
    recent: int


def verify_pages(buffer: BytesLike, *, first_block: int | _Words, start_lsn: int | None) -> PageCheck:
    """Check the checksums of pages by the rule of the server's own base backup.

    New pages (``pd_upper`` 0) are skipped, and, with ``start_lsn``, pages that were changed at or after it: they may be
    torn, and WAL replay replaces them. ``first_block`` is the relation-wide number of the first page of a run, blocks in the
    segments before it included, or the numbers of all pages. Raises ValueError where the buffer is no whole number of pages.
    """
    pages = _pages(buffer)
    blocks = (
        np.arange(first_block, first_block + len(pages), dtype=np.uint32)
        if isinstance(first_block, int)
        else first_block
    )
    wanted = _upper(pages) != 0
    new = len(pages) - int(np.count_nonzero(wanted))
    recent = 0
    if start_lsn is not None:
        wanted &= _lsns(pages) < np.uint64(start_lsn)
        recent = len(pages) - new - int(np.count_nonzero(wanted))
    failures = np.empty(0, np.uint32)
    checked = len(pages) - new - recent
    if checked:
        wanted &= _checksums(pages, blocks) != pages[:, _CHECKSUM_WORD] & _LOW_HALF
        failures = blocks[wanted]
    return PageCheck(failures, checked, new, recent)


def page_checksums(buffer: BytesLike, first_block: int) -> npt.NDArray[np.uint16]:
    """The checksum that each page should carry, new pages included; raises ValueError for a part of a page."""
    pages = _pages(buffer)
    return _checksums(pages, np.arange(first_block, first_block + len(pages), dtype=np.uint32))


def page_lsns(buffer: BytesLike) -> npt.NDArray[np.uint64]:
    """Each page's LSN: the end of the WAL record that changed it last. Raises ValueError for a part of a page."""
    return _lsns(_pages(buffer))


def sane_headers(buffer: BytesLike) -> npt.NDArray[np.bool_]:
    """For each page, whether a server would accept its header (PageIsVerified in src/backend/storage/page/bufpage.c).

    A new page must be all zeros. Raises ValueError for a part of a page.
    """
    pages = _pages(buffer)
    upper = _upper(pages)
    flags, lower, special = pages[:, 2] >> 16, pages[:, 3] & _LOW_HALF, pages[:, 4] & _LOW_HALF
    sane: npt.NDArray[np.bool_] = (
        (flags & ~np.uint32(_VALID_FLAG_BITS) == 0)
        & (lower <= upper)
        & (upper <= special)
        & (special <= PAGE_SIZE)
        & (special % _ALIGNMENT == 0)
    )
    new = np.flatnonzero(upper == 0)
    sane[new] = ~pages[new].any(axis=1)
    return sane


def is_zero(buffer: BytesLike) -> bool:
    """Whether there is nothing but zero bytes, at the speed of memory; any length."""
    if not len(buffer):
        return True
    data = np.frombuffer(buffer, np.uint8)
    # What is not zero mostly shows at once.
    return not data[:64].any() and not data.max()


def _pages(buffer: BytesLike) -> _Words:
    """The buffer as rows of words, one row a page, in place."""
    size = memoryview(buffer).nbytes
    if size % PAGE_SIZE:
        raise ValueError(f"{size} bytes are no whole number of pages of {PAGE_SIZE} bytes")
    if not size:
        return np.empty((0, _PAGE_WORDS), np.uint32)
    words: _Words = np.frombuffer(buffer, "<u4")
    return words.reshape(-1, _PAGE_WORDS)


def _upper(pages: _Words) -> _Words:
    upper: _Words = pages[:, 3] >> np.uint32(16)
    return upper


def _lsns(pages: _Words) -> npt.NDArray[np.uint64]:
    """PageXLogRecPtr is two words, the high one first."""
    lsns: npt.NDArray[np.uint64] = pages[:, 0].astype(np.uint64) << np.uint64(32) | pages[:, 1]
    return lsns


def _checksums(pages: _Words, blocks: _Words) -> npt.NDArray[np.uint16]:
    count = len(pages)
    folded = np.empty(count, np.uint32)
    for first in range(0, count, _BATCH):
        folded[first : first + _BATCH] = _sums(pages[first : first + _BATCH])
    folded ^= blocks
    folded %= np.uint32(65535)
    folded += np.uint32(1)
    return folded.astype(np.uint16)


def _sums(pages: _Words) -> _Words:
    """pg_checksum_block of each page, with its checksum field taken as zero.

    Turned over first, so that what is computed next to each other lies next to each other: that is faster in spite of the
    copy, and copes with a buffer whose words are not aligned.
    """
    rows = list(pages.reshape(-1, _ROWS, _LANES).transpose(1, 0, 2).copy().reshape(_ROWS, -1))
    sums = rows[0]
    lanes = sums.reshape(-1, _LANES)
    lanes[:, _CHECKSUM_WORD] &= _WITHOUT_CHECKSUM
    lanes ^= _BASE_OFFSETS
    shifted = np.empty_like(sums)
    _mix(sums, shifted)
    for row in rows[1:]:
        np.bitwise_xor(sums, row, sums)
        _mix(sums, shifted)
    for _ in range(_MIXING_ROUNDS):
        _mix(sums, shifted)
    folded: _Words = np.bitwise_xor.reduce(lanes, axis=1)
    return folded


def _mix(sums: _Words, shifted: _Words) -> None:
    """The second half of CHECKSUM_COMP, in place."""
    np.right_shift(sums, _SHIFT, shifted)
    np.multiply(sums, _PRIME, sums)
    np.bitwise_xor(sums, shifted, sums)
