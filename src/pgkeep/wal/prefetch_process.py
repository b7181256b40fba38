"""A prefetcher in a process of its own, for a server that runs `restore_command` without `pgkeep restore` beside it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pgkeep.errors import BusyError
from pgkeep.postgres.running import server_status
from pgkeep.wal.fetch import PREFETCH_FOLDER
from pgkeep.wal.prefetch import LOG, Prefetcher, open_lock, prefetch_folder

__all__ = ["IDLE_SECONDS", "serve", "start_process"]

IDLE_SECONDS = 60.0
"""Without a request for so long, the process ends."""

_LOG_LIMIT = 1 << 20


def start_process(data_directory: Path, arguments: Sequence[str]) -> int | None:
    """Start ``python -m pgkeep ARGUMENTS --serve LOCK`` in a session of its own; returns its process id.

    None where a prefetcher works there already, or no server runs. Raises TargetError.
    """
    if server_status(data_directory).pid is None:
        return None
    folder = prefetch_folder(data_directory / "pg_wal")
    try:
        # the process inherits the lock, so that nobody starts another one while it starts
        lock = open_lock(folder)
    except BusyError:
        return None
    log = folder.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if os.fstat(log).st_size > _LOG_LIMIT:
            os.ftruncate(log, 0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pgkeep", *arguments, "--serve", str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock],
            cwd=data_directory,
        )
    finally:
        os.close(log)
        os.close(lock)
    # Popen warns of a child that it never saw end; this one is meant to outlive us
    process.returncode = 0
    return process.pid


def serve(prefetcher: Prefetcher, data_directory: Path, *, idle: float = IDLE_SECONDS) -> None:
    """Serve until nobody has asked for ``idle`` seconds, the server has ended, or its directory is gone."""
    postmaster = server_status(data_directory).pid
    if postmaster is None:
        return
    try:
        ended = os.pidfd_open(postmaster)
    except ProcessLookupError:
        return
    place = data_directory / "pg_wal" / PREFETCH_FOLDER
    try:
        with prefetcher:
            began = os.stat(place)
            while prefetcher.idle_seconds < idle and _is_same(place, began):
                if select.select([ended], [], [], min(1.0, idle))[0]:
                    return
    finally:
        os.close(ended)


def _is_same(place: Path, began: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(place), began)
    except OSError:
        return False
