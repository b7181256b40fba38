"""After a gap in the WAL: a new base backup, by itself, tried until it succeeds, and not forgotten by a restart."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from pgkeep.wal.events import Alarms
from pgkeep.wal.ship import Backoff
from pgkeep.wal.small_files import read_json, write_json

__all__ = ["GapFiller"]


class GapFiller:
    """Calls ``on_gap(reason)`` in a thread of its own after each `report`, again and again where it raises.

    What is still to do stands in ``<spool>/gap.json``. With ``on_gap`` None there is only the alarm.
    """

    def __init__(self, spool: Path, on_gap: Callable[[str], None] | None, alarms: Alarms) -> None:
        self._file = spool / "gap.json"
        self._on_gap = on_gap
        self._alarms = alarms
        self._reason: str | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="base backup", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier run left to do."""
        with contextlib.suppress(OSError, ValueError):
            left = read_json(self._file)
            if left is not None:
                self.report(str(left.get("reason")))
        self._thread.start()

    def report(self, reason: str) -> None:
        """WAL is missing from here on; ``reason`` is a sentence for people."""
        self._alarms.raise_alarm(
            "gap",
            f"no backup from before can be recovered beyond a gap in the WAL: {reason}",
            "a new backup is taken by itself" if self._on_gap is not None else "take a new one: pgkeep backup",
        )
        if self._on_gap is not None:
            with contextlib.suppress(OSError):
                write_json(self._file, {"reason": reason})
            self._reason = reason
            self._wake.set()

    def stop(self) -> None:
        """Take no more backups; one that runs is not waited for."""
        self._stop.set()
        self._wake.set()

    def _run(self) -> None:
        backoff = Backoff(1.0, 300.0)
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stop.is_set() or self._on_gap is None:
                return
            reason = self._reason or ""
            try:
                self._on_gap(reason)
            except Exception as error:  # noqa: BLE001 - tried again until it succeeds
                self._alarms.warn("base-backup", f"the backup after a gap in the WAL failed: {error}")
                self._stop.wait(backoff.next())
                self._wake.set()
                continue
            self._alarms.settle("base-backup")
            backoff.reset()
            if not self._wake.is_set():
                self._file.unlink(missing_ok=True)
                self._alarms.clear("gap", "a new backup was taken after the gap in the WAL")
