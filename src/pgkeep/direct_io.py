"""Writing large blocks past the page cache (O_DIRECT, open(2)).

A backup or a restore writes each byte once and does not read it again: through the page cache it would cost a copy, the
kernel's memory, and the cache of the server beside us. Where a file system has no direct writes, they go the usual way.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Sequence

import numpy as np

__all__ = ["write_at", "write_new"]

_ALIGNMENT = 4096
"""Bytes: a multiple of the logical block size of every disk that we know of."""

_SMALLEST = 128 << 10
"""Direct writes wait for the disk; below this size the page cache is quicker."""

_STAGING = 4 << 20

_refused: set[int] = set()
"""Devices whose file system has refused a direct write."""


class _Staging(threading.local):
    """An aligned buffer for each thread: direct writes take their bytes from nowhere else."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _STAGING))


_staging = _Staging()


def write_at(place: bytes, data: memoryview, position: int) -> None:
    """Write into a file that is there, at ``position``; durable only after fsync or syncfs. Raises OSError."""
    whole = len(data) // _ALIGNMENT * _ALIGNMENT if position % _ALIGNMENT == 0 else 0
    done = 0
    if whole >= _SMALLEST and (descriptor := _open_direct(place)) is not None:
        try:
            write = _write_block if _is_aligned(data) else _write_staged
            done = write(descriptor, data[:whole], position)
        finally:
            os.close(descriptor)
    if done < len(data):
        descriptor = os.open(place, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _write_all(descriptor, [data[done:]], position + done)
        finally:
            os.close(descriptor)


def write_new(descriptor: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write the parts from the start of a file that is new and open for writing. Raises OSError."""
    size = sum(len(part) for part in parts)
    if size < _SMALLEST or not _set_direct(descriptor, on=True):
        _write_all(descriptor, parts, 0)
        return
    position = filled = 0
    staging = _staging.view
    for part in parts:
        rest = memoryview(part)
        while rest:
            piece = rest[: _STAGING - filled]
            staging[filled : filled + len(piece)] = piece
            filled += len(piece)
            rest = rest[len(piece) :]
            if filled == _STAGING:
                _write_somehow(descriptor, staging, position)
                position += filled
                filled = 0
    whole = filled // _ALIGNMENT * _ALIGNMENT
    _write_somehow(descriptor, staging[:whole], position)
    _set_direct(descriptor, on=False)
    _write_all(descriptor, [staging[whole:filled]], position + whole)


def _write_somehow(descriptor: int, block: memoryview, position: int) -> None:
    """Write an aligned block, directly where the file system lets us."""
    done = _write_block(descriptor, block, position) if block else 0
    if done < len(block):
        _set_direct(descriptor, on=False)
        _write_all(descriptor, [block[done:]], position + done)


def _open_direct(place: bytes) -> int | None:
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    if os.fstat(descriptor).st_dev in _refused:
        os.close(descriptor)
        return None
    return descriptor


def _set_direct(descriptor: int, *, on: bool) -> bool:
    if on and os.fstat(descriptor).st_dev in _refused:
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _is_aligned(data: memoryview) -> bool:
    return np.frombuffer(data, np.uint8).ctypes.data % _ALIGNMENT == 0


def _write_staged(descriptor: int, data: memoryview, position: int) -> int:
    """Write whole blocks directly, by way of the staging buffer; how many bytes of them were written."""
    done = 0
    while done < len(data):
        piece = data[done : done + _STAGING]
        block = _staging.view[: len(piece)]
        block[:] = piece
        written = _write_block(descriptor, block, position + done)
        done += written
        if written < len(piece):
            break
    return done


def _write_block(descriptor: int, block: memoryview, position: int) -> int:
    """Write an aligned block directly; less than all of it at the end of a full disk, nothing where that is refused."""
    try:
        return os.pwrite(descriptor, block, position)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _refused.add(os.fstat(descriptor).st_dev)
        return 0


def _write_all(descriptor: int, parts: Sequence[bytes | bytearray | memoryview], position: int) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            written = os.pwrite(descriptor, view, position)
            view = view[written:]
            position += written
