"""A cluster to be drilled: a running server, its repository with a backup and WAL behind it, and its settings."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.config import Cluster
from pgkeep.drill.request import DrillRequest, Source
from pgkeep.drill.runner import run_drill
from pgkeep.postgres.account import give_to
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.progress import Silent
from pgkeep.repository import Repository, open_store
from pgkeep.restore.last_wal import save_running_wal
from support.jobs import KEY, backup, new_repository, wait_until_recovered
from support.servers import TEST_SETTINGS, sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.drill.record import Check, DrillRecord
    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.progress import Progress

__all__ = ["DRILL", "AtPhase", "Drilled", "check_of", "make_drill_template", "new_timeline", "start_drilled"]

DRILL: dict[str, Any] = {"settings": {"fsync": "off", "shared_buffers": "32MB"}, "sample_for": 60.0, "jobs": 2}

_ROWS = """
    CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
    INSERT INTO users (name) SELECT 'user ' || n FROM generate_series(1, 2000) n;
    CREATE INDEX users_name ON users (name);
"""
_SETTINGS: dict[str, str | int | bool] = {**TEST_SETTINGS, "autovacuum": False}


class AtPhase(Silent):
    """Does something when a phase begins."""

    def __init__(self, name: str, act: object) -> None:
        self._name, self._act = name, act

    def phase(self, name: str, total: int | None = None) -> None:
        if name == self._name and callable(self._act):
            self._act()


@dataclass
class Drilled:
    """``settings`` are the cluster's; `drill` does one with a repository that is opened anew."""

    server: ThrowawayServer
    place: Path
    settings: Cluster

    @property
    def directory(self) -> Path:
        """Where drills are."""
        return self.place / "drills"

    @property
    def repository(self) -> Repository:
        return Repository.open(open_store(str(self.place / "repository")), KEY)

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        return sql(self.server.dsn(), query)

    def ship(self) -> None:
        """Store in the repository what the server has written so far."""
        save_running_wal(self.server.dsn(), self.server.data_directory, [self.repository])

    @contextmanager
    def shipping(self) -> Iterator[None]:
        """Meanwhile, what the server writes is stored in the repository within moments, as a receiver does it."""
        stop = threading.Event()

        def ship() -> None:
            while not stop.wait(0.3):
                self.ship()

        thread = threading.Thread(target=ship)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def write_segments(self, count: int) -> None:
        """So many segments of WAL, and some of one more, all of them stored."""
        for number in range(count):
            self.sql(f"INSERT INTO users (name) SELECT 'more {number}' FROM generate_series(1, 300)")
            self.sql("SELECT pg_switch_wal()")
        self.sql("INSERT INTO users (name) VALUES ('last')")
        self.ship()

    def back_up(self) -> str:
        return backup(self.server.dsn(), self.repository).id

    def drill(
        self, progress: Progress | None = None, *, settings: dict[str, Any] | None = None, **options: Any
    ) -> DrillRecord:
        source = Source("main", lambda: self.repository)
        return run_drill(DrillRequest(**options), self.with_settings(**(settings or {})), [source], progress)

    def with_settings(self, **drill: Any) -> Cluster:
        """The cluster with other settings of its drills."""
        plain = self.settings.model_dump()
        return Cluster.model_validate({**plain, "drill": {**plain["drill"], **drill}})

    def objects(self, below: str) -> list[Path]:
        """The repository's files under a folder, by their names."""
        return sorted(path for path in (self.place / "repository" / below).rglob("*") if path.is_file())

    def wal(self) -> list[Path]:
        return self.objects(f"clusters/{self.system_identifier}/wal")

    @property
    def system_identifier(self) -> int:
        return int(self.sql("SELECT system_identifier FROM pg_control_system()")[0][0])

    def left_behind(self) -> list[str]:
        """What drills have left on the disk, and processes that work there."""
        if not self.directory.exists():
            return []
        names = [path.name for path in self.directory.iterdir() if path.name != ".register"]
        return names + [str(pid) for pid in _processes_below(self.directory)]


def check_of(record: DrillRecord, name: str) -> Check:
    """The check of that name."""
    return next(check for check in record.checks if check.name == name)


def _processes_below(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(directory):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def make_drill_template(binaries: ServerBinaries, parent: Path) -> Path:
    """A stopped cluster with a table, and a repository with a backup of it and some WAL behind."""
    template = parent / f"drill-template-{binaries.major}"
    with ThrowawayServer(binaries, parent=parent) as server:
        # small segments: each test copies the whole cluster
        server.initdb(wal_segment_size=1)
        server.start(_SETTINGS)
        sql(server.dsn(), _ROWS)
        sql(server.dsn(), "VACUUM (FREEZE) users")
        repository = new_repository(server.directory / "repository")
        backup(server.dsn(), repository)
        sql(server.dsn(), "INSERT INTO users (name) SELECT 'later ' || n FROM generate_series(1, 500) n")
        save_running_wal(server.dsn(), server.data_directory, [repository])
        server.stop()
        subprocess.run(["cp", "-a", server.directory, template], check=True)
    return template


def start_drilled(server: ThrowawayServer, template: Path, place: Path, **drill: Any) -> Drilled:
    """The template's cluster in the server's own directory, running, with drills in ``place``."""
    subprocess.run(["cp", "-a", template / "data", server.data_directory], check=True)
    subprocess.run(["cp", "-a", template / "repository", place / "repository"], check=True)
    server.start(_SETTINGS)
    cluster = {
        "name": "test",
        "dsn": server.dsn(),
        "repositories": ("main",),
        "server": {"data_directory": server.data_directory},
        "wal": {"spool": place / "spool"},
        "drill": {**DRILL, "directory": place / "drills", **drill},
    }
    return Drilled(server, place, Cluster.model_validate(cluster))


def new_timeline(cluster: Drilled) -> None:
    """Stop the cluster, have it recover to the end of its WAL, and so begin a new timeline; write there, and ship it."""
    cluster.server.stop()
    (cluster.server.data_directory / "recovery.signal").touch()
    give_to(cluster.server.account, cluster.server.data_directory / "recovery.signal")
    cluster.server.start({**_SETTINGS, "restore_command": "false"})
    wait_until_recovered(cluster.server)
    for _ in range(5):
        cluster.sql("INSERT INTO users (name) VALUES ('of the new timeline')")
    cluster.sql("CHECKPOINT")
    cluster.ship()
