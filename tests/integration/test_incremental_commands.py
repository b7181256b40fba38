"""Incremental backups as people and programs see them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.incremental import quiet_server, relation_path, restart
from support.servers import sql

if TYPE_CHECKING:
    from pgkeep.postgres.server import ThrowawayServer
    from support.servers import MakeServer


class Program:
    """The real program, set up for a server."""

    def __init__(self, directory: Path, server: ThrowawayServer, backup: str = "") -> None:
        self._config = directory / "pgkeep.toml"
        self("init", server.dsn(), "--name", "auth", "--repository", str(directory / "repository"), "--yes")
        with self._config.open("a") as file:
            file.write(backup)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it prints on standard output; what else it says is in `messages`."""
        command = [sys.executable, "-m", "pgkeep", "--config", str(self._config), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert answer.returncode == code, answer
        self.messages = answer.stderr
        return answer.stdout

    def document(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The one JSON document."""
        document: dict[str, Any] = json.loads(self(*arguments, "--json", code=code))
        return document


@pytest.fixture
def server(make_server: MakeServer) -> ThrowawayServer:
    """A server of 18 with a table."""
    server = quiet_server(make_server, 18)
    sql(server.dsn(), "CREATE TABLE t AS SELECT i AS id, md5(i::text) AS w FROM generate_series(1, 50000) AS i")
    return server


def test_kind_parent_and_what_was_read_are_shown(server: ThrowawayServer, work_dir: Path) -> None:
    """By backup, list and show, for people and programs."""
    program = Program(work_dir, server)
    program("backup", "--mode", "stream")
    (first,) = program.document("list")["backups"]

    (second,) = program.document("backup", "--mode", "stream", "--nice", "5")["backups"]

    assert (first["kind"], first["parent"]) == ("full", None)
    assert "first backup of this cluster" in first["notes"][0]
    assert (second["kind"], second["parent"], second["mode"]) == ("incremental", first["id"], "stream")
    assert second["read_bytes"] < first["read_bytes"] / 2
    assert [line.split()[2] for line in program("list").splitlines()[1:]] == ["full", "incremental"]
    shown = program("show", second["id"])
    assert f"incremental: what changed since {first['id']}, over the replication protocol" in shown
    (third,) = program.document("backup", "--full", "--mode", "local")["backups"]
    assert (third["kind"], third["parent"], third["mode"]) == ("full", None, "local")
    assert "a full read was asked for" in program("show", "latest")


def test_auto_says_which_way_it_is_and_why(server: ThrowawayServer, work_dir: Path) -> None:
    """In a note while it runs, and in the backup."""
    program = Program(work_dir, server)

    (backup,) = program.document("backup")["backups"]

    assert backup["mode"] == "local"
    assert backup["notes"][0].startswith(f"pages come from {server.data_directory}, which is the server's own")
    assert backup["notes"][0] in program.messages


def test_a_page_that_no_wal_changed_is_an_alarm_with_an_exit_code(server: ThrowawayServer, work_dir: Path) -> None:
    """The backup is stored; show lists the page."""
    settings = 'backup = { mode = "stream", deep_check = 1 }\n'
    path = relation_path(server, "t")
    sql(server.dsn(), "CHECKPOINT")
    old = (server.data_directory / path).read_bytes()[:8192]
    sql(server.dsn(), "VACUUM (FREEZE) t")
    program = Program(work_dir, server, settings)
    program("backup")
    server.stop()
    with (server.data_directory / path).open("r+b") as file:
        file.write(old)
    restart(server)

    output = program("backup", code=8)

    assert "incremental" in output
    assert f"{path} block 0 differs from backup" in program.messages
    assert "1 pages changed on the server though no WAL tells of it" in program.messages
    assert program.document("show", "latest")["unexplained_pages"] == [{"path": path, "block": 0}]
    assert "unexplained pages" in program("show", "latest")


@pytest.mark.parametrize(
    ("major", "summarize", "status", "words"),
    [
        (15, False, "ok", "PostgreSQL 15 does not tell what changed"),
        (17, False, "warning", "summarize_wal is off"),
        (18, True, "ok", "summarize_wal is on"),
    ],
)
def test_check_says_whether_incrementals_are_possible(
    make_server: MakeServer, work_dir: Path, major: int, summarize: bool, status: str, words: str
) -> None:
    server = make_server(major, settings={"summarize_wal": True} if summarize else {})
    program = Program(work_dir, server)

    findings = {finding["name"]: finding for finding in program.document("check")["findings"]}

    finding = findings["incremental backups"]
    assert finding["status"] == status
    assert words in finding["message"]
    assert (finding["remedy"] is not None) == (status == "warning")
