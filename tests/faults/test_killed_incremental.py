"""Sudden death of an incremental backup: nothing of it is to be seen, and the next one is as good as ever."""

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
from pgkeep.opening import open_repository
from pgkeep.verify import VerifyRequest, run_verify
from support.incremental import expect_equal_copy, quiet_server
from support.servers import sql

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from support.servers import MakeServer

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = 8


def _start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pgkeep", "--config", str(config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _succeed(config: Path, *arguments: str) -> None:
    process = _start(config, *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def _repository(config: Path) -> Repository:
    return open_repository(load_config(config).repository())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["stream", "local"])
def test_killed_incrementals_leave_nothing_and_the_next_one_works(
    make_server: MakeServer, work_dir: Path, mode: str
) -> None:
    """``kill -9`` at random moments, with changes before each: what is to be seen verifies, and the newest one is equal."""
    chance = random.Random(_SEED)
    server = quiet_server(make_server, 18)
    sql(
        server.dsn(),
        "CREATE TABLE t AS SELECT i AS id, md5(i::text) || repeat('x', 500) AS w FROM generate_series(1, 60000) i",
    )
    config = work_dir / "pgkeep.toml"
    repository_url = f"file://{work_dir}/repository"
    _succeed(config, "init", server.dsn(), "--name", "auth", "--repository", repository_url, "--yes")
    _succeed(config, "backup", "--mode", mode)
    begun = time.monotonic()
    _succeed(config, "backup", "--mode", mode)
    duration = time.monotonic() - begun
    killed = 0
    for number in range(_KILLS):
        sql(server.dsn(), f"UPDATE t SET id = -id WHERE abs(id) % {_KILLS} = {number}")
        before = _repository(config).catalog.names()
        process = _start(config, "backup", "--mode", mode)
        time.sleep(chance.uniform(0.2, 1.2) * duration)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        after = _repository(config).catalog.names()
        # one that was killed between its last write and its end is there, and whole
        assert len(after) - len(before) in {0, 1}
        killed += len(after) == len(before)
    assert killed > 1, f"seed {_SEED}"

    _succeed(config, "backup", "--mode", mode)

    repository = _repository(config)
    newest = repository.catalog.find("latest")
    assert newest.kind == "incremental", newest.notes
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []
    assert {info.name for info in repository.store.list("packs/")} == repository.index.known_packs()
    assert repository.store.leftovers() == 0
    expect_equal_copy(server, repository, work_dir)
