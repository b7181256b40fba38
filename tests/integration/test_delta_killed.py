"""Delta restores that are killed: what is left cannot be started, and the next run makes of it what an ordinary restore makes."""

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

from pgkeep.demo.workload import load
from pgkeep.restore import RestoreRequest, run_restore
from pgkeep.restore import job as restore_job
from support.delta import damage, snapshot
from support.jobs import SMALL, backup, new_repository, restore
from support.servers import run_program

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from support.servers import MakeServer

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = 12

_RUN = """
import sys
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.restore import RestoreRequest, run_restore

place, target, backup = sys.argv[1:]
repository = Repository.open(open_store(place), KeyFile(bytes(range(32))))
print("begun", flush=True)
run_restore(RestoreRequest(target=target, backup=backup, delta=True), repository)
print("done", flush=True)
"""


def start(repository: Path, target: Path, backup_id: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(repository), str(target), backup_id], stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed_after(repository: Path, target: Path, backup_id: str, seconds: float) -> bool:
    """Whether it had come to its end before."""
    with start(repository, target, backup_id) as process:
        assert said(process) == "begun"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        return said(process) == "done"


def duration(repository: Path, target: Path, backup_id: str) -> float:
    """Seconds from the first look to the end."""
    with start(repository, target, backup_id) as process:
        assert said(process) == "begun"
        begun = time.monotonic()
        assert said(process) == "done"
        return time.monotonic() - begun


@pytest.mark.timeout(600)
def test_a_killed_delta_restore_cannot_be_started_and_the_next_one_goes_on(
    make_server: MakeServer, work_dir: Path
) -> None:
    """``kill -9`` at random moments; after each of them the directory is complete, or has no control file."""
    chance = random.Random(_SEED)
    server = make_server(18)
    load(server.dsn(), users=2000)
    repository = new_repository(work_dir / "repository", SMALL)
    manifest = backup(server.dsn(), repository)
    server.stop()
    target, reference = work_dir / "target", work_dir / "reference"
    restore(repository, reference, backup=manifest.id)
    restore(repository, target, backup=manifest.id)
    expected = snapshot(reference)
    damage(target, chance, 50)
    whole = duration(work_dir / "repository", target, manifest.id)
    halves = 0
    for _ in range(_KILLS):
        damage(target, chance, 50)
        finished = killed_after(work_dir / "repository", target, manifest.id, chance.uniform(0, whole))
        marked = (target / "pgkeep.restore-incomplete").exists()
        assert finished <= (not marked)
        # the last of all that happens is that the marker goes
        if marked and not (target / "global" / "pg_control").exists():
            halves += 1
            controlled = server.binaries.path("pg_controldata")
            assert subprocess.run([controlled, target], capture_output=True, check=False).returncode != 0
    assert halves > 0, _SEED

    restore(repository, target, backup=manifest.id, delta=True)

    assert snapshot(target) == expected, _SEED
    run_program(server, "pg_verifybackup", "--exit-on-error", target)


@pytest.fixture
def half(make_server: MakeServer, work_dir: Path) -> tuple[Repository, Path]:
    """A repository, and a directory in which an ordinary restore was at work until something failed."""
    server = make_server(17)
    load(server.dsn(), users=500)
    repository = new_repository(work_dir / "repository", SMALL)
    backup(server.dsn(), repository)
    target = work_dir / "target"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_job, "sync_file_systems", _fail)
        with pytest.raises(OSError, match="no more power"):
            restore(repository, target)
    return repository, target


def _fail(_: object) -> None:
    raise OSError("no more power")


def test_a_half_ordinary_restore_is_gone_on_with(half: tuple[Repository, Path], work_dir: Path) -> None:
    """What is there already is not fetched again."""
    repository, target = half
    reference = work_dir / "reference"
    restore(repository, reference)

    outcome = run_restore(RestoreRequest(target=str(target), backup="latest", delta=True), repository)

    assert outcome.delta is not None
    assert outcome.delta.written < outcome.plan.manifest.logical_size // 100
    assert snapshot(target) == snapshot(reference)
    assert not list(work_dir.glob("target.*"))


def test_a_half_delta_restore_is_cleared_away_by_an_ordinary_one(half: tuple[Repository, Path], work_dir: Path) -> None:
    repository, target = half
    reference = work_dir / "reference"
    restore(repository, reference)

    restore(repository, target)

    assert snapshot(target) == snapshot(reference)
    assert not list(work_dir.glob("target.*"))
