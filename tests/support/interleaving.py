"""Jobs that share a store, interleaved at its calls by chance: whoever calls it waits until the dice let him.

One call goes through at a time. Now and then a caller is held back for a thousand of others' calls, as a machine that is suspended, and
now and then a job is killed: no call of it goes through any more, and its lease is dead.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pgkeep.repository import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.repository.store import Buffer, ObjectInfo, Store

__all__ = ["Gate", "GatedStore", "Killed"]

_STALLED = 0.01
_LONGEST_STALL = 1500
_SETTLE = 0.0005
"""Seconds that the gate waits for others to come before it rolls the dice."""


class Killed(BaseException):
    """What a job that was killed sees of it: not an Exception, so that nothing of it is handled."""


class Gate:
    """Lets one caller through at a time, by chance."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._condition = threading.Condition()
        self._waiting: dict[int, int] = {}
        self._inside = False
        self._tickets = 0
        self.passed = 0
        """Calls that went through."""

    def __enter__(self) -> None:
        with self._condition:
            ticket = self._tickets = self._tickets + 1
            stall = self._chance.randrange(_LONGEST_STALL) if self._chance.random() < _STALLED else 0
            self._waiting[ticket] = self.passed + stall
            self._condition.notify_all()
        time.sleep(_SETTLE)
        with self._condition:
            while self._inside or self._next() != ticket:
                self._condition.wait(0.05)
            del self._waiting[ticket]
            self._chosen = None
            self._inside = True
            self.passed += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._inside = False
            self._condition.notify_all()

    _chosen: int | None = None

    def _next(self) -> int:
        if self._chosen not in self._waiting:
            free = [ticket for ticket, until in self._waiting.items() if until <= self.passed]
            # where all are held back, whoever would be free first goes
            self._chosen = (
                self._chance.choice(free) if free else min(self._waiting, key=lambda each: self._waiting[each])
            )
        return self._chosen


class GatedStore:
    """A directory's store whose calls go through a gate; ``dies_after`` so many of them its job is dead."""

    def __init__(self, directory: Path, gate: Gate, dead: set[str], dies_after: int | None) -> None:
        self._store: Store = open_store(str(directory))
        self._gate = gate
        self._dead = dead
        self._left = dies_after

    @property
    def is_dead(self) -> bool:
        """Whether it was killed."""
        return self._store.writer in self._dead

    def _call(self, name: str, *arguments: Any) -> Any:
        with self._gate:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    self._dead.add(self._store.writer)
            if self.is_dead:
                raise Killed
            return getattr(self._store, name)(*arguments)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._call("put", name, parts)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return bytes(self._call("get", name, start, length))

    def read_mapped(self, name: str) -> Buffer:
        return bytes(self._call("read_mapped", name))

    def info(self, name: str) -> ObjectInfo:
        found: ObjectInfo = self._call("info", name)
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # as one moment's: a store's own listing is no better and no worse than its pages
        with self._gate:
            if self.is_dead:
                raise Killed
            return iter([*self._store.list(prefix)])

    def folders(self, prefix: str) -> Sequence[str]:
        return [*self._call("folders", prefix)]

    def delete(self, name: str) -> None:
        self._call("delete", name)

    def discard_leftovers(self, writer: str) -> None:
        self._call("discard_leftovers", writer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
