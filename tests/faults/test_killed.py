"""Sudden death: whatever kills a backup or a restore, and whenever, nothing is lost and nothing is half done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.config import load_config
from pgkeep.demo.workload import Client, load
from pgkeep.opening import open_repository
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import Repository
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import restore, running_copy
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = 50


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server whose backup takes a second or so."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        load(server.dsn(), users=4000)
        yield server


class Program:
    """The real program, with a configuration and a repository of its own."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.directory = directory
        self.config = directory / "pgkeep.toml"
        init = ["init", dsn, "--name", "auth", "--repository", f"file://{directory}/repository", "--yes"]
        assert self.run(*init).returncode == 0

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, as a shell starts a job."""
        command = [sys.executable, "-m", "pgkeep", "--config", str(self.config), *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def repository(self) -> Repository:
        """The repository, opened here."""
        return open_repository(load_config(self.config).repository())

    def kill_after(self, seconds: float, number: signal.Signals, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start a command and send it a signal some time later."""
        process = self.start(*arguments)
        time.sleep(seconds)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.fixture
def program(work_dir: Path, service: ThrowawayServer) -> Program:
    """The program, set up for the service."""
    return Program(work_dir, service.dsn())


def _duration_of_a_backup(program: Program) -> float:
    begun = time.monotonic()
    assert program.run("backup").returncode == 0
    return time.monotonic() - begun


def _expect_clean_server(service: ThrowawayServer) -> None:
    """No slot and no sender of ours is left, soon after a death."""
    deadline = time.monotonic() + 20
    while True:
        left = sql(
            service.dsn(), "SELECT (SELECT count(*) FROM pg_replication_slots), count(*) FROM pg_stat_replication"
        )
        if left == [(0, 0)]:
            return
        assert time.monotonic() < deadline, f"slots and senders left: {left}"
        time.sleep(0.1)


def _backups_that_verify(repository: Repository) -> int:
    """How many backups there are, each of them whole, in a repository that is."""
    report = run_verify(VerifyRequest(max_age_seconds=3600), repository.store, repository)
    assert report.damage == []
    return len(repository.catalog.names())


@pytest.mark.timeout(600)
def test_fifty_kills_of_a_backup_leave_nothing_half_done(
    program: Program, service: ThrowawayServer, work_dir: Path
) -> None:
    """``kill -9`` at fifty random moments: the repository always verifies, and the next backup succeeds.

    Nothing is stored twice, and all there is can be found: every pack is in the index, nothing half written is left.
    """
    chance = random.Random(_SEED)
    (work_dir / "clean").mkdir()
    clean = Program(work_dir / "clean", service.dsn())
    duration = _duration_of_a_backup(clean)
    finished = 0
    with Client(service.dsn(), rate=100):
        for _ in range(_KILLS):
            answer = program.kill_after(chance.uniform(0.2, 1) * duration, signal.SIGKILL, "backup")
            before, finished = finished, _backups_that_verify(program.repository())
            # killed between its last write and its end, a backup exists too
            assert finished - before == 1 if answer.returncode == 0 else finished - before in {0, 1}
    _expect_clean_server(service)

    answer = program.run("backup")

    assert answer.returncode == 0, answer.stderr
    repository = program.repository()
    assert _backups_that_verify(repository) == finished + 1
    packs = {info.name: info.size for info in repository.store.list("packs/")}
    assert set(packs) == repository.index.known_packs(), f"seed {_SEED}"
    assert repository.store.leftovers() == 0
    restore(repository, work_dir / "restored")
    with running_copy(work_dir / "restored", service.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) >= 4000 FROM users") == [(True,)]


def test_a_killed_backup_is_gone_on_with_and_nothing_is_stored_twice(
    program: Program, service: ThrowawayServer, work_dir: Path
) -> None:
    """On a quiet server: five kills and a backup take no more room than one backup does."""
    chance = random.Random(_SEED)
    (work_dir / "clean").mkdir()
    clean = Program(work_dir / "clean", service.dsn())
    duration = _duration_of_a_backup(clean)
    for _ in range(5):
        program.kill_after(chance.uniform(duration / 2, duration), signal.SIGKILL, "backup")

    assert program.run("backup").returncode == 0

    once = sum(info.size for info in clean.repository().store.list("packs/"))
    stored = sum(info.size for info in program.repository().store.list("packs/"))
    assert stored < 1.15 * once, f"{stored} bytes instead of {once} (seed {_SEED})"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_backup_says_so_and_keeps_what_it_stored(
    program: Program, service: ThrowawayServer, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and kill: one line, its exit code, no lease left, the server clean, the next run stores little."""
    process = program.start("backup", "--mode", "stream", "--rate", "5MB")
    deadline = time.monotonic() + 30
    while sql(service.dsn(), "SELECT coalesce(max(backup_streamed), 0) < 8000000 FROM pg_stat_progress_basebackup")[0][
        0
    ]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert errors.strip().splitlines()[-1].startswith(("error: ", "hint: ")), errors
    repository = program.repository()
    assert list(repository.store.list("leases/")) == []
    assert {info.name for info in repository.store.list("packs/")} == repository.index.known_packs()
    _expect_clean_server(service)
    kept = sum(info.size for info in repository.store.list("packs/"))
    assert kept > 0
    assert program.run("backup").returncode == 0


@pytest.mark.timeout(300)
def test_a_killed_restore_cannot_be_started_and_is_cleared_by_the_next(
    program: Program, service: ThrowawayServer, work_dir: Path
) -> None:
    """``kill -9`` at ten random moments; what was in the target before stays aside, untouched."""
    chance = random.Random(_SEED)
    target = work_dir / "target"
    target.mkdir()
    (target / "precious").write_text("do not touch")
    _duration_of_a_backup(program)
    for _ in range(10):
        program.kill_after(chance.uniform(0.2, 0.8), signal.SIGKILL, "restore", "--target-dir", str(target))
        complete = (target / "backup_manifest").exists() and not (target / "pgkeep.restore-incomplete").exists()
        assert complete or not (target / "global" / "pg_control").exists() or (target / "precious").exists()

    answer = program.run("restore", "--target-dir", str(target))

    assert answer.returncode == 0, answer.stderr
    run_program(service, "pg_verifybackup", "--exit-on-error", target)
    aside = [path for path in work_dir.glob("target.before-*") if (path / "precious").exists()]
    assert [(path / "precious").read_text() for path in aside] == ["do not touch"]
