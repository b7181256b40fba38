"""The operator's own questions, and what the answer must be."""

from __future__ import annotations

import re
import time
from decimal import Decimal, InvalidOperation
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import psycopg

from pgkeep.config import DrillAssertion
from pgkeep.drill.record import Check
from pgkeep.drill.session import Copy, reason_of
from pgkeep.errors import PgkeepError

__all__ = ["check_assertion", "fits"]

_COMPARISON = re.compile(r"\s*(>=|<=|!=|<>|>|<|=)\s*(.*\S)\s*", re.DOTALL)
_OPERATORS = {">=": ge, "<=": le, "!=": ne, "<>": ne, ">": gt, "<": lt, "=": eq}


def check_assertion(copy: Copy, assertion: DrillAssertion, default_database: str) -> Check:
    """Ask it, in a transaction that reads only."""
    database = assertion.database or default_database
    began = time.monotonic()
    try:
        with copy.connect(database) as connection:
            connection.execute("RESET search_path")
            connection.execute(
                "SELECT set_config('statement_timeout', %s, false)", (str(int(assertion.timeout * 1000)),)
            )
            connection.execute("SET default_transaction_read_only = on")
            rows = connection.execute(assertion.query.encode()).fetchall()
    except (psycopg.Error, PgkeepError) as error:
        said = f"the query failed in database {database}: {reason_of(error)}"
        return _answer(assertion, began, said, remedy=f"see the query: {_short(assertion.query)}")
    wrong = _judge(rows, assertion.expect)
    if wrong is None:
        shown = "" if not rows or not rows[0] else f"{_text(rows[0][0])}, "
        return _answer(assertion, began, None, f"{shown}as expected ({_expected(assertion.expect)})")
    return _answer(assertion, began, wrong, remedy=f"look at the same on the source: {_short(assertion.query)}")


def fits(value: object, expect: bool | float | str) -> bool:
    """Whether a value of SQL is what is expected.

    A number or truth value is compared as such; a text with the value's text, or, where it begins with an operator (``>= 100``), by that
    one, as numbers where both sides are.
    """
    if isinstance(expect, bool):
        return value is expect
    if isinstance(expect, int | float):
        number = _number(value)
        return number is not None and number == Decimal(str(expect))
    match = _COMPARISON.fullmatch(expect)
    if match is None:
        return _text(value) == expect
    operator, wanted = _OPERATORS[match[1]], match[2]
    left, right = _number(value), _number(wanted)
    if left is not None and right is not None:
        return bool(operator(left, right))
    return value is not None and bool(operator(_text(value), wanted))


def _judge(rows: list[tuple[Any, ...]], expect: bool | float | str) -> str | None:
    """What is wrong; None where nothing is."""
    if expect == "no rows":
        return None if not rows else f"the query returned {len(rows)} rows, expected none; the first: {_row(rows[0])}"
    if expect == "rows":
        return None if rows else "the query returned no row, expected some"
    if not rows or not rows[0]:
        return f"the query returned no row, expected {_expected(expect)}"
    if fits(rows[0][0], expect):
        return None
    return f"the query returned {_text(rows[0][0])}, expected {_expected(expect)}"


def _answer(
    assertion: DrillAssertion, began: float, wrong: str | None, detail: str = "", remedy: str | None = None
) -> Check:
    return Check(
        name=assertion.name,
        kind="assertion",
        outcome="passed" if wrong is None else "failed",
        detail=wrong or detail,
        remedy=remedy,
        seconds=time.monotonic() - began,
        counted=1,
        unit="queries",
    )


def _number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        return Decimal(str(value).strip())
    except InvalidOperation:
        return None


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "NULL" if value is None else str(value)


def _expected(expect: bool | float | str) -> str:
    return _text(expect)


def _row(row: tuple[Any, ...]) -> str:
    return _short(", ".join(map(_text, row)))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else flat[:199] + "…"
