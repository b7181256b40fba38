"""WAL for a server in a container: a shell asks by files, and the prefetcher's side answers."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import StoreError
from pgkeep.wal.by_files import SCRIPT, FileRequests, restore_command_by_files
from pgkeep.wal.fetch import ABSENT, PREFETCH_FOLDER, Answer
from pgkeep.wal.fetch_files import FileFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "000000010000000000000005"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a prefetcher's folder."""
    (tmp_path / "pg_wal" / PREFETCH_FOLDER).mkdir(parents=True)
    return tmp_path


def folder(data: Path) -> FileFolder:
    return FileFolder(data / "pg_wal" / PREFETCH_FOLDER)


def ask(data: Path, path: str = "pg_wal/RECOVERYXLOG") -> subprocess.Popen[str]:
    """As PostgreSQL does it: the shell's own words, in the data directory."""
    command = restore_command_by_files(str(SCRIPT)).replace("%f", NAME).replace("%p", path)
    return subprocess.Popen(["/bin/sh", "-c", command], cwd=data, stderr=subprocess.PIPE, text=True)


def answered(
    data: Path, answer: Answer | Exception | None, *, bring: bool = False
) -> tuple[int, str, list[tuple[str, str]]]:
    """Exit code, words, and what was asked."""
    asked: list[tuple[str, str]] = []

    def handle(name: str, path: str, still_wanted: Callable[[], bool]) -> Answer | None:
        asked.append((name, path))
        assert still_wanted()
        if bring:
            (data / path).touch()
        if isinstance(answer, Exception):
            raise answer
        return answer

    with FileRequests(folder(data), handle), ask(data) as client:
        _, said = client.communicate(timeout=20)
    assert folder(data).names() == []
    return client.returncode, said, asked


@pytest.mark.parametrize(
    ("answer", "bring", "code", "said"),
    [
        (Answer(0), True, 0, ""),
        (Answer(0, "from far: 'a' \"b\" \\n"), True, 0, "pgkeep: from far: 'a' \"b\" \\n\n"),
        (ABSENT, False, 1, ""),
        (Answer(0), False, 201, "pgkeep: pg_wal/RECOVERYXLOG was to be there, and is not\n"),
        (StoreError("the bucket\nis gone"), False, 209, "pgkeep: the bucket is gone\n"),
        (ValueError("odd"), False, 201, "pgkeep: unexpected ValueError: odd\n"),
        (None, False, 202, "pgkeep: the prefetcher does not write there\n"),
    ],
)
def test_the_shell_ends_as_the_prefetcher_says(
    data: Path, answer: Answer | Exception | None, bring: bool, code: int, said: str
) -> None:
    assert answered(data, answer, bring=bring) == (code, said, [(NAME, "pg_wal/RECOVERYXLOG")])


def test_where_nobody_answers_the_server_stops(data: Path) -> None:
    """And does not take it for the end of the archive."""
    with ask(data) as client:
        _, said = client.communicate(timeout=20)
    assert (client.returncode, said) == (199, f"pgkeep: no prefetcher answers in pg_wal/{PREFETCH_FOLDER}\n")
    (data / "pg_wal" / PREFETCH_FOLDER).rmdir()
    with ask(data) as client:
        _, said = client.communicate(timeout=20)
    assert client.returncode == 199
    assert "pgkeep: cannot ask in pg_wal" in said


def test_who_waits_is_told_when_the_prefetcher_ends(data: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def handle(name: str, path: str, still_wanted: Callable[[], bool]) -> Answer:
        begun.set()
        ended.wait(20)
        return Answer(0)

    with ExitStack() as stack:
        with FileRequests(folder(data), handle):
            client = stack.enter_context(ask(data))
            assert begun.wait(20)
        assert client.wait(20) == 199
        ended.set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGQUIT, 131)])
def test_who_was_stopped_does_not_want_the_file_any_more(data: Path, number: signal.Signals, code: int) -> None:
    begun, unwanted = threading.Event(), threading.Event()

    def handle(name: str, path: str, still_wanted: Callable[[], bool]) -> Answer:
        begun.set()
        deadline = time.monotonic() + 20
        while still_wanted() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not still_wanted():
            unwanted.set()
        return ABSENT

    with FileRequests(folder(data), handle), ask(data) as client:
        assert begun.wait(20)
        client.send_signal(number)
        assert client.wait(20) == code
        assert unwanted.wait(20)


@pytest.mark.parametrize("request_text", ["", "one line\n", "three\nlines\nof it\n", "no end\npath", "x" * 10_000])
def test_what_is_no_request_is_answered_with_a_failure(data: Path, request_text: str) -> None:
    def never(name: str, path: str, still_wanted: Callable[[], bool]) -> Answer:
        raise AssertionError

    place = data / "pg_wal" / PREFETCH_FOLDER
    with FileRequests(folder(data), never):
        (place / "request.7.new").write_text(request_text)
        (place / "request.7.new").rename(place / "request.7")
        deadline = time.monotonic() + 20
        while not (place / "answer.7").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (place / "answer.7").read_text() == "201 unexpected ValueError: a request is two lines, a name and a path\n"
