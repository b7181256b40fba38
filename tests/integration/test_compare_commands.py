"""The commands around comparisons and objectives, as an operator types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgkeep.policy.heartbeat import beat, read_beat
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from support.servers import MakeServer, sql
from support.wal import WAL_SETTINGS


class Operator:
    """Types commands."""

    def __init__(self, directory: Path, dsn: str, objectives: str = "") -> None:
        self.directory = directory
        self._config = directory / "pgkeep.toml"
        Repository.create(open_store(str(directory / "repository")), KeyFile.generate(directory / "pgkeep.key"))
        self._config.write_text(
            f'[repository.main]\nurl = "file://{directory}/repository"\nkey = "file:{directory}/pgkeep.key"\n'
            f"[cluster.books]\ndsn = {json.dumps(dsn)}\n"
            f'wal = {{ spool = "{directory}/spool" }}\nobjectives = {{ {objectives} }}\n'
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        command = [sys.executable, "-m", "pgkeep", "--config", str(self._config), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def json(self, *words: str) -> dict[str, Any]:
        """The document of a command that succeeds."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@pytest.fixture
def source(make_server: MakeServer) -> ThrowawayServer:
    """A server with small segments and a table."""
    server = make_server(18, wal_segment_size=1, settings=WAL_SETTINGS)
    sql(server.dsn(), "CREATE TABLE books AS SELECT n AS id, 'book ' || n AS title FROM generate_series(1, 1000) n")
    sql(server.dsn(), "ALTER TABLE books ADD PRIMARY KEY (id)")
    return server


@pytest.fixture
def stop_later() -> Iterator[Callable[[Server], None]]:
    """Servers that a command left running."""
    servers: list[Server] = []
    yield servers.append
    for server in servers:
        server.stop("immediate")


def test_a_moment_is_marked_restored_and_compared_in_three_commands(
    source: ThrowawayServer, work_dir: Path, stop_later: Callable[[Server], None]
) -> None:
    operator = Operator(work_dir, source.dsn(), 'heartbeat = "100ms"')
    assert "has no backup" in operator.run("backup", "--if-due").stdout
    moment = work_dir / "moment.json"
    begun = operator.json("compare", "--begin", str(moment))
    assert (begun["mode"], begun["tables"], begun["rows"]) == ("exact", 1, 1000)
    sql(source.dsn(), "UPDATE books SET title = 'after the moment' WHERE id > 10")

    operator.json("wal", "receive", "--until-lsn", begun["lsn"])
    assert read_beat(source.dsn()) is not None, "the receiver commits heartbeats"

    target = work_dir / "restored"
    restored = operator.json("restore", "--target-dir", str(target), "--to-name", begun["restore_point"], "--start")
    stop_later(Server(target, source.binaries))
    dsn = restored["recovery"]["dsn"]
    same = operator.json("compare", "--moment", str(moment), "--restored", dsn)
    assert (same["mode"], same["equal"], same["tables"][0]["rows"]) == ("exact", True, 1000)

    sql(dsn, "UPDATE books SET title = 'wrong' WHERE id = 7")
    done = operator.run("compare", "--moment", str(moment), "--restored", dsn)
    assert done.returncode == 8
    assert "postgres.public.books differs" in done.stdout
    assert "restored  (7,wrong)" in done.stdout


def test_status_shows_loss_and_restore_time_against_the_objectives(source: ThrowawayServer, work_dir: Path) -> None:
    operator = Operator(work_dir, source.dsn(), 'rpo = "1min", rto = "10min"')
    operator.json("backup")
    sql(source.dsn(), "SELECT pg_switch_wal()")
    operator.json("wal", "receive", "--until-lsn", sql(source.dsn(), "SELECT pg_current_wal_flush_lsn()::text")[0][0])

    objectives = operator.json("status")["objectives"]
    (repository,) = objectives["repositories"]
    assert (objectives["rpo_seconds"], objectives["rto_seconds"], objectives["backup_due"]) == (60.0, 600.0, False)
    assert repository["loss_seconds"] < 60
    restore = repository["restore"]
    assert 0 < restore["low_seconds"] < restore["seconds"] < restore["high_seconds"]
    assert restore["measured_restores"] == 0
    text = operator.run("status").stdout
    assert "loss now, repository main" in text
    assert "from built-in rates, which no drill has measured" in text
    assert operator.json("backup", "--if-due")["due"] is False
    assert len(operator.json("list")["backups"]) == 1


def test_a_heartbeat_is_a_row_and_where_none_may_be_written_a_commit_all_the_same(database: str) -> None:
    with connect_sql(database) as connection:
        first = beat(connection)
        second = beat(connection)
        assert first is not None
        assert second is not None
        assert second > first
        assert read_beat(database) == second
        assert sql(database, "SELECT count(*) FROM pgkeep.heartbeat") == [(1,)]
        sql(database, "DROP ROLE IF EXISTS only_reads; CREATE ROLE only_reads; SET ROLE only_reads")
        connection.execute("SET ROLE only_reads")
        before = sql(database, "SELECT pg_current_wal_insert_lsn()::text")[0][0]
        assert beat(connection) is not None
        assert read_beat(database) == second, "no row was written"
        assert sql(database, "SELECT pg_current_wal_insert_lsn() > %s::pg_lsn", [before]) == [(True,)]
    sql(database, "DROP ROLE only_reads")


@pytest.mark.parametrize("words", [(), ("--begin", "a", "--restored", "b"), ("--restored", "dbname=x")])
def test_steps_that_do_not_go_together_are_refused(work_dir: Path, words: tuple[str, ...]) -> None:
    done = Operator(work_dir, "host=/nowhere").run("compare", *words)
    assert done.returncode == 2
    assert "a comparison has two steps" in done.stderr
