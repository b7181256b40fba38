"""How a job tells what it is doing: one small interface, so that a terminal, a log and a service can all listen."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Hears of a job's progress. Methods may be called from any thread, must return at once and must not raise."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins; ``total`` is its work in bytes, or None where nobody knows."""

    def total(self, total: int) -> None:
        """The current phase turns out to be this many bytes."""

    def advance(self, done: int) -> None:
        """So many more bytes of the current phase are done."""

    def note(self, message: str) -> None:
        """Something that the operator wants to read, in a sentence."""


class Silent:
    """A Progress that nobody listens to."""

    def phase(self, name: str, total: int | None = None) -> None: ...

    def total(self, total: int) -> None: ...

    def advance(self, done: int) -> None: ...

    def note(self, message: str) -> None: ...
