"""A drill that is killed at the beginning of a phase."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.drills import Drilled

__all__ = ["kill_drill"]

_KILLED = """
import os, pickle, signal, sys
sys.path[:0] = sys.argv[2].split(":")
from pathlib import Path
from pgkeep.drill.request import DrillRequest, Source
from pgkeep.drill.runner import run_drill
from pgkeep.progress import Silent
from pgkeep.repository import Repository, open_store
from support.jobs import KEY

class Dying(Silent):
    def phase(self, name, total=None):
        if name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)

place = Path(sys.argv[1])
cluster = pickle.loads((place / "settings").read_bytes())
source = Source("main", lambda: Repository.open(open_store(str(place / "repository")), KEY))
run_drill(DrillRequest(), cluster, [source], Dying())
"""


def kill_drill(cluster: Drilled, phase: str) -> None:
    """Start a drill in a process of its own, and have it killed when it comes to this phase."""
    (cluster.place / "settings").write_bytes(pickle.dumps(cluster.settings))
    words = [sys.executable, "-c", _KILLED, cluster.place, os.pathsep.join(path for path in sys.path if path), phase]
    answer = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == -signal.SIGKILL, answer.stderr
