"""``pgkeep wal status``: on real servers, what is held and what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.cli.main import execute
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import parse_segment_name
from support.servers import sql
from support.stored_wal import store_wal
from support.wal import ReceiverThread, Setup, current_lsn, make_setup, until, write_wal

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.postgres.server import ThrowawayServer
    from support.servers import MakeServer

SETTINGS: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "max_wal_size": "2GB", "autovacuum": False}


@pytest.fixture
def server(make_server: MakeServer, postgres_major: int) -> ThrowawayServer:
    made = make_server(postgres_major, settings=SETTINGS)
    sql(made.dsn(), "CREATE TABLE filling (content text)")
    return made


@pytest.fixture
def setup(server: ThrowawayServer, work_dir: Path) -> Setup:
    made = make_setup(work_dir / "setup", server.dsn())
    with made.path.open("a") as file:
        file.write('objectives = { rpo = "1s" }\n')
    return made


class Status:
    """The command's answer."""

    def __init__(self, setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
        self.code = execute(["--config", str(setup.path), "wal", "status", "--json"])
        self.document: dict[str, Any] = json.loads(capsys.readouterr().out)
        execute(["--config", str(setup.path), "wal", "status"])
        self.text = capsys.readouterr().out

    @property
    def main(self) -> dict[str, Any]:
        """What the repository holds."""
        found: dict[str, Any] = self.document["repositories"][0]
        return found

    def finding(self, name: str) -> dict[str, Any]:
        """The finding whose name begins so."""
        found = [finding for finding in self.document["findings"] if finding["name"].startswith(name)]
        assert found, self.document["findings"]
        answer: dict[str, Any] = found[0]
        return answer


def back_up(setup: Setup) -> None:
    run_backup(BackupRequest(cluster="auth", dsn=setup.cluster.dsn), setup.repository())


def test_a_cluster_whose_wal_nobody_takes_is_a_failure(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    status = Status(setup, capsys)
    assert status.code == 5
    assert status.finding("receiver")["status"] == "failed"
    assert "pgkeep wal receive" in status.finding("receiver")["remedy"]
    assert status.finding("repository main")["message"] == "it holds no WAL of this cluster"
    assert not status.document["ok"]


def test_all_is_well_while_a_receiver_streams(
    server: ThrowawayServer, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(setup)
    with ReceiverThread(setup) as receiver:
        write_wal(server.dsn(), 1)
        receiver.wait_shipped(current_lsn(server.dsn()))
        until((setup.spool / "status.json").exists, "the receiver's status")
        status = Status(setup, capsys)
        assert status.document["ok"], status.document["findings"]
        assert status.code == 0
        assert status.finding("receiver")["status"] == "ok"
        assert status.finding("newest WAL in main")["status"] == "ok"
        assert status.document["receiver"]["running"]
        assert status.document["server"]["slot"]["active"]
        newest = status.main["newest"]
        assert LSN.parse(newest["lsn"]) >= receiver.receiver.shippers[0].shipped.lsn  # type: ignore[union-attr]
        assert newest["age_seconds"] < 30
        ranges = status.main["timelines"][0]["ranges"]
        assert ranges[-1]["end_lsn"] == newest["lsn"]
        assert f"LSN {newest['lsn']} on timeline 1" in status.text


def test_wal_that_falls_behind_the_objective_and_a_slot_that_holds_it_back_are_told(
    server: ThrowawayServer, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(setup)
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(current_lsn(server.dsn()))
    write_wal(server.dsn(), 1)
    sql(server.dsn(), "SELECT pg_switch_wal(); CREATE TABLE more (); SELECT pg_switch_wal(); SELECT pg_sleep(1.2)")

    status = Status(setup, capsys)

    assert status.code == 5
    assert status.finding("receiver")["status"] == "failed"
    slot = status.finding("slot pgkeep_auth")
    assert slot["status"] == "warning"
    assert "nobody uses it" in slot["message"]
    assert "pg_drop_replication_slot('pgkeep_auth')" in slot["remedy"]
    newest = status.finding("newest WAL in main")
    assert newest["status"] == "failed"
    assert "the objective is 1.00 s" in newest["message"]
    assert status.main["newest"]["behind_bytes"] > 16 << 20
    assert status.document["server"]["slot"]["retained_bytes"] > 16 << 20


def test_an_archiver_that_fails_is_told(
    make_server: MakeServer, postgres_major: int, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    works = work_dir / "works"
    works.touch()
    archiving: dict[str, str | int | bool] = {"archive_mode": True, "archive_command": f"test -e {works}"}
    server = make_server(postgres_major, settings={**SETTINGS, **archiving})
    setup = make_setup(work_dir / "setup", server.dsn())
    back_up(setup)
    question = "SELECT archived_count > 0 AND last_failed_time IS NULL FROM pg_stat_archiver"
    until(lambda: sql(server.dsn(), question) == [(True,)], "a segment that is archived")
    assert Status(setup, capsys).finding("archiver")["status"] == "ok"

    works.unlink()
    sql(server.dsn(), "CREATE TABLE something (); SELECT pg_switch_wal()")
    until(lambda: sql(server.dsn(), "SELECT failed_count > 0 FROM pg_stat_archiver") == [(True,)], "a failure")
    status = Status(setup, capsys)
    assert status.code == 4
    assert "archive_command failed for 0000" in status.finding("archiver")["message"]


def test_a_gap_is_a_warning_with_a_backup_behind_it_and_a_failure_without(
    server: ThrowawayServer, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(setup)
    sql(server.dsn(), "SELECT pg_switch_wal(); CREATE TABLE lost ()")
    ((lost,),) = sql(server.dsn(), "SELECT pg_walfile_name(pg_current_wal_lsn())")
    sql(server.dsn(), "SELECT pg_switch_wal(); CREATE TABLE behind ()")
    store_wal(server, setup.repository(), leave_out={lost})
    begin = parse_segment_name(lost, 16 << 20)[1]

    status = Status(setup, capsys)
    gap = status.finding("gap in main")
    assert gap["status"] == "failed"
    assert gap["remedy"] == "pgkeep backup"
    assert status.main["timelines"][0]["gaps"] == [{"start_lsn": str(begin), "end_lsn": str(LSN(begin + (16 << 20)))}]
    assert "missing" in status.text

    back_up(setup)
    assert Status(setup, capsys).finding("gap in main")["status"] == "warning"


def test_a_server_that_is_down_leaves_its_questions_open_and_the_repository_is_shown(
    server: ThrowawayServer, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(setup)
    store_wal(server, setup.repository())
    server.stop()

    status = Status(setup, capsys)

    assert status.finding("server")["status"] == "unknown"
    assert status.finding("receiver")["status"] == "unknown"
    assert status.document["server"] is None
    assert status.main["newest"]["age_seconds"] >= 0
    assert status.main["timelines"][0]["ranges"]


def test_a_repository_that_cannot_be_opened_is_a_failure_of_its_own(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.place().rename(setup.directory / "moved away")
    status = Status(setup, capsys)
    assert status.finding("repository main")["status"] == "failed"
    assert status.main["error"]
