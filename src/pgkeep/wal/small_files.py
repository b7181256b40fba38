"""Small files that are replaced as a whole, so that a reader sees the old text or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["fsync_directory", "read_json", "write_json"]


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Mapping[str, object], *, durable: bool = True) -> None:
    """Replace a file, readable by its owner only. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        fsync_directory(path.parent)


def read_json(path: Path) -> dict[str, object] | None:
    """The document in a file, empty where it is no object; None where there is none. Raises ValueError, OSError."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return document if isinstance(document, dict) else {}
