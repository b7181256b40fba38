"""The CRC-32C of a whole from those of its pieces."""

from __future__ import annotations

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.repository.crc import combine_crc32c


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_the_crc_of_a_whole_follows_from_those_of_its_pieces(pieces: list[bytes]) -> None:
    """Whatever the pieces, empty ones too."""
    combined = 0
    for piece in pieces:
        combined = combine_crc32c(combined, google_crc32c.value(piece), len(piece))

    assert combined == google_crc32c.value(b"".join(pieces))


def test_large_pieces_combine_as_small_ones_do() -> None:
    """A cell, and a size that is no power of two."""
    first, second = b"a" * (1 << 20), b"b" * 1_000_003

    combined = combine_crc32c(google_crc32c.value(first), google_crc32c.value(second), len(second))

    assert combined == google_crc32c.value(first + second)
