"""Reading ahead: small reads that follow one another in an object become few large ones.

A verification, or whoever reads file by file, asks for contents one by one, in the order in which they lie in a pack. Over a
network each question costs a round trip. So a read that goes on where an earlier one ended brings more than it was asked for,
the more the longer that goes on; a read elsewhere brings what it was asked for. Objects never change: what was brought stays true
as long as the object is there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ReadAhead"]

_LARGEST_READ = 1 << 20
"""Bytes: a larger read is worth its round trip."""

_LEAST_AHEAD, _MOST_AHEAD = 256 << 10, 4 << 20
"""Bytes that are brought at once, from the first read that follows another one on."""

_GAP = 64 << 10
"""Bytes that may lie between two reads that follow one another."""

_CACHE, _WINDOWS = 32 << 20, 64
"""Bytes kept, of all objects, and in how many pieces."""


@dataclass(frozen=True, slots=True)
class _Window:
    name: str
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class ReadAhead:
    """Ranges of objects by way of a small memory; safe for threads. ``read`` gives name, start and length from the store."""

    def __init__(self, read: Callable[[str, int, int], bytes]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, int], _Window] = OrderedDict()
        self._size = 0

    def get(self, name: str, start: int, length: int) -> bytes:
        """As `Store.get`."""
        if length > _LARGEST_READ:
            return self._read(name, start, length)
        with self._lock:
            there, ahead = self._look(name, start, length)
        if there is not None:
            return there.data[start - there.start : start - there.start + length]
        data = self._read(name, start, max(length, ahead))
        with self._lock:
            self._keep(_Window(name, start, data))
        return data[:length]

    def forget(self, name: str) -> None:
        """An object was deleted."""
        with self._lock:
            for key in [key for key in self._windows if key[0] == name]:
                self._size -= len(self._windows.pop(key).data)

    def _look(self, name: str, start: int, length: int) -> tuple[_Window | None, int]:
        """The window that holds the range, or else how much is worth bringing."""
        ahead = 0
        for key, window in reversed(self._windows.items()):
            if window.name != name:
                continue
            if window.start <= start and start + length <= window.end:
                self._windows.move_to_end(key)
                return window, 0
            if window.start <= start <= window.end + _GAP:
                ahead = max(ahead, _LEAST_AHEAD, min(4 * len(window.data), _MOST_AHEAD))
        return None, ahead

    def _keep(self, window: _Window) -> None:
        key = (window.name, window.start)
        if (old := self._windows.pop(key, None)) is not None:
            self._size -= len(old.data)
        self._windows[key] = window
        self._size += len(window.data)
        while self._size > _CACHE or len(self._windows) > _WINDOWS:
            _, dropped = self._windows.popitem(last=False)
            self._size -= len(dropped.data)
