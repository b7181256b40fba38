"""What a restore's threads share: how hard they may work, a wait for one another, and their buffers."""

from __future__ import annotations

import mmap
import os
import threading
import time

__all__ = ["Buffer", "Latch", "Pace"]


class Pace:
    """Holds worker threads back; safe for threads.

    ``rate`` is the most bytes a second, None for no limit. ``nice`` is added to the niceness of each thread that calls `enter`,
    and to no other's: a server that this process starts must not inherit it.
    """

    def __init__(self, rate: int | None = None, nice: int | None = None) -> None:
        self._rate = rate
        self._nice = nice
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._entered = threading.local()

    def enter(self) -> None:
        """To be called by a worker thread before it works; calling it again does nothing."""
        if self._nice and not getattr(self._entered, "done", False):
            # on Linux a thread has its own niceness, and the kernel makes its share of the disk follow (setpriority(2), ionice(1))
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + self._nice)
            self._entered.done = True

    def spend(self, size: int) -> None:
        """Tell of ``size`` bytes that were handled; returns when the next ones may be."""
        if self._rate is None or not size:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        time.sleep(wait)


class Latch:
    """Lets a thread wait until so many calls are done; safe for threads."""

    def __init__(self, calls: int) -> None:
        self._left = calls
        self._changed = threading.Condition()

    def done(self) -> None:
        """One more call is done, or has failed."""
        with self._changed:
            self._left -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when all are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._left <= 0)


class Buffer(threading.local):
    """A buffer for each thread, as large as the largest that it has asked for."""

    def __init__(self) -> None:
        self._view = memoryview(b"")

    def view(self, size: int) -> memoryview:
        """So many bytes, with whatever is in them; good until this thread asks again. They begin with a page of memory."""
        if size > len(self._view):
            self._view = memoryview(mmap.mmap(-1, size))
        return self._view[:size]
