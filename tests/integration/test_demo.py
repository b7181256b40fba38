"""The guided tour, as a new user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_guided_tour_brings_every_row_of_the_backups_moment_back(work_dir: Path) -> None:
    """``pgkeep demo`` ends well, loses no row, and leaves nothing running or lying about."""
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
    assert result["commits_missing"] == result["commits_from_the_future"] == 0
    assert result["users_restored"] >= result["users_before"] == 500
    assert not (place / "restored" / "postmaster.pid").exists()
