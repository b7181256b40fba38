"""Progress: told in full, from any thread, and never in a job's way."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pgkeep.cli.progress_bar import JsonProgress, LineProgress, Phase, TerminalProgress

if TYPE_CHECKING:
    from pgkeep.progress import Progress


def test_lines_tell_phases_and_notes() -> None:
    stream = io.StringIO()
    with LineProgress(stream) as progress:
        progress.phase("copying", 2048)
        progress.advance(2048)
        progress.note("a table was dropped")
        progress.phase("finishing")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["copying (2.00 KiB)", "a table was dropped"]
    assert lines[2].startswith("copying: done, 2.00 KiB in ")
    assert lines[3] == "finishing"
    assert lines[4].startswith("finishing: done, ")


def test_json_lines_are_the_documented_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonProgress, "interval", 0.01)
    stream = io.StringIO()
    with JsonProgress(stream) as progress:
        progress.phase("copying")
        progress.total(100)
        progress.advance(40)
        time.sleep(0.1)
        progress.note("x")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "phase", "phase": "copying", "total": None}
    assert events[-1].keys() == {"event", "phase", "done", "seconds"}
    assert {"event": "note", "message": "x"} in events
    told = next(event for event in events if event["event"] == "progress")
    assert told.keys() == {"event", "phase", "done", "total", "rate", "seconds_left"}


def test_a_failed_job_ends_no_phase() -> None:
    stream = io.StringIO()
    with contextlib.suppress(RuntimeError), JsonProgress(stream) as progress:
        progress.phase("copying")
        raise RuntimeError
    assert '"copying"' in stream.getvalue()
    assert "phase_end" not in stream.getvalue()


def test_a_terminal_keeps_a_line_for_each_phase() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress.phase("copying [x]", 10)
        progress.advance(10)
        progress.note("[bold]noted")
    assert "copying [x]: 10 B in " in stream.getvalue()
    assert "[bold]noted" in stream.getvalue()


def advance_often(progress: Progress) -> None:
    for _ in range(10_000):
        progress.advance(1)


@pytest.mark.parametrize("kind", [LineProgress, JsonProgress, TerminalProgress])
def test_threads_lose_no_byte_and_a_closed_stream_stops_no_job(kind: type[LineProgress]) -> None:
    stream = io.StringIO()
    progress = kind(stream)
    with progress:
        counted: Progress = progress
        counted.phase("copying", 40_000)
        stream.close()
        threads = [threading.Thread(target=advance_often, args=(counted,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert progress._phase is not None
        assert progress._phase.done == 40_000


@pytest.mark.parametrize(
    ("total", "done", "text"),
    [
        (900, 450, "450 B of 900 B (50 %), 45 B/s, 10.0 s left"),
        (900, 900, "900 B of 900 B (100 %), 90 B/s, nearly there"),
        (0, 0, "0 B of 0 B (100 %), 0 B/s"),
        (None, 500, "500 B, 50 B/s"),
        (None, 0, "10.0 s"),
    ],
)
def test_a_phase_is_described_in_numbers(total: int | None, done: int, text: str) -> None:
    assert Phase("copying", total, started=0.0, done=done).describe(10.0) == text


def test_the_rate_is_that_of_the_last_seconds() -> None:
    phase = Phase("copying", 10_000, started=0.0)
    phase.rate(0.0)
    phase.done = 1000
    assert phase.rate(1.0) == 1000
    assert phase.rate(30.0) < 100
    assert phase.rate(60.0) == 0
