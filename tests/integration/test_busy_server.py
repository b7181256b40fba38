"""Backups of servers that are busy, short of something, or go away; the server always comes first."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.errors import ServerError
from pgkeep.postgres.account import process_identity
from pgkeep.postgres.server import Server
from pgkeep.progress import Silent
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import backup, new_repository, restore, running_copy
from support.servers import run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository import Repository
    from support.servers import MakeServer


class Notes(Silent):
    """Keeps what a job has to say."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Kept."""
        self.notes.append(message)


class SlowBackup(threading.Thread):
    """A backup that takes a while, in a thread; `wait_until_sending`, then `failure` after the end."""

    def __init__(self, server: Server, repository: Repository) -> None:
        super().__init__(name="backup", daemon=True)
        self._server = server
        self._repository = repository
        self.failure: BaseException | None = None

    def run(self) -> None:
        """The backup."""
        try:
            backup(self._server.dsn(), self._repository, rate=4 << 20)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def wait_until_sending(self) -> None:
        """Return when the server has sent some of its files."""
        deadline = time.monotonic() + 30
        question = "SELECT coalesce(max(backup_streamed), 0) > 1000000 FROM pg_stat_progress_basebackup"
        while sql(self._server.dsn(), question) == [(False,)]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_backup_under_pgbench_is_consistent_to_the_last_transaction(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    """Four writers, WAL segments that fill every moment: no page is torn, no index disagrees, every sum is right."""
    server = make_server(postgres_major, wal_segment_size=1, settings={"max_wal_size": "32MB"})
    run_program(server, "pgbench", "--initialize", "--scale=4", "--quiet", server.dsn())
    load: list[str | Path] = [server.binaries.path("pgbench"), "--client=4", "--time=60", "--no-vacuum", server.dsn()]
    writers = subprocess.Popen(
        load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **process_identity(server.account)
    )
    repository = new_repository(work_dir / "repository")
    try:
        while sql(server.dsn(), "SELECT count(*) < 200 FROM pgbench_history") == [(True,)]:
            assert writers.poll() is None
        ((before,),) = sql(server.dsn(), "SELECT count(*) FROM pgbench_history")
        manifest = backup(server.dsn(), repository, rate=50 << 20)
        assert writers.poll() is None
    finally:
        writers.terminate()
        writers.wait()
    assert len(manifest.wal.segments) > 1

    restore(repository, work_dir / "restored")

    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        sums = sql(
            copy.dsn(),
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT count(*) FROM pgbench_history)",
        )[0]
        assert len(set(sums[:4])) == 1
        assert sums[4] >= before
        run_program(
            copy, "pg_amcheck", f"--maintenance-db={copy.dsn()}", "--all", "--install-missing", "--heapallindexed"
        )
    run_program(server, "pg_checksums", "--check", "-D", work_dir / "restored")


def test_a_server_can_be_shut_down_during_a_backup(make_server: MakeServer, work_dir: Path) -> None:
    """A fast shutdown waits for no backup; that ends with one clear error, and the next succeeds."""
    server = make_server(17)
    repository = new_repository(work_dir / "repository")
    running = SlowBackup(server, repository)
    running.start()
    running.wait_until_sending()

    begun = time.monotonic()
    server.stop("fast")
    stopped = time.monotonic() - begun
    running.join(30)

    assert stopped < 10
    assert isinstance(running.failure, ServerError)
    assert running.failure.exit_code == 4
    assert repository.catalog.names() == []
    server.start({"fsync": False})
    backup(server.dsn(), repository)
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []


def test_two_wal_senders_are_enough_for_backup_after_backup(make_server: MakeServer, work_dir: Path) -> None:
    """As ``check`` promises: what a backup has opened is closed before it opens more."""
    server = make_server(18, settings={"max_wal_senders": 2})
    repository = new_repository(work_dir / "repository")

    for _ in range(5):
        backup(server.dsn(), repository)

    assert len(repository.catalog.names()) == 5


def test_a_server_without_a_free_slot_is_backed_up_all_the_same(make_server: MakeServer, work_dir: Path) -> None:
    """With a note: its WAL must be streamed faster than the server recycles it."""
    server = make_server(15, settings={"max_replication_slots": 0})
    repository = new_repository(work_dir / "repository")
    notes = Notes()

    run_backup(BackupRequest(cluster="test", dsn=server.dsn()), repository, notes)

    assert any("no replication slot" in note for note in notes.notes)
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []


def test_a_standby_that_is_promoted_during_its_backup_fails_it(
    make_server: MakeServer, binaries_of: Callable[[int], ServerBinaries], work_dir: Path
) -> None:
    """Its WAL would be of two timelines; the next backup is of the new one."""
    primary = make_server(15)
    repository = new_repository(work_dir / "repository")
    backup(primary.dsn(), repository)
    place = work_dir / "standby"
    restore(repository, place, settings={"primary_conninfo": primary.dsn(), "recovery_target": ""})
    (place / "recovery.signal").rename(place / "standby.signal")
    with Server(place, binaries_of(15)) as standby:
        standby.start({"fsync": False})
        running = SlowBackup(standby, repository)
        running.start()
        running.wait_until_sending()

        sql(standby.dsn(), "SELECT pg_promote()")
        running.join(60)

        assert isinstance(running.failure, ServerError)
        assert running.failure.exit_code == 4
        assert len(repository.catalog.names()) == 1
        assert backup(standby.dsn(), repository).timeline == 2
