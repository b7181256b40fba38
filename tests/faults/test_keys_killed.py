"""Whoever changes keys is killed at every single change to the file system: nothing is lost, and doing it again ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.killed_keys import SCENARIOS

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_lost_when_a_change_of_keys_is_killed_anywhere(scenario: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT / 'src'}"}
    command = [sys.executable, "-m", "support.killed_keys", scenario, str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8, "it was killed at that many points"
