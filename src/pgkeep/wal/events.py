"""What a receiver has to say: notices, warnings, and alarms that stay until their cause is gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pgkeep.errors import PgkeepError
from pgkeep.units import utc_now

__all__ = ["Alarms", "Event", "Level"]

Level = Literal["info", "warning", "alarm", "cleared"]


@dataclass(frozen=True, slots=True)
class Event:
    """One sentence for the operator.

    ``kind`` is a word for programs, the same for an alarm and for its end; ``hint`` names what mends it, or is None.
    """

    time: datetime
    level: Level
    kind: str
    message: str
    hint: str | None = None


class Alarms:
    """Passes events on, and remembers which alarms are on; safe for threads.

    ``on_event`` is called in the thread where it happened and must return soon.
    """

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._lock = threading.RLock()
        self._active: dict[str, Event] = {}
        self._warned: dict[str, str] = {}

    def active(self) -> list[Event]:
        """The alarms that are on, oldest first."""
        with self._lock:
            return list(self._active.values())

    def info(self, kind: str, message: str) -> None:
        """Something that happened."""
        self._send(Event(utc_now(), "info", kind, message))

    def warn(self, kind: str, message: str, hint: str | None = None) -> None:
        """Something that should be mended; the same again is not repeated until `settle`."""
        with self._lock:
            if self._warned.get(kind) == message:
                return
            self._warned[kind] = message
        self._send(Event(utc_now(), "warning", kind, message, hint))

    def settle(self, kind: str) -> None:
        """What a warning was about is mended."""
        with self._lock:
            self._warned.pop(kind, None)

    def raise_alarm(self, kind: str, message: str, hint: str | None = None) -> None:
        """Something that endangers the WAL or the server; the same again only updates the message."""
        event = Event(utc_now(), "alarm", kind, message, hint)
        with self._lock:
            before = self._active.get(kind)
            if before is not None:
                event = Event(before.time, "alarm", kind, message, hint)
            self._active[kind] = event
        if before is None:
            self._send(event)

    def raise_error(self, kind: str, error: PgkeepError) -> None:
        """`raise_alarm` with an error's words."""
        self.raise_alarm(kind, str(error), error.hint)

    def clear(self, kind: str, message: str) -> None:
        """The alarm's cause is gone; nothing happens where it was not on."""
        with self._lock:
            if self._active.pop(kind, None) is None:
                return
        self._send(Event(utc_now(), "cleared", kind, message))

    def _send(self, event: Event) -> None:
        # one at a time, in order; a listener whose pipe is closed must not end what it listens to
        with self._lock, contextlib.suppress(OSError):
            self._on_event(event)
