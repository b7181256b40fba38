"""Results: JSON for programs, plain lines for pipes, tables for terminals."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgkeep.checks import Finding
from pgkeep.cli.findings import show_findings
from pgkeep.cli.output import Output, clean, to_json


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_with_json_only_the_document_is_printed() -> None:
    stream = io.StringIO()
    output = Output(json=True, stream=stream)
    output.line("for people")
    output.table(["a"], [["1"]])
    output.fields([("a", "1")])
    output.document(
        {"time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "path": Path("/ü"), "took": timedelta(seconds=2)}
    )
    assert json.loads(stream.getvalue()) == {"time": "2026-01-02T03:04:05Z", "path": "/ü", "took": 2.0}


def test_without_json_no_document_is_printed() -> None:
    stream = io.StringIO()
    Output(json=False, stream=stream).document({"a": 1})
    assert stream.getvalue() == ""


def test_a_table_in_a_pipe_is_plain_aligned_and_never_cut() -> None:
    stream = io.StringIO()
    Output(json=False, stream=stream).table(["name", "size"], [["a" * 300, "1"], ["b", "22"]], right=["size"])
    lines = stream.getvalue().splitlines()
    assert lines == ["name".ljust(300) + "  size", "a" * 300 + "     1", "b".ljust(300) + "    22"]


def test_a_table_on_a_terminal_shows_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    Output(json=False, stream=stream).table(["name"], [["[bold]x"]])
    assert "[bold]x" in stream.getvalue()


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    coloured, plain = Terminal(), Terminal()
    Output(json=False, stream=coloured).line("x", "red")
    monkeypatch.setenv("NO_COLOR", "1")
    Output(json=False, stream=plain).line("x", "red")
    assert "\x1b[31m" in coloured.getvalue()
    assert "\x1b[31m" not in plain.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[2J", "a\\x1b[2J"), ("a\nb", "a\nb"), ("사용자 é", "사용자 é"), ("\x9b", "\\x9b")]
)
def test_control_characters_in_names_do_not_reach_the_terminal(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_fields_line_up() -> None:
    stream = io.StringIO()
    Output(json=False, stream=stream).fields([("id", "1"), ("label", "x")])
    assert stream.getvalue() == "id:    1\nlabel: x\n"


def test_a_failed_finding_shows_its_remedy() -> None:
    stream = io.StringIO()
    show_findings(
        Output(json=False, stream=stream),
        [Finding("a", "ok", "fine", "unused"), Finding("b", "failed", "bad", "mend b")],
    )
    assert stream.getvalue() == "ok      a: fine\nFAILED  b: bad\n        -> mend b\n"
