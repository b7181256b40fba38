"""A small file system, to fill up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["small_disk"]


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
