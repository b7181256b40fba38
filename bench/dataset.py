"""The auth-service data set at any size from a seed, on a PostgreSQL server of its own.

python -m bench.dataset --size 2GiB --directory /tmp/pgkeep-bench --keep-running
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from bench.machine import CORES
from pgkeep.demo.workload import load
from pgkeep.postgres.account import give_to
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.server import Server
from pgkeep.units import format_size, parse_size

# What one user and all that belongs to them take on disk, indexes included: measured.
BYTES_PER_USER = 6650
DATABASE = "auth_db"
MAJOR = 15

# Loading is quick because nothing has to outlive a crash; the server restarts with its settings for work afterwards.
LOAD_SETTINGS: dict[str, str | int | bool] = {
    "fsync": False,
    "full_page_writes": False,
    "synchronous_commit": False,
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_wal_size": "16GB",
    "autovacuum": False,
    "maintenance_work_mem": "512MB",
    "shared_buffers": "1GB",
}
# archive_mode needs a restart, archive_command does not: each contender sets its own.
WORK_SETTINGS = """
wal_level = replica
archive_mode = on
archive_command = '/bin/true'
max_wal_size = 4GB
checkpoint_timeout = 1h
shared_buffers = 256MB
autovacuum = off
"""
# What changed since a backup, kept by the server: from this version on.
FIRST_WITH_SUMMARIES = 17


def open_server(directory: Path, major: int | None = None) -> Server:
    """The server of the data set in ``directory``, which is made; not started. One that is there keeps its major version."""
    sockets = directory / "s"
    sockets.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        major = int((directory / "data" / "PG_VERSION").read_text())
    server = Server(directory / "data", find_binaries(major or MAJOR), socket_directory=sockets)
    give_to(server.account, directory, sockets)
    return server


def create(server: Server, size: int, seed: int) -> None:
    """Make the cluster, load about ``size`` bytes, and leave it running, settled and checkpointed."""
    server.initdb()
    with (server.data_directory / "postgresql.conf").open("a") as configuration:
        configuration.write(WORK_SETTINGS)
        if server.binaries.major >= FIRST_WITH_SUMMARIES:
            configuration.write("summarize_wal = on\n")
    summaries = {"summarize_wal": False} if server.binaries.major >= FIRST_WITH_SUMMARIES else {}
    server.start({**LOAD_SETTINGS, **summaries, "archive_mode": False})
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE auth_db")
    load(server.dsn(DATABASE), users=max(1, size // BYTES_PER_USER), seed=seed, jobs=CORES)
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as connection:
        # Hint bits and frozen rows now, so that no reader of the runs changes pages later.
        connection.execute("VACUUM (FREEZE)")
        connection.execute("CHECKPOINT")
    server.stop()
    os.sync()
    server.start()


@contextlib.contextmanager
def data_set(existing: Path | None, size: int, seed: int, major: int | None = None) -> Iterator[Server]:
    """A running server with the data set: one that ``bench.dataset`` left in ``existing``, or a new one that goes away."""
    directory = existing or Path(tempfile.mkdtemp(prefix="pgkeep-bench-"))
    server = open_server(directory, major)
    found_running = server.is_running
    try:
        if existing is None:
            print(f"making the data set on PostgreSQL {server.binaries.version_text}", flush=True)
            create(server, size, seed)
        elif not found_running:
            server.start()
        yield server
    finally:
        if not found_running:
            server.stop()
        if existing is None:
            shutil.rmtree(directory)


@contextlib.contextmanager
def work_directory(server: Server) -> Iterator[Path]:
    """Where the contenders keep their repositories, on the same file system as the server."""
    directory = Path(tempfile.mkdtemp(prefix="work-", dir=server.data_directory.parent))
    give_to(server.account, directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def data_size(server: Server) -> int:
    """Bytes of the data directory without its WAL: what a backup has to read."""
    return sum(
        path.stat().st_size
        for path in server.data_directory.rglob("*")
        if path.is_file() and "pg_wal" not in path.parts
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dataset", description=__doc__)
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the data directory, about (default 1GiB)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--major", type=int, default=MAJOR, help=f"version of PostgreSQL (default {MAJOR})")
    parser.add_argument("--directory", type=Path, required=True, help="a new directory for the server")
    parser.add_argument("--keep-running", action="store_true", help="leave the server running")
    options = parser.parse_args()
    started = time.monotonic()
    server = open_server(options.directory, options.major)
    create(server, options.size, options.seed)
    print(f"{format_size(data_size(server))} in {time.monotonic() - started:.0f} s")
    if options.keep_running:
        print(f"postmaster {server.process_id}: {server.dsn(DATABASE)}")
        server.detach()
    else:
        server.stop()


if __name__ == "__main__":
    main()
