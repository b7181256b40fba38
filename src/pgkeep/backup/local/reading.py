"""Reading the files of a running server, from many threads at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np

from pgkeep.backup.local.walk import DataDirectory, facts_of, unreadable
from pgkeep.backup.overlay import Pages, runs

__all__ = ["OpenFile", "Pace", "Reads"]

_NOREUSE = getattr(os, "POSIX_FADV_NOREUSE", 5)

_GAP_PAGES = 4
"""Pages between two that are wanted which are read with them rather than skipped: a call costs as much."""

_PATIENCE = 0.2
"""Seconds between two looks at what may have gone wrong elsewhere."""


class Pace:
    """Holds a feeder back to ``rate`` bytes a second; None lets it run."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._due = time.monotonic()

    def wait(self, size: int) -> None:
        """Wait until ``size`` more bytes may be read."""
        if self._rate is None:
            return
        now = time.monotonic()
        # a feeder that was slow for other reasons does not catch up
        self._due = max(self._due, now - 1) + size / self._rate
        if self._due > now:
            time.sleep(self._due - now)


class OpenFile:
    """A file of the server that stays open until all of it is read, even where the server removes it meanwhile.

    ``facts`` are as they were when it was opened: what the file grows by afterwards is left to WAL, and where it shrinks the
    rest is read as zeros, both as a server's base backup has it.
    """

    def __init__(self, path: bytes, place: bytes) -> None:
        """Open it. Raises FileNotFoundError, ServerSettingError where it may not be read."""
        try:
            self.descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreadable(place, error) from None
        self.facts = facts_of(path, os.fstat(self.descriptor))
        self.place = place

    def read(self, position: int, size: int) -> bytes:
        """Bytes of the file, zeros after its end. Raises ServerSettingError where the disk does not give them."""
        data = self._read(position, size)
        if len(data) == size:
            return data
        parts = [data]
        missing = size - len(data)
        while missing:
            part = self._read(position + size - missing, missing)
            if not part:
                part = bytes(missing)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def read_pages(self, pages: Pages, page_size: int) -> bytes:
        """Pages by number, ascending, one after the other."""
        first, last = int(pages[0]), int(pages[-1])
        if last - first + 1 == len(pages):
            return self.read(first * page_size, len(pages) * page_size)
        breaks = np.flatnonzero(np.diff(pages) > _GAP_PAGES + 1)
        starts = np.concatenate(([0], breaks + 1))
        ends = np.concatenate((breaks + 1, [len(pages)]))
        parts = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            wanted = pages[start:end]
            low, count = int(wanted[0]), int(wanted[-1]) - int(wanted[0]) + 1
            data = self.read(low * page_size, count * page_size)
            if count > len(wanted):
                data = np.frombuffer(data, np.uint8).reshape(count, page_size)[wanted - low].tobytes()
            parts.append(data)
        return b"".join(parts)

    def expect(self, position: int, size: int) -> None:
        """Have the kernel fetch what will be read soon, without waiting."""
        os.posix_fadvise(self.descriptor, position, size, os.POSIX_FADV_WILLNEED)

    def expect_pages(self, pages: Pages, page_size: int) -> None:
        """The same for pages by number."""
        for start, end in zip(*(bound.tolist() for bound in runs(pages)), strict=True):
            self.expect(start * page_size, (end - start) * page_size)

    def spare_cache(self) -> None:
        """What we read once is not to push out what the server reads often (Linux 6.3 and later; no harm before)."""
        os.posix_fadvise(self.descriptor, 0, 0, _NOREUSE)

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)

    def _read(self, position: int, size: int) -> bytes:
        try:
            return os.pread(self.descriptor, size, position)
        except OSError as error:
            raise unreadable(self.place, error) from None


class Reads:
    """The reads that were handed out and are not done; counts their bytes. Closes a file after the last of its reads."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._changed = threading.Condition()
        self._open: dict[OpenFile, int] = {}
        self.size = 0

    def open(self, path: bytes) -> OpenFile | None:
        """A file of the backup by its path, or None where the server has removed it. `give_up` it in the end."""
        try:
            file = OpenFile(path, self._directory.absolute(path))
        except FileNotFoundError:
            return None
        with self._changed:
            self._open[file] = 1
        return file

    def later(self, file: OpenFile, read: Callable[[], bytes]) -> Callable[[], bytes]:
        """A read of an open file, to be called once, from any thread."""
        with self._changed:
            self._open[file] += 1

        def load() -> bytes:
            try:
                data = read()
                with self._changed:
                    self.size += len(data)
            finally:
                self.give_up(file)
            return data

        return load

    def give_up(self, file: OpenFile) -> None:
        """One that held the file open needs it no more."""
        with self._changed:
            self._open[file] -= 1
            if self._open[file]:
                return
            del self._open[file]
            self._changed.notify_all()
        file.close()

    def wait(self, look: Callable[[], None]) -> None:
        """Return when every read is done; ``look`` is called meanwhile, and raises what ends the backup."""
        while True:
            look()
            with self._changed:
                if not self._open or self._changed.wait_for(lambda: not self._open, _PATIENCE):
                    return

    def close(self) -> None:
        """Close what is open; no read may be under way."""
        with self._changed:
            files, self._open = list(self._open), {}
        for file in files:
            file.close()
