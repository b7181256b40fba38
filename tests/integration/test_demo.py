"""The guided tour, as a new user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_guided_tour_goes_back_to_the_second_before_and_forward_to_the_last_commit(work_dir: Path) -> None:
    """``pgkeep demo`` ends well, loses no commit, and leaves nothing running or lying about."""
    place = work_dir / "demo"

    answer = subprocess.run(
        [sys.executable, "-m", "pgkeep", "demo", "--users", "500", "--keep", str(place), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
    result = json.loads(answer.stdout)
    assert result["ok"]
    assert result["users_loaded"] == 500
    assert min(result["before"], result["after"], result["acknowledged"]) > 100
    assert result["before_missing"] == result["after_found"] == result["lost"] == 0
    assert not list(place.glob("*/postmaster.pid"))
