"""What programs read of ours: one document on standard output, lines of progress on standard error, and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.postgres.server import ThrowawayServer
from support.jobs import running_copy
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

_REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text()


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server of 18 with a table."""
    with ThrowawayServer(binaries_of(18), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        sql(server.dsn(), "CREATE TABLE t AS SELECT generate_series(1, 5000) AS id")
        yield server


class Program:
    """The real program, as other programs call it."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self._config = directory / "pgkeep.toml"
        self.setup = self("init", dsn, "--name", "auth", "--repository", directory / "repository", "--yes")

    def __call__(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """The one JSON document; the lines of standard error are in `events`."""
        command = [sys.executable, "-m", "pgkeep", "--config", str(self._config), *map(str, arguments), "--json"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert answer.returncode == code, answer
        self.events: list[dict[str, Any]] = [json.loads(line) for line in answer.stderr.splitlines()]
        document: dict[str, Any] = json.loads(answer.stdout)
        return document


@pytest.fixture
def program(work_dir: Path, service: ThrowawayServer) -> Program:
    """The program, set up for the service."""
    return Program(work_dir, service.dsn())


def _keys(heading: str) -> set[str]:
    """The keys in the first column of the table below a heading."""
    section = re.split(rf"^## {heading}$", _REFERENCE, maxsplit=1, flags=re.MULTILINE)[1].split("\n## ")[0]
    columns = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    return {key for column in columns for key in re.findall(r"`(\w+)`", column)}


def _events() -> dict[str, set[str]]:
    section = re.split(r"^## Progress$", _REFERENCE, maxsplit=1, flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, flags=re.MULTILINE)
    return {event: set(re.findall(r"`(\w+)`", keys)) - {"null"} for event, keys in rows if event != "event"}


def test_init_and_check_answer_with_the_documented_keys(program: Program) -> None:
    """No more and no fewer, down to their findings."""
    checked = program("check")

    assert set(program.setup) == _keys("init")
    assert set(program.setup["repositories"][0]) == {"name", "url", "key", "created", "recovery_key"}
    assert set(checked) == _keys("check")
    assert {frozenset(finding) for finding in checked["findings"]} == {frozenset(_keys("Findings"))}


def test_progress_comes_in_documented_lines(program: Program, work_dir: Path) -> None:
    """Of phases, of a long one's progress, and of nothing else."""
    documented = _events()
    seen: list[dict[str, Any]] = []
    for arguments in (
        ("backup", "--rate", "15MB"),
        ("verify",),
        ("restore", "--target-dir", work_dir / "copy"),
        ("export", "latest", work_dir / "exported"),
    ):
        program(*arguments)
        seen += program.events

    assert {"phase", "progress", "phase_end"} <= {event["event"] for event in seen}
    for event in seen:
        assert set(event) - {"event"} == documented[event["event"]], event


def test_labels_may_hold_any_letter(program: Program) -> None:
    """Quotes and Korean, through PostgreSQL's own backup_label and back."""
    label = 'o\'brien \\ 이관 전 "backup"'
    program("backup", "--label", label)

    assert program("show")["label"] == label
    assert program("list")["backups"][0]["label"] == label


@pytest.mark.parametrize("label", ["two\nlines", "여" * 400])
def test_a_label_that_postgresql_cannot_keep_is_refused_at_once(program: Program, label: str) -> None:
    """Lines of its own in backup_label could pass for PostgreSQL's; 1023 bytes are the most."""
    error = program("backup", "--label", label, code=2)["error"]

    assert "label" in error["message"]
    assert error["hint"]
    assert program.events == []


def test_pages_that_are_damaged_on_the_server_are_in_the_answer_and_the_exit_code(
    service: ThrowawayServer, program: Program, work_dir: Path
) -> None:
    """The backup is stored, verify does not take them for damage of its own, and the rest can be restored."""
    sql(service.dsn(), "CREATE TABLE damaged AS SELECT generate_series(1, 5000) AS id")
    ((path,),) = sql(service.dsn(), "SELECT pg_relation_filepath('damaged')")
    service.stop()
    with (service.data_directory / path).open("r+b") as file:
        for block in (2, 7):
            file.seek(block * 8192 + 5000)
            file.write(b"\xde\xad\xbe\xef")
    service.start(TEST_SETTINGS)
    try:
        answer = program("backup", "--mode", "stream", code=8)

        damaged = [{"path": path, "block": 2}, {"path": path, "block": 7}]
        assert answer["backups"][0]["damaged_pages"] == damaged
        assert any("checksum" in event.get("message", "") for event in program.events)
        assert program("show")["damaged_pages"] == damaged
        assert program("verify", "--all")["damage"] == []
        restored = program("restore", "--target-dir", work_dir / "copy")
        assert any("2 pages were damaged" in note for note in restored["notes"])
        run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "copy")
        with running_copy(work_dir / "copy", service.binaries) as copy:
            assert sql(copy.dsn(), "SELECT count(*) FROM t") == [(5000,)]
    finally:
        sql(service.dsn(), "DROP TABLE damaged")
