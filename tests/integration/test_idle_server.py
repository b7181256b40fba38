"""A time at which nothing happened is reachable, too, where the receiver heard from the server after it."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.cli.main import execute
from pgkeep.wal.stamps import receiver_stamps
from support.servers import sql
from support.wal import ReceiverThread, Setup, current_lsn, make_setup, until

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.postgres.server import ThrowawayServer
    from support.servers import MakeServer


@pytest.fixture
def server(make_server: MakeServer, postgres_major: int) -> ThrowawayServer:
    made = make_server(postgres_major, settings={"autovacuum": False, "wal_sender_timeout": "2s"})
    sql(made.dsn(), "CREATE TABLE words (word text)")
    return made


def quiet_moment(server: ThrowawayServer) -> datetime:
    """Now, by the server's clock."""
    ((moment,),) = sql(server.dsn(), "SELECT clock_timestamp()")
    assert isinstance(moment, datetime)
    return moment


def plan(setup: Setup, moment: datetime, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    copy = setup.path.parent / "copy"
    code = execute(
        [
            "--config",
            str(setup.path),
            "restore",
            "--to",
            moment.isoformat(),
            "--target-dir",
            str(copy),
            "--plan",
            "--json",
        ]
    )
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, document


def test_the_quiet_after_the_last_commit_can_be_restored_to(
    server: ThrowawayServer, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the server was heard, also once server and receiver are gone; a later moment is refused."""
    setup = make_setup(work_dir / "setup", server.dsn())
    run_backup(BackupRequest(cluster="auth", dsn=server.dsn()), setup.repository())
    with ReceiverThread(setup) as receiver:
        sql(server.dsn(), "INSERT INTO words VALUES ('last')")
        end = current_lsn(server.dsn())
        receiver.wait_shipped(end)
        moment = quiet_moment(server)
        until(
            lambda: any(stamp.time > moment for stamp in receiver_stamps(setup.spool)),
            "the receiver to hear of the quiet",
        )
    server.stop("immediate")

    code, document = plan(setup, moment, capsys)

    assert code == 0, document
    assert document["plan"]["recovery"]["stop_lsn"] == str(end)
    code, refusal = plan(setup, moment + timedelta(hours=1), capsys)
    assert code == 11
    assert "--latest" in refusal["error"]["hint"] or "--to" in refusal["error"]["hint"]


def test_no_commit_is_missing_before_a_moment_that_is_called_complete(make_server: MakeServer, work_dir: Path) -> None:
    """Commits in short and in longer intervals than the server's keepalives."""
    server = make_server(17, settings={"wal_sender_timeout": "2s", "track_commit_timestamp": True, "autovacuum": False})
    sql(server.dsn(), "CREATE TABLE words (word text)")
    setup = make_setup(work_dir / "setup", server.dsn())
    commits, stamps = [], set()
    pauses = Random(17)
    with ReceiverThread(setup) as receiver:
        for _ in range(6):
            deadline = time.monotonic() + pauses.choice([0.1, 1.5, 2.5])
            while time.monotonic() < deadline:
                stamps.update(receiver_stamps(setup.spool))
                time.sleep(0.05)
            ((xid,),) = sql(server.dsn(), "INSERT INTO words VALUES ('x') RETURNING pg_current_xact_id()::xid::text")
            ((moment,),) = sql(server.dsn(), f"SELECT pg_xact_commit_timestamp('{xid}')")
            commits.append((moment, current_lsn(server.dsn())))
        receiver.wait_shipped(current_lsn(server.dsn()))

    assert len(stamps) > 1
    for stamp in stamps:
        assert all(lsn <= stamp.lsn for moment, lsn in commits if moment <= stamp.time)
