"""What a recovering server says in its log: where it stopped, why it ended.

Messages are those of src/backend/access/transam/xlogrecovery.c and xlog.c, in English: the server is started with
``lc_messages = C`` and ``log_line_prefix = ''``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOG_SETTINGS", "RecoveryLog"]

LOG_SETTINGS = {
    "lc_messages": "C",
    "log_min_messages": "warning",
    "log_line_prefix": "",
    "log_error_verbosity": "default",
}
"""What a server must be started with for its log to be understood here."""

_STOPPING = re.compile(r"LOG:  (recovery stopping .*)")
_LAST_TRANSACTION = re.compile(r"LOG:  last completed transaction was at log time (.*)")
_REDO = "LOG:  redo starts at "
_PAUSED = "LOG:  pausing at the end of recovery"
_SHUTDOWN = "LOG:  shutdown at recovery target"
_FAILED = re.compile(r"(?:FATAL|PANIC):  (.*)")
_LOG = "LOG:  "
_NOISE = ("the database system is starting up", "the database system is not yet accepting connections")


@dataclass
class RecoveryLog:
    """Follows the log of one start: ``read`` takes what was added and keeps what matters of it."""

    path: Path
    position: int = 0
    stopping: str | None = None
    """Why and where replay stopped, in the server's words."""
    last_transaction: str | None = None
    redo: bool = False
    """Whether replay has begun."""
    paused: bool = False
    shut_down: bool = False
    failure: str | None = None
    """The first error that the server ended with."""

    def __post_init__(self) -> None:
        self._rest = b""
        self._said = ""

    def read(self) -> None:
        """Take in what the server has written since the last call."""
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read()
        self.position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> None:
        if match := _STOPPING.search(line):
            self.stopping = match[1]
        elif match := _LAST_TRANSACTION.search(line):
            self.last_transaction = match[1]
        elif _REDO in line:
            self.redo = True
        elif _PAUSED in line:
            self.paused = True
        elif _SHUTDOWN in line:
            self.shut_down = True
        elif (match := _FAILED.search(line)) and self.failure is None and not match[1].startswith(_NOISE):
            # it has said before what they are
            self.failure = f"{match[1]}: {self._said}" if match[1].endswith("contains errors") else match[1]
        if _LOG in line:
            self._said = line.partition(_LOG)[2]
