"""Page checksums of a stopped server, by the rule of ``pg_checksums``: all pages, or as many as there is time for."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgkeep.drill.checks.found import failed, passed, skipped
from pgkeep.drill.record import Check
from pgkeep.postgres.layout import is_checksummed, parse_relation_path
from pgkeep.postgres.pages import PAGE_SIZE, verify_pages
from pgkeep.postgres.running import read_control_file

__all__ = ["check_checksums"]

_CHUNK = 8 << 20
_SHOWN = 100


def check_checksums(data_directory: Path, *, budget: float | None, seed: int, jobs: int) -> Check:
    """``budget`` in seconds, None for all. The server must have been stopped in good order."""
    control = read_control_file(data_directory)
    if control is None:
        return failed("server checksums", ["the control file cannot be read"], "pgkeep verify", 0, "pages")
    if not control.data_checksums:
        return skipped(
            "server checksums",
            "the cluster's pages carry no checksums",
            "stop the server and turn them on: pg_checksums --enable",
        )
    chunks = list(_chunks(data_directory))
    random.Random(seed).shuffle(chunks)  # noqa: S311 - it is to be repeated
    scan = _Scan(data_directory, control.relseg_size, None if budget is None else time.monotonic() + budget)
    with ThreadPoolExecutor(jobs, "checksums") as threads:
        for _ in threads.map(scan, chunks):
            pass
    total = sum(size for _, _, size in chunks)
    share = scan.bytes / total if total else 1.0
    if scan.problems:
        remedy = "pgkeep verify tells whether the repository gave it so; if not, the source has it: pg_amcheck and pg_checksums there"
        return failed("server checksums", sorted(scan.problems), remedy, scan.pages, "pages", sampled=share)
    part = f", {share:.0%} of the bytes in the time that there was" if share < 1 else ""
    return passed("server checksums", f"{scan.pages:,} pages are whole{part}", scan.pages, "pages", sampled=share)


class _Scan:
    """Looks at chunks of files; safe for threads."""

    def __init__(self, data_directory: Path, segment_blocks: int, deadline: float | None) -> None:
        self._root = data_directory
        self._segment_blocks = segment_blocks
        self._deadline = deadline
        self._lock = threading.Lock()
        self.bytes = self.pages = 0
        self.problems: list[str] = []

    def __call__(self, chunk: tuple[str, int, int]) -> None:
        path, offset, size = chunk
        if self._deadline is not None and time.monotonic() > self._deadline and self.bytes:
            return
        with (self._root / path).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        relation = parse_relation_path(os.fsencode(path))
        assert relation is not None
        first = relation.segment * self._segment_blocks + offset // PAGE_SIZE
        whole = len(data) - len(data) % PAGE_SIZE
        found = verify_pages(data[:whole], first_block=first, start_lsn=None)
        with self._lock:
            self.bytes += len(data)
            self.pages += found.checked
            room = max(_SHOWN - len(self.problems), 0)
            self.problems += [f"the checksum of block {block} of {path} is wrong" for block in found.failures[:room]]
            if whole != len(data):
                self.problems.append(f"{path} ends within a page")


def _chunks(root: Path) -> Iterator[tuple[str, int, int]]:
    """Path, offset and size of what is to be read; tablespaces through their links."""
    for where, directories, names in os.walk(root, followlinks=True):
        below = os.path.relpath(where, root)
        if below == ".":
            directories[:] = sorted({"base", "global", "pg_tblspc"} & set(directories))
            continue
        directories.sort()
        for name in sorted(names):
            path = os.path.join(below, name)
            if is_checksummed(os.fsencode(path)):
                size = os.stat(os.path.join(where, name)).st_size
                for offset in range(0, size, _CHUNK):
                    yield path, offset, min(_CHUNK, size - offset)
