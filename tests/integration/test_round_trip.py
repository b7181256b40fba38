"""What goes into the repository comes back: judged by PostgreSQL's own programs, on every version."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.demo.workload import Client, load
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.restore import export_tar
from support.jobs import backup, new_repository, restore, running_copy
from support.servers import TEST_SETTINGS, dump_all, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries


@pytest.fixture(scope="module")
def service(
    postgres_major: int, binaries_of: Callable[[int], ServerBinaries], work_root: Path
) -> Iterator[ThrowawayServer]:
    """An authentication service's server of each version, with unlogged and empty tables and an empty database."""
    with ThrowawayServer(binaries_of(postgres_major), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        load(server.dsn(), users=400)
        sql(server.dsn(), "CREATE DATABASE empty_one")
        sql(server.dsn(), 'CREATE TABLE "비어 있음" ()')
        sql(server.dsn(), "CREATE UNLOGGED TABLE sessions AS SELECT generate_series(1, 1000) AS id")
        yield server


def test_pg_verifybackup_accepts_a_restored_directory(service: ThrowawayServer, work_dir: Path) -> None:
    """Before it is started: every file, its size and its checksum, and the WAL."""
    repository = new_repository(work_dir / "repository")
    backup(service.dsn(), repository)

    restore(repository, work_dir / "restored")

    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")


@pytest.mark.parametrize(("compress", "suffix", "unpack"), [("gzip", ".gz", "-xzf"), ("none", "", "-xf")])
def test_pg_verifybackup_accepts_an_exported_backup(
    service: ThrowawayServer, work_dir: Path, compress: str, suffix: str, unpack: str
) -> None:
    """Unpacked with tar, as one unpacks what pg_basebackup wrote; nothing of pgkeep is needed."""
    repository = new_repository(work_dir / "repository")
    manifest = backup(service.dsn(), repository)
    exported, unpacked = work_dir / "exported", work_dir / "unpacked"

    files = export_tar(repository, manifest, exported, compress=compress)

    names = {f"base.tar{suffix}", f"pg_wal.tar{suffix}", "backup_manifest"}
    assert {file.name for file in files} == names
    unpacked.mkdir()
    for archive, place in ((f"base.tar{suffix}", unpacked), (f"pg_wal.tar{suffix}", unpacked / "pg_wal")):
        subprocess.run(["tar", unpack, exported / archive, "-C", place], check=True)
    shutil.copy(exported / "backup_manifest", unpacked)
    subprocess.run(["chmod", "-R", "a+rX", unpacked], check=True)
    run_program(service, "pg_verifybackup", "--exit-on-error", unpacked)


def test_a_server_at_rest_and_its_restored_copy_dump_alike(service: ThrowawayServer, work_dir: Path) -> None:
    """pg_dumpall of both; unlogged tables come back empty, as after a crash."""
    repository = new_repository(work_dir / "repository")
    backup(service.dsn(), repository)

    restore(repository, work_dir / "restored")

    with running_copy(work_dir / "restored", service.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM sessions") == [(0,)]
        sql(copy.dsn(), "INSERT INTO sessions SELECT generate_series(1, 1000)")
        assert dump_all(copy) == dump_all(service)


def test_a_backup_under_load_has_no_flaw_that_amcheck_or_checksums_find(
    service: ThrowawayServer, work_dir: Path
) -> None:
    """With writers running; every row that was committed before the backup began is there."""
    repository = new_repository(work_dir / "repository")
    with Client(service.dsn(), rate=400) as client:
        client.wait_for(50)
        before = client.committed()
        backup(service.dsn(), repository)

    restore(repository, work_dir / "restored")

    with running_copy(work_dir / "restored", service.binaries) as copy:
        run_program(
            copy, "pg_amcheck", f"--maintenance-db={copy.dsn()}", "--all", "--install-missing", "--heapallindexed"
        )
        audits = [commit.audit_id for commit in before]
        assert sql(copy.dsn(), "SELECT count(*) FROM audit_logs WHERE id = ANY (%s)", [audits]) == [(len(audits),)]
    run_program(service, "pg_checksums", "--check", "-D", work_dir / "restored")


def test_a_second_backup_of_an_idle_server_stores_next_to_nothing(service: ThrowawayServer, work_dir: Path) -> None:
    """Only what a checkpoint touches."""
    repository = new_repository(work_dir / "repository")
    first = backup(service.dsn(), repository)

    second = backup(service.dsn(), repository)

    assert second.logical_size == pytest.approx(first.logical_size, rel=0.01)
    assert second.new_size < first.new_size / 50
