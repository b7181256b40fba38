"""``python -m pgkeep.wal.push_program CONFIG CLUSTER STATE PATH``: pushes one file, with as little to load as can be.

What ``archive_command`` falls back to where no receiver runs; ``pgkeep wal push`` does the same with all of the program's face.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(words: list[str]) -> int:
    """The exit code for PostgreSQL: 0 stored and durable, 1 to 125 not."""
    from pgkeep.wal.push import Pusher, data_directory_of, exit_code_of
    from pgkeep.wal.push_settings import settings_of_program

    config, cluster, state, path = Path(words[0]), words[1], Path(words[2]), Path(words[3])
    try:
        pusher = Pusher(settings_of_program(config, cluster, state), state, data_directory_of(path))
        pusher.push(path)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must hear of it and try again
        sys.stderr.write(f"pgkeep: {error}\n")
        if hint := getattr(error, "hint", None):
            sys.stderr.write(f"hint: {hint}\n")
        return exit_code_of(error)
    for warning in pusher.warnings:
        sys.stderr.write(f"pgkeep: warning: {warning}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
