"""The recovery window, held against what the server says of itself."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgkeep.cli.main import execute
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import parse_segment_name
from pgkeep.wal.inventory import WalSpan
from pgkeep.wal.overview import Overview, read_overview
from support.jobs import backup
from support.servers import sql
from support.stored_wal import store_wal
from support.wal import Setup, make_setup

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.postgres.server import Server, ThrowawayServer
    from support.servers import MakeServer

SETTINGS: dict[str, str | int | bool] = {
    "wal_keep_size": "1GB",
    "max_wal_size": "2GB",
    "track_commit_timestamp": True,
    "autovacuum": False,
}


@pytest.fixture
def server(make_server: MakeServer, postgres_major: int) -> ThrowawayServer:
    made = make_server(postgres_major, settings=SETTINGS)
    sql(made.dsn(), "CREATE TABLE words (word text)")
    return made


@pytest.fixture
def setup(server: ThrowawayServer, work_dir: Path) -> Setup:
    made = make_setup(work_dir / "setup", server.dsn())
    with made.path.open("a") as file:
        file.write('time_zone = "Asia/Seoul"\n')
    return made


def write(server: Server, word: str) -> datetime:
    """A transaction; when it ended, by the server's own record."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        ((xid,),) = connection.execute(
            "INSERT INTO words VALUES (%s) RETURNING pg_current_xact_id()::xid::text", [word]
        ).fetchall()
        ((moment,),) = connection.execute("SELECT pg_xact_commit_timestamp(%s::xid)", [xid]).fetchall()
    time.sleep(0.002)
    assert isinstance(moment, datetime)
    return moment


def overview_of(setup: Setup) -> Overview:
    repository = setup.repository()
    manifests = list(repository.catalog.read_all())
    return read_overview(repository, manifests[0].system_identifier, manifests)


def test_the_window_is_what_the_server_wrote_since_the_backup(server: ThrowawayServer, setup: Setup) -> None:
    before = write(server, "before")
    manifest = backup(server.dsn(), setup.repository())
    first = write(server, "first")
    ((point,),) = sql(server.dsn(), "SELECT pg_create_restore_point('a moment')::text")
    last = write(server, "last")
    end = store_wal(server, setup.repository())

    overview = overview_of(setup)

    (window,) = overview.windows
    assert (window.timeline, window.start_lsn, window.end_lsn) == (1, manifest.stop_lsn, end)
    assert before <= window.start_time <= first < last <= window.end_time
    assert (window.end_time - last).total_seconds() < 60
    assert [(start.backup, start.lsn) for start in window.starts] == [(manifest.id, manifest.stop_lsn)]
    assert window.gap is None
    assert [(p.name, p.lsn, p.timeline, p.reachable) for p in overview.restore_points] == [
        ("a moment", LSN.parse(point), 1, True)
    ]


def test_a_missing_segment_ends_a_window_and_the_next_backup_begins_one(server: ThrowawayServer, setup: Setup) -> None:
    backup(server.dsn(), setup.repository())
    last_before = write(server, "reachable")
    sql(server.dsn(), "SELECT pg_switch_wal()")
    sql(server.dsn(), "INSERT INTO words VALUES ('lost'); SELECT pg_create_restore_point('lost')")
    ((lost,),) = sql(server.dsn(), "SELECT pg_walfile_name(pg_current_wal_lsn())")
    sql(server.dsn(), "SELECT pg_switch_wal()")
    unreachable = write(server, "behind the gap")
    second = backup(server.dsn(), setup.repository())
    after = write(server, "reachable again")
    end = store_wal(server, setup.repository(), leave_out={lost})

    overview = overview_of(setup)

    size = second.wal.segment_size
    begin = parse_segment_name(lost, size)[1]
    early, late = overview.windows
    assert early.gap == WalSpan(begin, LSN(begin + size))
    assert (early.end_lsn, early.end_time) == (begin, last_before)
    assert (late.start_lsn, late.end_lsn, late.starts[0].backup) == (second.stop_lsn, end, second.id)
    assert unreachable <= late.start_time <= after <= late.end_time
    # its record is gone with its segment
    assert overview.restore_points == []


def run(setup: Setup, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = execute(["--config", str(setup.path), *arguments])
    answer = capsys.readouterr()
    assert code == 0, answer.err
    return answer.out


def test_the_command_shows_the_window_in_utc_and_in_the_zone_of_the_cluster(
    server: ThrowawayServer, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = backup(server.dsn(), setup.repository())
    repository = setup.repository()
    sql(server.dsn(), "SELECT pg_create_restore_point('a moment')")
    write(server, "last")
    end = store_wal(server, repository)
    # the name of a cluster is that of its backups
    setup.path.write_text(setup.path.read_text().replace("[cluster.auth]", "[cluster.test]"))

    text = run(setup, capsys, "list", "--window")
    document: dict[str, Any] = json.loads(run(setup, capsys, "list", "--window", "--json"))
    points = run(setup, capsys, "list", "--restore-points")

    (cluster,) = document["clusters"]
    (window,) = cluster["windows"]
    assert (window["start_lsn"], window["end_lsn"]) == (str(LSN(manifest.stop_lsn)), str(end))
    assert window["starts"][0]["backup"] == manifest.id
    start = datetime.fromisoformat(window["start_time"])
    assert start.utcoffset() is not None
    assert "FROM (Asia/Seoul)" in text
    assert "+09:00" in text
    assert start.strftime("%Y-%m-%d %H:%M:%S") in text
    assert manifest.id in text
    assert "a moment" in points
    assert manifest.id not in points
    assert cluster["restore_points"][0]["reachable"]
