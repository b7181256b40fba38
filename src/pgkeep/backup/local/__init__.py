"""A backup beside the data: the files of a running server, read by many threads on its own machine.

numpy comes with `LocalSource`: it is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgkeep.backup.local.place import LocalPlace, find_place

if TYPE_CHECKING:
    from pgkeep.backup.local.source import LocalSource

__all__ = ["LocalPlace", "LocalSource", "find_place"]


def __getattr__(name: str) -> Any:
    if name == "LocalSource":
        from pgkeep.backup.local.source import LocalSource

        return LocalSource
    raise AttributeError(name)
