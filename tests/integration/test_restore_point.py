"""Restore points on real servers: named, waited for until the repositories hold them, refused where they cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.errors import ServerError, ServerSettingError, UsageError
from pgkeep.opening import open_repository
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.lsn import LSN
from pgkeep.repository import Repository
from pgkeep.restore.restore_point import RestorePoint, check_restore_point_name, create_restore_point
from support.servers import TEST_SETTINGS, sql
from support.wal import ReceiverThread, Setup, make_setup, reach_of, standby_of, system_identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.server import ThrowawayServer
    from support.servers import MakeServer


@pytest.fixture(params=[18], ids=lambda major: f"pg{major}")
def primary(request: pytest.FixtureRequest, make_server: MakeServer) -> ThrowawayServer:
    return make_server(request.param, wal_segment_size=1)


@pytest.fixture
def setup(primary: ThrowawayServer, work_dir: Path) -> Setup:
    return make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms")


def create(setup: Setup, name: str = "before-migration", *, wait: float = 20) -> RestorePoint:
    config, cluster = setup.config, setup.cluster
    repositories: list[tuple[str, Repository]] = [
        (settings.name, open_repository(settings)) for settings in config.repositories_of(cluster)
    ]
    return create_restore_point(name, cluster, repositories, wait=wait)


@pytest.mark.parametrize("primary", [15, 18], indirect=True, ids=lambda major: f"pg{major}")
def test_a_receiver_brings_it_within_seconds(setup: Setup, primary: ThrowawayServer) -> None:
    """The segment that holds it is not closed for it; a second one of the same name is warned of."""
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(LSN.parse(str(sql(primary.dsn(), "SELECT pg_current_wal_flush_lsn()::text")[0][0])))
        before = sql(primary.dsn(), "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        point = create(setup)
        same_segment = sql(primary.dsn(), "SELECT pg_walfile_name(pg_current_wal_insert_lsn())") == before
        again = create(setup)

    assert (point.durable, point.kept, point.timeline, same_segment) == ({"main": True}, True, 1, True)
    assert reach_of(setup, system_identifier(primary.dsn()), point.lsn - 1) >= point.lsn
    assert any("there is no backup" in note or "nothing can be restored" in note for note in point.notes)
    assert not any("already" in note for note in point.notes)
    assert any("is a restore point 'before-migration' already" in note for note in again.notes)


class Archiver(threading.Thread):
    """Stores in the repository what the server's archive_command left in a directory."""

    def __init__(self, setup: Setup, directory: Path, identifier: int) -> None:
        super().__init__()
        self.ending = threading.Event()
        self._archive = setup.repository().wal(identifier)
        self._directory = directory

    def run(self) -> None:
        while not self.ending.wait(0.1):
            for path in self._directory.glob("*.done"):
                self._archive.put(path.stem, path.read_bytes())
                path.unlink()


@pytest.fixture
def archived(primary: ThrowawayServer, setup: Setup, work_dir: Path) -> Iterator[Setup]:
    """The server archives, and what it archives arrives."""
    directory = work_dir / "archived"
    directory.mkdir()
    give_to(server_account(), directory)
    primary.stop()
    command = f"cp %p {directory}/%f && mv {directory}/%f {directory}/%f.done"
    primary.start({**TEST_SETTINGS, "archive_mode": True, "archive_command": command})
    archiver = Archiver(setup, directory, system_identifier(primary.dsn()))
    archiver.start()
    yield setup
    archiver.ending.set()
    archiver.join()


def test_where_wal_is_archived_the_segment_is_closed_so_that_it_comes(archived: Setup) -> None:
    point = create(archived)

    assert (point.durable, point.kept) == ({"main": True}, True)


def test_a_role_that_may_not_close_the_segment_is_told_what_it_lacks(archived: Setup, primary: ThrowawayServer) -> None:
    """And one that may not create the point at all."""
    sql(primary.dsn(), "CREATE ROLE modest LOGIN")
    modest = make_setup(archived.directory / "modest", primary.dsn(user="modest"))

    with pytest.raises(ServerSettingError, match=r"role 'modest' at .* may not create restore points") as caught:
        create(modest)
    assert "GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text)" in str(caught.value.hint)

    sql(primary.dsn(), "GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO modest")
    point = create(modest, wait=0.5)
    assert (point.kept, point.durable) == (False, {"main": False})
    assert any("once its segment is full" in note for note in point.notes)


def test_where_nothing_brings_wal_nobody_waits(setup: Setup) -> None:
    point = create(setup, wait=300)

    assert not point.kept
    assert any("nothing brings WAL to the repositories now" in note for note in point.notes)


def test_a_standby_and_a_server_that_writes_minimal_wal_are_refused(
    setup: Setup, primary: ThrowawayServer, work_dir: Path
) -> None:
    with standby_of(primary, work_dir / "standby") as standby, pytest.raises(ServerError, match="is a standby"):
        create(make_setup(work_dir / "second", standby.dsn()))
    primary.stop()
    primary.start({**TEST_SETTINGS, "wal_level": "minimal", "max_wal_senders": 0})

    with pytest.raises(ServerSettingError, match=r"wal_level at .* is minimal"):
        create(setup)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", " a", "x" * 64, "ß" * 32])
def test_names_that_no_one_could_go_back_to_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a restore point's name"):
        check_restore_point_name(name)


def test_the_command_ends_with_nine_where_it_is_not_safe_in_time(setup: Setup) -> None:
    """With --wait 0 that is no failure."""

    def pgkeep(*arguments: str) -> tuple[int, dict[str, Any]]:
        words = [sys.executable, "-m", "pgkeep", "--config", str(setup.path), "restore-point", *arguments, "--json"]
        answer = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        return answer.returncode, json.loads(answer.stdout)

    code, document = pgkeep("here", "--wait", "0.2")
    assert (code, document["kept"], document["name"]) == (9, False, "here")
    assert pgkeep("there", "--wait", "0")[0] == 0
