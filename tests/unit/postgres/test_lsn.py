from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.postgres.lsn import LSN

POSITIONS = st.integers(0, (1 << 64) - 1).map(LSN)


@given(POSITIONS)
def test_what_is_printed_is_read_back(lsn: LSN) -> None:
    assert LSN.parse(str(lsn)) == lsn


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0/0", 0),
        ("0/3000060", 0x3000060),
        ("16/B374D848", 0x16B374D848),
        ("0/03000060", 0x3000060),
        ("a/b", 0xA0000000B),
    ],
)
def test_an_lsn_is_read_as_postgresql_prints_it(text: str, position: int) -> None:
    assert LSN.parse(text) == position


def test_an_lsn_prints_like_postgresql_wherever_it_is_put_into_text() -> None:
    lsn = LSN(0x16B374D848)
    assert (str(lsn), f"{lsn}", repr(lsn)) == ("16/B374D848", "16/B374D848", "LSN('16/B374D848')")


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/123456789", "G/0", " 0/0", "0/0\n", "-1/0", "0/0/0", "٣/0"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        LSN.parse(text)


def test_arithmetic_gives_plain_numbers() -> None:
    assert type(LSN(8) + 1) is int
