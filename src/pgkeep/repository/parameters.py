"""What a repository was created with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Parameters"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a repository was created with; sizes in bytes."""

    page_size: int = 8192
    cell_size: int = 1 << 20
    pack_size: int = 32 << 20
    compression_level: int = 1
