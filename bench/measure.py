"""Running a program and measuring it: wall time, CPU of all that works for it, peak memory of its own processes."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.errors import PgkeepError
from pgkeep.postgres.account import ServerAccount, process_identity

SAMPLE_SECONDS = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")
_MEMORY_FIELDS = ("VmRSS", "VmHWM")
Argv = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """``cpu`` is the program's seconds, user and system, and those that the server spent meanwhile; ``memory`` is in bytes."""

    wall: float
    cpu: float
    memory: int


def measure(
    argv: Argv,
    *,
    account: ServerAccount | None,
    server: int | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path,
) -> Measurement:
    """Run the program to its end; ``server`` is a postmaster whose CPU time counts too. Its output goes to ``log``.

    Everything dirty is written to disk first, so that nobody pays for the work of others.
    Raises PgkeepError with the end of the log where the program fails.
    """
    os.sync()
    before = tree_cpu(server)
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **process_identity(account, environment),
        )
        with MemorySampler(process.pid) as sampler:
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise PgkeepError(f"{os.fspath(argv[0])} ended with exit code {process.returncode}:\n{end}")
    return Measurement(wall, usage.ru_utime + usage.ru_stime + tree_cpu(server) - before, sampler.peak)


@dataclass
class MemorySampler:
    """Watches the resident memory (VmRSS) of a process and its descendants every 50 ms; the page cache is not in it.

    ``peak`` is the greatest sum seen, or the greatest high-water mark of one process where that is more: the kernel keeps
    that one between samples.
    """

    root: int
    peak: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> MemorySampler:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            now, highest = 0, 0
            for pid in tree(self.root):
                resident, high_water = _memory(pid)
                now += resident
                highest = max(highest, high_water)
            self.peak = max(self.peak, now, highest)
            if self._stop.wait(SAMPLE_SECONDS):
                return


def tree(root: int) -> Iterator[int]:
    """The process and all its descendants that are there now."""
    yield root
    try:
        tasks = list(Path(f"/proc/{root}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from tree(child)


def tree_cpu(root: int | None) -> float:
    """CPU seconds of the process, of its descendants, and of those of them that ended and were waited for."""
    if root is None:
        return 0.0
    total = 0
    for pid in tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(ticks) for ticks in fields[11:15])  # utime, stime, cutime, cstime: proc(5)
    return total / _TICKS


def _memory(pid: int) -> tuple[int, int]:
    """Bytes resident now, and at most so far; 0 where the process is gone (proc(5), status)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in lines)
    resident, high_water = (int(values.get(name, "0 kB").split()[0]) * 1024 for name in _MEMORY_FIELDS)
    return resident, high_water
