"""Results on standard output: tables and colours on a terminal, plain lines elsewhere, one JSON document with ``--json``.

Commands call both sides without asking which is on: ``document`` prints only with ``--json``, all others only without.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from pgkeep.errors import PgkeepError

__all__ = ["Output", "clean", "is_terminal", "print_error", "to_json"]


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can show more than plain lines."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def clean(text: str) -> str:
    """The text with control characters made visible: names come from servers and may carry terminal commands."""
    return "".join(
        character if character.isprintable() or character == "\n" else f"\\x{ord(character):02x}" for character in text
    )


def to_json(value: object, *, indent: int | None = 2) -> str:
    """JSON text; times are ISO 8601 in UTC, durations seconds, paths and enumerations strings."""
    return json_module.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"no JSON for {type(value).__name__}")


def print_error(error: PgkeepError, *, json: bool) -> None:
    """``error:`` and ``hint:`` lines on standard error; with ``json``, one document on standard output instead."""
    if json:
        document = {
            "error": {"code": error.exit_code, "name": type(error).__name__, "message": str(error), "hint": error.hint}
        }
        print(to_json(document), flush=True)
        return
    output = Output(json=False, stream=sys.stderr)
    output.styled(("error: ", "bold red"), (str(error), ""))
    if error.hint:
        output.styled(("hint: ", "bold"), (error.hint, ""))


class Output:
    """One command's results. ``stream`` is standard output unless given."""

    def __init__(self, *, json: bool, stream: TextIO | None = None) -> None:
        self.json = json
        self._stream = sys.stdout if stream is None else stream
        self.terminal = not json and is_terminal(self._stream)

    @cached_property
    def console(self) -> Console:
        """The rich console of a terminal; it obeys NO_COLOR."""
        from rich.console import Console

        return Console(file=self._stream, highlight=False, markup=False, emoji=False)

    def document(self, value: Mapping[str, object]) -> None:
        """The whole result, with ``--json``; nothing otherwise."""
        if self.json:
            print(to_json(value), file=self._stream, flush=True)

    def line(self, text: str = "", style: str = "") -> None:
        """A line for people; ``style`` is rich's, and shows on a terminal only."""
        self.styled((text, style))

    def styled(self, *parts: tuple[str, str]) -> None:
        """A line made of ``(text, style)`` parts."""
        if self.json:
            return
        if not self.terminal:
            print("".join(clean(text) for text, _style in parts), file=self._stream)
            return
        from rich.text import Text

        self.console.print(Text.assemble(*((clean(text), style) for text, style in parts)), soft_wrap=True)

    def fields(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one pair a line, the values in one column."""
        rows = list(pairs)
        width = max((len(name) for name, _value in rows), default=0) + 2
        for name, value in rows:
            self.styled((f"{name + ':':<{width}}", "dim"), (value, ""))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """A table; the columns named in ``right`` are set flush right. Plain lines are never cut to a width."""
        if self.json:
            return
        cells = [[clean(cell) for cell in row] for row in rows]
        if not self.terminal:
            self._plain_table(columns, cells, right)
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def _plain_table(self, columns: Sequence[str], rows: list[list[str]], right: Sequence[str]) -> None:
        lines = [list(columns), *rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            aligned = (
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, cell, width in zip(columns, line, widths, strict=True)
            )
            print("  ".join(aligned).rstrip(), file=self._stream)
