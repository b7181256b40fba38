"""Sudden death of an expiry: whatever it had done, every backup that is listed has its WAL, and the next run ends it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.repository import KeyFile
from pgkeep.units import utc_now
from support.jobs import KEY
from support.kept_repository import DAY, HOUR, SYSTEM, KeptRepository

if TYPE_CHECKING:
    from collections.abc import Sequence

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> KeptRepository:
    """Three weeks of nightly backups up to now, and their WAL."""
    made = KeptRepository(tmp_path_factory.mktemp("template") / "repository")
    now = utc_now()
    for number in range(20):
        made.backup(now - number * DAY - HOUR)
    made.wal(now - 21 * DAY, now - HOUR)
    return made


class Expiry:
    """The program, with rules that keep two days."""

    def __init__(self, directory: Path, repository: Path) -> None:
        directory.mkdir()
        key = directory / "pgkeep.key"
        key.write_text(KeyFile(KEY.secret).text() + "\n")
        self.config = directory / "pgkeep.toml"
        self.config.write_text(
            f'[repository.main]\nurl = "file://{repository}"\nkey = "file:{key}"\n'
            '[repository.main.retention]\nwindow = "2d"\ngrace = "0s"\n[cluster.auth]\ndsn = "host=nowhere"\n'
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pgkeep", "--config", str(self.config), "expire", "--json", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, words: Sequence[str] = ()) -> dict[str, Any]:
        process = self.start(*words)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors + output
        document: dict[str, Any] = json.loads(output)
        return document


def test_kills_leave_every_listed_backup_whole_and_the_next_run_ends_the_work(
    template: KeptRepository, tmp_path: Path
) -> None:
    """``kill -9`` after a random number of deletions."""
    chance = random.Random(_SEED)
    undisturbed = template.copy(tmp_path / "undisturbed")
    (cluster,) = Expiry(tmp_path / "whole", undisturbed.directory).end()["repositories"][0]["clusters"]
    total = len(cluster["removed"]["backups"]) + cluster["removed"]["wal_objects"]
    assert len(undisturbed.ids()) == 3
    assert total > 300
    before = count(template)
    cut = 0
    for number in range(_KILLS):
        kept = template.copy(tmp_path / f"repository{number}")
        expiry = Expiry(tmp_path / f"setup{number}", kept.directory)
        process = expiry.start("--yes")
        kill_after(process, kept, before - chance.randrange(total))
        kept.expect_sound()
        cut += before - total < count(kept) < before
        if number == _KILLS - 1:
            # killed twice
            process = expiry.start("--yes")
            kill_after(process, kept, count(kept) - 10)
            kept.expect_sound()

        expiry.end(["--yes"])
        kept.expect_sound()
        assert (kept.ids(), kept.segments(), kept.groups()) == (
            undisturbed.ids(),
            undisturbed.segments(),
            undisturbed.groups(),
        )
    assert cut > _KILLS // 2, "the kills came too late to prove anything"


def kill_after(process: subprocess.Popen[str], kept: KeptRepository, left: int) -> None:
    """Kill it as soon as there are no more objects than that."""
    while process.poll() is None and count(kept) > left:
        time.sleep(0.002)
    process.kill()
    process.communicate()


def count(kept: KeptRepository) -> int:
    """Backups, WAL objects and groups of the index of times."""
    place = kept.directory / "clusters" / str(SYSTEM)
    return sum(len(files) for kind in ("backups", "wal", "times") for _, _, files in os.walk(place / kind))
