"""What all ways to open a repository have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

__all__ = ["Fields", "Secret", "hex_field"]

Fields = Mapping[str, object]
"""Of a record."""


class Secret(Protocol):
    """Something that yields wrapping keys (32 bytes), one for each slot."""

    kind: ClassVar[str]
    """As the slots' records call it."""

    def new_wrapping(self, family: bytes, /) -> tuple[bytes, Fields]:
        """A wrapping key that nothing is wrapped with yet, and the fields by which `wrapping_of` finds it again.

        The fields have a ``salt`` and tell nothing about the key. Raises KeyFailure.
        """

    def wrapping_of(self, family: bytes, fields: Fields, /) -> bytes | None:
        """The wrapping key that belongs to the fields; None where they are plainly another secret's.

        Another key may come out, which opens nothing. Raises KeyFailure; ValueError where the fields make no sense.
        """

    def identity(self) -> bytes:
        """Bytes that tell secrets apart; they may be the secret itself."""


def hex_field(fields: Fields, name: str) -> bytes:
    """The bytes of a field. Raises ValueError."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"no {name}")  # noqa: TRY004 - what is stored is wrong, not what was passed
    return bytes.fromhex(value)
