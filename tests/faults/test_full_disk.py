"""Disks that fill up and networks that break: one clear error, nothing lost, and the next run succeeds."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.demo.workload import load
from pgkeep.errors import ServerError, StoreError, TargetError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.restore import plan as restore_plan
from pgkeep.verify import VerifyRequest, run_verify
from support.disks import small_disk
from support.jobs import SMALL, backup, new_repository, restore
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository import Repository


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server with some 60 MB, on its socket and on 127.0.0.1."""
    with ThrowawayServer(binaries_of(18), loopback=True, parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        load(server.dsn(), users=2000)
        yield server


def _expect_whole(repository: Repository) -> None:
    assert run_verify(VerifyRequest(max_age_seconds=0), repository.store, repository).damage == []
    assert list(repository.store.list("leases/")) == []


def test_a_full_repository_disk_is_one_clear_error_and_the_next_backup_succeeds(
    service: ThrowawayServer, work_dir: Path
) -> None:
    """The disk is full in the middle of a backup; with room again, it goes on."""
    with small_disk(work_dir / "disk", "60M"):
        ballast = work_dir / "disk" / "ballast"
        ballast.write_bytes(bytes(57 << 20))
        repository = new_repository(work_dir / "disk" / "repository", SMALL)

        with pytest.raises(StoreError, match="No space left") as caught:
            backup(service.dsn(), repository)

        assert caught.value.exit_code == 9
        assert caught.value.hint
        assert repository.catalog.names() == []
        ballast.unlink()
        _expect_whole(repository)
        backup(service.dsn(), repository)
        _expect_whole(repository)
        restore(repository, work_dir / "restored")
        run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")


def test_a_target_without_room_is_refused_before_anything_is_written(service: ThrowawayServer, work_dir: Path) -> None:
    """The plan says how much is needed and how much is free."""
    repository = new_repository(work_dir / "repository", SMALL)
    backup(service.dsn(), repository)
    with small_disk(work_dir / "disk", "20M"):
        with pytest.raises(TargetError, match="no room"):
            restore(repository, work_dir / "disk" / "restored")

        assert list((work_dir / "disk").iterdir()) == []


def test_a_target_disk_that_fills_up_all_the_same_is_a_clear_error(
    service: ThrowawayServer, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made to overlook it, as when something else takes the room; the half restore cannot start."""
    repository = new_repository(work_dir / "repository", SMALL)
    backup(service.dsn(), repository)
    monkeypatch.setattr(restore_plan, "_room", lambda *_: {})
    with small_disk(work_dir / "disk", "40M"):
        with pytest.raises(TargetError, match="No space left") as caught:
            restore(repository, work_dir / "disk" / "restored")

        assert caught.value.hint
        assert not (work_dir / "disk" / "restored" / "global" / "pg_control").exists()


class Wire:
    """A TCP relay to a server that can be cut or held up; connections are counted in the order they are made."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.passed: list[int] = []
        self.cut_after: dict[int, int] = {}
        self.stall: float = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number = len(self.passed)
            self.passed.append(0)
            threading.Thread(target=self._relay, args=(client, number), daemon=True).start()

    def _relay(self, client: socket.socket, number: int) -> None:
        # either side may go away at any time: that is what this is for
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is server:
                        self.passed[number] += len(data)
                        if self.passed[number] > self.cut_after.get(number, 1 << 60):
                            return
                        if self.stall and self.passed[number] > 1 << 20:
                            time.sleep(self.stall)
                            self.stall = 0
                    (server if source is client else client).sendall(data)


@pytest.fixture
def wire(service: ThrowawayServer) -> Iterator[Wire]:
    """A relay before the service."""
    wire = Wire(service.port)
    yield wire
    wire.close()


def _request(wire: Wire) -> BackupRequest:
    return BackupRequest(
        cluster="test", mode="stream", dsn=f"host=127.0.0.1 port={wire.port} user=postgres dbname=postgres"
    )


# connections: 0 asks who the server is, 1 streams WAL, 2 is the receiver's
@pytest.mark.parametrize(("number", "size"), [(2, 5 << 20), (2, 300), (1, 300)], ids=["data", "at once", "WAL"])
def test_a_connection_that_breaks_fails_the_backup_and_the_next_succeeds(
    service: ThrowawayServer, wire: Wire, work_dir: Path, number: int, size: int
) -> None:
    """In the middle of the data, right at the start, or on the WAL's connection while the data flow."""
    repository = new_repository(work_dir / "repository", SMALL)
    wire.cut_after[number] = size
    begun = time.monotonic()

    with pytest.raises(ServerError) as caught:
        run_backup(_request(wire), repository)

    assert time.monotonic() - begun < 30
    assert caught.value.exit_code == 4
    assert repository.catalog.names() == []
    wire.cut_after.clear()
    run_backup(_request(wire), repository)
    _expect_whole(repository)
    deadline = time.monotonic() + 20
    while sql(service.dsn(), "SELECT slot_name FROM pg_replication_slots"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_connection_that_stalls_is_waited_for(service: ThrowawayServer, wire: Wire, work_dir: Path) -> None:
    """A pause of two seconds is no failure."""
    repository = new_repository(work_dir / "repository", SMALL)
    wire.stall = 2.0

    manifest = run_backup(_request(wire), repository)

    assert (manifest.finished - manifest.started).total_seconds() > 2
    _expect_whole(repository)
