"""Where tests write: a place in memory for what is thrown away, and a small file system to fill up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

__all__ = ["quick_place", "small_disk"]

_IN_MEMORY = Path("/dev/shm")
_ROOM = 10 << 30
"""Bytes: two processes with a cluster of some GiB, its repository and its copy each."""


def quick_place() -> Path | None:
    """Memory, where there is room in it; None for the usual place, which TMPDIR names.

    Each restore and each backup syncs its file system, with whatever else is written to it at the moment: on a disk, tests
    that run side by side mostly wait for one another.
    """
    if "TMPDIR" in os.environ or not os.access(_IN_MEMORY, os.W_OK):
        return None
    room = os.statvfs(_IN_MEMORY)
    free = min(room.f_bavail * room.f_frsize, psutil.virtual_memory().available)
    return _IN_MEMORY if free >= _ROOM else None


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A tmpfs of this size (as mount(8) writes it) at ``place``, which it makes."""
    if os.geteuid() != 0:
        pytest.fail("this test mounts a small disk: run it as root, as .ci/run does")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    place.chmod(0o755)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
