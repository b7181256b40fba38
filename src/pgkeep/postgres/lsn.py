"""Log sequence numbers: byte positions in the write-ahead log (PostgreSQL docs, 8.20 "pg_lsn Type")."""

from __future__ import annotations

import re
from typing import Self

__all__ = ["LSN"]

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


class LSN(int):
    """A position in the WAL, in bytes, written as PostgreSQL's ``%X/%X``: ``str(LSN(50331744))`` is ``"0/3000060"``.

    It is an int: sums, differences and remainders are plain ints again.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The position that PostgreSQL prints as ``text``; raises ValueError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r} (it looks like 0/3000060)")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"LSN('{self}')"
