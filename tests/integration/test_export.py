"""Exported backups are PostgreSQL's own: judged by its programs, and started without any of ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.restore import export_tar
from support.jobs import backup, new_repository, server_place
from support.servers import TEST_SETTINGS, dump_all, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries


class Exported:
    """A server with a tablespace, and its backup as tar archives."""

    def __init__(self, server: ThrowawayServer, tablespace: Path, directory: Path) -> None:
        self.server = server
        self.tablespace = tablespace
        self.directory = directory

    def unpack(self, place: Path, *, tablespace: Path) -> None:
        """As the documentation of pg_basebackup has one do it, with tar alone."""
        oid = sql(self.server.dsn(), "SELECT oid FROM pg_tablespace WHERE spcname = 'apart'")[0][0]
        for archive, where in (("base", place), ("pg_wal", place / "pg_wal"), (str(oid), tablespace)):
            where.mkdir(mode=0o700, exist_ok=True)
            subprocess.run(["tar", "-xzf", self.directory / f"{archive}.tar.gz", "-C", where], check=True)
        shutil.copy(self.directory / "backup_manifest", place)
        for root in (place, tablespace):
            give_to(server_account(), root, *root.rglob("*"))


@pytest.fixture(scope="module")
def exported(postgres_major: int, binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[Exported]:
    """Of each version."""
    with ThrowawayServer(binaries_of(postgres_major), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        tablespace = server_place(server.directory / "테이블 스페이스")
        sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{tablespace}'")
        sql(server.dsn(), "CREATE TABLE elsewhere TABLESPACE apart AS SELECT generate_series(1, 20000) AS id")
        sql(server.dsn(), "CREATE TABLE here AS SELECT generate_series(1, 20000) AS id")
        repository = new_repository(server.directory / "repository")
        manifest = backup(server.dsn(), repository)
        export_tar(repository, manifest, server.directory / "exported")
        yield Exported(server, tablespace, server.directory / "exported")


def test_pg_verifybackup_accepts_archives_with_a_tablespace_when_unpacked(exported: Exported, work_dir: Path) -> None:
    """Every file, its size and checksum, and the WAL."""
    place = work_dir / "unpacked"
    exported.unpack(place, tablespace=work_dir / "apart")
    oid = sql(exported.server.dsn(), "SELECT oid FROM pg_tablespace WHERE spcname = 'apart'")[0][0]
    # a server would make the link itself, from tablespace_map
    (place / "pg_tblspc" / str(oid)).symlink_to(work_dir / "apart")

    run_program(exported.server, "pg_verifybackup", "--exit-on-error", place)


# it reads tar archives since 18, and the control file of its own version only
@pytest.mark.parametrize("postgres_major", [18], indirect=True, scope="session", ids=["pg18"])
def test_pg_verifybackup_accepts_the_archives_as_they_are(exported: Exported, work_dir: Path) -> None:
    """Without unpacking them, all but the WAL."""
    readable = work_dir / "exported"
    shutil.copytree(exported.directory, readable)
    give_to(server_account(), readable, *readable.iterdir())

    run_program(exported.server, "pg_verifybackup", "--exit-on-error", "--no-parse-wal", readable)


def test_a_server_starts_on_unpacked_archives_with_nothing_of_ours(exported: Exported, work_dir: Path) -> None:
    """Only ``tablespace_map`` says where tablespaces go; its paths are edited as the documentation of PostgreSQL says."""
    place = work_dir / "unpacked"
    exported.unpack(place, tablespace=work_dir / "apart")
    mapping = place / "tablespace_map"
    mapping.write_text(mapping.read_text().replace(str(exported.tablespace), str(work_dir / "apart")))

    with Server(place, exported.server.binaries) as copy:
        copy.start({"fsync": False})
        there = dump_all(exported.server).replace(str(exported.tablespace), str(work_dir / "apart"))
        assert dump_all(copy) == there
        assert sql(copy.dsn(), "SELECT count(*) FROM elsewhere") == [(20000,)]
