"""What an assertion's answer may be."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pgkeep.drill.checks.assertions import fits


@pytest.mark.parametrize(
    ("value", "expect"),
    [
        (0, 0),
        (Decimal("1.50"), 1.5),
        (True, True),
        ("active", "active"),
        (12, ">= 12"),
        (Decimal("99.5"), "< 100"),
        (9, "< 10"),
        ("9", "< 10"),
        (3, "!= 4"),
        ("b", "> a"),
        ("a b", "= a b"),
        (None, "NULL"),
        (True, "true"),
        ("", ""),
    ],
)
def test_an_answer_that_fits(value: object, expect: bool | float | str) -> None:
    assert fits(value, expect)


@pytest.mark.parametrize(
    ("value", "expect"),
    [
        (1, 0),
        (None, 0),
        (1, True),
        ("true", True),
        (False, True),
        (True, 1),
        (11, ">= 12"),
        (100, "< 100"),
        (10, "< 9"),
        (None, "> 0"),
        ("Active", "active"),
    ],
)
def test_an_answer_that_does_not(value: object, expect: bool | float | str) -> None:
    assert not fits(value, expect)
