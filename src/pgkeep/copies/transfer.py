"""What all ways to copy share: the two repositories, how hard to work, and who hears of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.workers import Workers

__all__ = ["Rate", "Transfer"]

_MOST_AT_ONCE = 8
"""Objects that are on their way at once, a pack (32 MiB) each: what bounds memory."""


class Rate:
    """Holds threads back to so many bytes a second; None for no limit. Safe for threads."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, size: int) -> None:
        """Tell of ``size`` bytes that were moved; returns when the next ones may be."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        time.sleep(wait)


@dataclass(frozen=True)
class Transfer:
    """From ``source`` to ``destination``. ``same_keys``: what is sealed in one opens in the other as it is."""

    source: Repository
    destination: Repository
    same_keys: bool
    progress: Progress
    rate: Rate = field(default_factory=lambda: Rate(None))
    jobs: int | None = None

    def workers(self, name: str) -> Workers:
        """Threads that move objects; few calls wait, since each holds an object."""
        most = max(self.source.store.parallel_puts, self.destination.store.parallel_puts, 2)
        return Workers(min(self.jobs or most, _MOST_AT_ONCE), name, waiting=1)

    def moved(self, size: int) -> None:
        """So many bytes are in the destination."""
        self.progress.advance(size)
        self.rate.spend(size)
