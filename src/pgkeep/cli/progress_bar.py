"""A job's progress on standard error: a bar on a terminal, a plain line now and then elsewhere, JSON lines with ``--json``.

A job's threads only add to a counter under a lock; one thread of our own draws. Drawing never raises into the job.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self, TextIO

from pgkeep.cli.output import clean, is_terminal, to_json
from pgkeep.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.progress import Progress as RichProgress

__all__ = ["JsonProgress", "LineProgress", "TerminalProgress", "open_progress"]

RATE_WINDOW = 10.0
"""Seconds over which the shown rate is measured: long enough to be calm, short enough to show a stall."""


@dataclass(slots=True)
class Phase:
    """How far a phase is. ``done`` and ``total`` are bytes."""

    name: str
    total: int | None
    started: float
    done: int = 0
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def rate(self, now: float) -> float:
        """Bytes a second over the last RATE_WINDOW seconds; takes a sample."""
        self.samples.append((now, self.done))
        while len(self.samples) > 2 and self.samples[1][0] < now - RATE_WINDOW:
            self.samples.popleft()
        then, done = self.samples[0]
        if now - then < 0.001:
            then, done = self.started, 0
        return (self.done - done) / max(now - then, 0.001)

    def seconds_left(self, rate: float) -> float | None:
        """Seconds to the end at this rate, or None where it cannot be told."""
        if self.total is None or rate <= 0:
            return None
        return max(self.total - self.done, 0) / rate

    def describe(self, now: float) -> str:
        """``"1.5 GiB of 10 GiB (15 %), 300 MiB/s, 29 s left"``."""
        rate = self.rate(now)
        if self.total is None:
            return (
                f"{format_size(self.done)}, {format_rate(rate)}" if self.done else format_duration(now - self.started)
            )
        share = min(100 * self.done // self.total, 100) if self.total else 100
        parts = [f"{format_size(self.done)} of {format_size(self.total)} ({share} %)", format_rate(rate)]
        left = self.seconds_left(rate)
        if left is not None:
            parts.append(f"{format_duration(round(left))} left" if left >= 1 else "nearly there")
        return ", ".join(parts)

    def summarise(self, now: float) -> str:
        """What a finished phase did."""
        seconds = now - self.started
        if not self.done:
            return format_duration(seconds)
        return (
            f"{format_size(self.done)} in {format_duration(seconds)} ({format_rate(self.done / max(seconds, 0.001))})"
        )


class Reporter:
    """The counting half of all three; subclasses draw. A context manager: leaving it ends the last phase."""

    interval: ClassVar[float]

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._lock = threading.Lock()
        self._draw_lock = threading.Lock()
        self._phase: Phase | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw_regularly, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        with self._lock:
            last, self._phase = self._phase, None
        if last is not None and error is None:
            self._draw(self.phase_ended, last)
        self._draw(self.closed)

    def phase(self, name: str, total: int | None = None) -> None:
        new = Phase(name, total, time.monotonic())
        with self._lock:
            last, self._phase = self._phase, new
        if last is not None:
            self._draw(self.phase_ended, last)
        self._draw(self.phase_started, new)

    def total(self, total: int) -> None:
        with self._lock:
            if self._phase is not None:
                self._phase.total = total

    def advance(self, done: int) -> None:
        with self._lock:
            if self._phase is not None:
                self._phase.done += done

    def note(self, message: str) -> None:
        self._draw(self.noted, message)

    def phase_started(self, phase: Phase) -> None:
        raise NotImplementedError

    def phase_goes_on(self, phase: Phase) -> None:
        raise NotImplementedError

    def phase_ended(self, phase: Phase) -> None:
        raise NotImplementedError

    def noted(self, message: str) -> None:
        raise NotImplementedError

    def closed(self) -> None:
        """After everything else; a terminal is put back as it was."""

    def print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _draw(self, method: Callable[..., object], *arguments: object) -> None:
        # A closed terminal or a full log must not stop a backup.
        with self._draw_lock, suppress(OSError, ValueError):
            method(*arguments)

    def _draw_regularly(self) -> None:
        while not self._stopped.wait(self.interval):
            with self._lock:
                phase = self._phase
            if phase is not None:
                self._draw(self.phase_goes_on, phase)


class LineProgress(Reporter):
    """Plain lines, for logs."""

    interval = 10.0

    def phase_started(self, phase: Phase) -> None:
        size = f" ({format_size(phase.total)})" if phase.total else ""
        self.print(clean(f"{phase.name}{size}"))

    def phase_goes_on(self, phase: Phase) -> None:
        self.print(clean(f"{phase.name}: {phase.describe(time.monotonic())}"))

    def phase_ended(self, phase: Phase) -> None:
        self.print(clean(f"{phase.name}: done, {phase.summarise(time.monotonic())}"))

    def noted(self, message: str) -> None:
        self.print(clean(message))


class JsonProgress(Reporter):
    """JSON lines, as ``docs/reference/json.md`` documents them."""

    interval = 1.0

    def _event(self, event: str, **values: object) -> None:
        self.print(to_json({"event": event, **values}, indent=None))

    def phase_started(self, phase: Phase) -> None:
        self._event("phase", phase=phase.name, total=phase.total)

    def phase_goes_on(self, phase: Phase) -> None:
        rate = phase.rate(time.monotonic())
        self._event(
            "progress",
            phase=phase.name,
            done=phase.done,
            total=phase.total,
            rate=round(rate),
            seconds_left=None if (left := phase.seconds_left(rate)) is None else round(left, 1),
        )

    def phase_ended(self, phase: Phase) -> None:
        seconds = round(time.monotonic() - phase.started, 3)
        self._event("phase_end", phase=phase.name, done=phase.done, seconds=seconds)

    def noted(self, message: str) -> None:
        self._event("note", message=message)


class TerminalProgress(Reporter):
    """A bar with bytes, rate and time left; finished phases stay above it, one line each."""

    interval = 0.1

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bars: RichProgress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(file=self.stream, highlight=False, markup=False, emoji=False),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bars.add_task("", total=None, visible=False, detail="")

    def __enter__(self) -> Self:
        self._draw(self._bars.start)
        return super().__enter__()

    def phase_started(self, phase: Phase) -> None:
        self._bars.reset(self._task, total=phase.total, visible=True, description=clean(phase.name), detail="")
        self._bars.refresh()

    def phase_goes_on(self, phase: Phase) -> None:
        detail = phase.describe(time.monotonic())
        self._bars.update(self._task, total=phase.total, completed=phase.done, detail=detail, refresh=True)

    def phase_ended(self, phase: Phase) -> None:
        self._bars.console.print(clean(f"{phase.name}: {phase.summarise(time.monotonic())}"))
        self._bars.update(self._task, visible=False, refresh=True)

    def noted(self, message: str) -> None:
        self._bars.console.print(clean(message))

    def closed(self) -> None:
        self._bars.stop()


def open_progress(*, json: bool) -> Reporter:
    """The Progress that suits standard error; to be used in a ``with`` statement."""
    if json:
        return JsonProgress()
    return TerminalProgress() if is_terminal(sys.stderr) else LineProgress()
