"""``python -m pgkeep``."""

from __future__ import annotations

from pgkeep.cli.main import run

if __name__ == "__main__":
    run()
