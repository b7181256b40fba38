"""Clusters as they are met: tablespaces, odd names, large and many relations, other segment sizes, standbys, damage."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import TargetError, UsageError
from pgkeep.postgres.account import give_to
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.restore import RestoreRequest, export_tar, make_plan
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import backup, new_repository, restore, running_copy, server_place
from support.servers import dump_all, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeep.postgres.binaries import ServerBinaries
    from support.servers import MakeServer


def test_tablespaces_go_where_they_are_told(make_server: MakeServer, postgres_major: int, work_dir: Path) -> None:
    """To a new place; refused where the old one is occupied and no other is named; to the old place where it is free."""
    server = make_server(postgres_major)
    old = server_place(work_dir / "테이블스페이스")
    sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{old}'")
    sql(server.dsn(), "CREATE TABLE elsewhere TABLESPACE apart AS SELECT generate_series(1, 1000) AS id")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository)

    with pytest.raises(TargetError, match="테이블스페이스"):
        restore(repository, work_dir / "restored")
    with pytest.raises(UsageError):
        restore(repository, work_dir / "restored", tablespaces={"/nowhere": str(work_dir / "new")})
    assert not (work_dir / "restored").exists()
    restore(repository, work_dir / "restored", tablespaces={str(old): str(work_dir / "new")})

    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        assert dump_all(copy) == dump_all(server).replace(str(old), str(work_dir / "new"))
        assert sql(copy.dsn(), "SELECT count(*) FROM elsewhere") == [(1000,)]

    server.stop()
    old.rename(work_dir / "gone")
    restore(repository, work_dir / "again")
    with running_copy(work_dir / "again", server.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM elsewhere") == [(1000,)]
    assert any(old.iterdir())


def test_an_exported_tablespace_is_an_archive_of_its_own(make_server: MakeServer, work_dir: Path) -> None:
    """Named by its oid, as pg_basebackup names it."""
    server = make_server(15)
    place = server_place(work_dir / "ts")
    sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{place}'")
    sql(server.dsn(), "CREATE TABLE elsewhere TABLESPACE apart AS SELECT generate_series(1, 1000) AS id")
    repository = new_repository(work_dir / "repository")
    manifest = backup(server.dsn(), repository)
    oid = sql(server.dsn(), "SELECT oid FROM pg_tablespace WHERE spcname = 'apart'")[0][0]

    ours = export_tar(repository, manifest, work_dir / "ours")

    run_program(
        server,
        "pg_basebackup",
        f"--dbname={server.dsn()}",
        f"--pgdata={server_place(work_dir / 'theirs')}",
        "--format=tar",
        "--gzip",
        "--wal-method=stream",
    )
    assert sorted(path.name for path in ours) == sorted(os.listdir(work_dir / "theirs"))
    assert f"{oid}.tar.gz" in os.listdir(work_dir / "ours")


def test_a_database_dropped_during_the_backup_does_not_disturb_it(make_server: MakeServer, work_dir: Path) -> None:
    """Nor do tables created, dropped and truncated meanwhile; the copy is sound."""
    server = make_server(17)
    sql(server.dsn(), "CREATE DATABASE doomed")
    sql(server.dsn(), "CREATE DATABASE kept")
    sql(server.dsn("kept"), "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
    stop = threading.Event()

    def churn() -> None:
        sql(server.dsn(), "DROP DATABASE doomed")
        while not stop.is_set():
            sql(server.dsn(), "CREATE TABLE fleeting AS SELECT generate_series(1, 2000) AS id")
            sql(server.dsn(), "TRUNCATE fleeting; DROP TABLE fleeting")

    repository = new_repository(work_dir / "repository")
    thread = threading.Timer(0.8, churn)
    thread.start()
    try:
        manifest = backup(server.dsn(), repository, rate=10 << 20)
    finally:
        stop.set()
        thread.join()
    assert (manifest.finished - manifest.started).total_seconds() > 1
    restore(repository, work_dir / "restored")

    with running_copy(work_dir / "restored", server.binaries) as copy:
        databases = [name for (name,) in sql(copy.dsn(), "SELECT datname FROM pg_database ORDER BY 1")]
        assert "kept" in databases
        assert "doomed" not in databases
        assert sql(copy.dsn("kept"), "SELECT count(*) FROM t") == [(1000,)]
        run_program(
            copy, "pg_amcheck", f"--maintenance-db={copy.dsn()}", "--all", "--install-missing", "--heapallindexed"
        )


def test_a_relation_above_one_gibibyte_comes_back_in_its_segments(make_server: MakeServer, work_dir: Path) -> None:
    """One row fills a page, so that 135,000 of them make a second segment."""
    server = make_server(18, settings={"max_wal_size": "4GB", "autovacuum": False})
    sql(server.dsn(), "CREATE TABLE large (id int, filler text) WITH (fillfactor = 10)")
    sql(server.dsn(), "ALTER TABLE large ALTER filler SET STORAGE PLAIN")
    sql(server.dsn(), "INSERT INTO large SELECT i, repeat('x', 800) FROM generate_series(1, 135000) AS i")
    (path,) = sql(server.dsn(), "SELECT pg_relation_filepath('large')")[0]
    assert (server.data_directory / f"{path}.1").exists()
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository)

    restore(repository, work_dir / "restored")

    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    report = run_verify(VerifyRequest(scrub=False), repository.store, repository)
    assert report.damage == []
    with running_copy(work_dir / "restored", server.binaries) as copy:
        question = "SELECT count(*), sum(id), sum(length(filler)) FROM large"
        assert sql(copy.dsn(), question) == sql(server.dsn(), question)


def test_a_cluster_with_five_thousand_tables(make_server: MakeServer, work_dir: Path) -> None:
    """Small files by the thousand."""
    server = make_server(15, settings={"max_locks_per_transaction": 2000})
    create = (
        "DO $$ BEGIN FOR i IN {}..{} LOOP EXECUTE format('CREATE TABLE t%s AS SELECT %s AS id', i, i); END LOOP; END $$"
    )
    for first in range(1, 5001, 1000):
        sql(server.dsn(), create.format(first, first + 999))
    repository = new_repository(work_dir / "repository")
    manifest = backup(server.dsn(), repository)
    assert manifest.files > 5000

    restore(repository, work_dir / "restored", settings={"max_locks_per_transaction": "2000"})

    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$'") == [(5000,)]
        assert sql(copy.dsn(), "TABLE t4321") == [(4321,)]


def test_names_in_any_script_come_back(make_server: MakeServer, work_dir: Path) -> None:
    """A database, a role and a table in Korean, and a file whose name is no UTF-8."""
    server = make_server(18)
    sql(server.dsn(), 'CREATE ROLE "관리자"')
    sql(server.dsn(), 'CREATE DATABASE "인증" OWNER "관리자"')
    sql(server.dsn("인증"), 'CREATE TABLE "사용자" AS SELECT 1 AS "번호"')
    odd = os.fsencode(server.data_directory) + b"/odd-\xff\xfe"
    Path(os.fsdecode(odd)).write_text("a file of the operator's")
    give_to(server.account, Path(os.fsdecode(odd)))
    repository = new_repository(work_dir / "저장소")
    backup(server.dsn(), repository)

    restore(repository, work_dir / "복원")

    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "복원")
    assert (
        Path(os.fsdecode(os.fsencode(work_dir / "복원") + b"/odd-\xff\xfe")).read_text() == "a file of the operator's"
    )
    with running_copy(work_dir / "복원", server.binaries) as copy:
        assert sql(copy.dsn("인증"), 'TABLE "사용자"') == [(1,)]
        assert dump_all(copy) == dump_all(server)


@pytest.mark.parametrize("wal_segment_size", [1, 64])
def test_wal_segments_of_other_sizes(make_server: MakeServer, work_dir: Path, wal_segment_size: int) -> None:
    """1 and 64 MiB; without page checksums too."""
    server = make_server(17, wal_segment_size=wal_segment_size, checksums=False)
    sql(server.dsn(), "CREATE TABLE t AS SELECT generate_series(1, 100000) AS id")
    repository = new_repository(work_dir / "repository")
    manifest = backup(server.dsn(), repository)
    assert manifest.wal.segment_size == wal_segment_size << 20

    restore(repository, work_dir / "restored")

    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        assert dump_all(copy) == dump_all(server)


def test_a_backup_from_a_standby_and_of_a_later_timeline(
    make_server: MakeServer, binaries_of: Callable[[int], ServerBinaries], work_dir: Path
) -> None:
    """A restored copy becomes a standby, is backed up, promoted, and backed up again with its history file."""
    primary = make_server(17)
    sql(primary.dsn(), "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
    repository = new_repository(work_dir / "repository")
    backup(primary.dsn(), repository)
    place = work_dir / "standby"
    restore(repository, place, settings={"primary_conninfo": primary.dsn(), "recovery_target": "", "hot_standby": "on"})
    (place / "recovery.signal").rename(place / "standby.signal")
    standby = Server(place, binaries_of(17))
    standby.start({"fsync": False})
    try:
        sql(primary.dsn(), "INSERT INTO t SELECT generate_series(1001, 2000)")
        while sql(standby.dsn(), "SELECT count(*) FROM t") != [(2000,)]:
            time.sleep(0.05)
        of_standby = backup(standby.dsn(), repository)
        assert of_standby.from_standby
        restore(repository, work_dir / "from-standby")
        with running_copy(work_dir / "from-standby", standby.binaries) as copy:
            assert sql(copy.dsn(), "SELECT count(*) FROM t") == [(2000,)]

        sql(standby.dsn(), "SELECT pg_promote()")
        promoted = backup(standby.dsn(), repository)
        assert promoted.timeline == 2
        assert "00000002.history" in promoted.wal.segments
        restore(repository, work_dir / "promoted")
        assert (work_dir / "promoted" / "pg_wal" / "00000002.history").exists()
        with running_copy(work_dir / "promoted", standby.binaries) as copy:
            assert sql(copy.dsn(), "SELECT count(*), pg_is_in_recovery() FROM t") == [(2000, False)]
    finally:
        standby.stop()


def test_pages_that_are_damaged_on_the_server_are_named(make_server: MakeServer, work_dir: Path) -> None:
    """The backup is stored and says which pages; verify does not take them for its own damage."""
    server = make_server(15)
    sql(server.dsn(), "CREATE TABLE t AS SELECT generate_series(1, 5000) AS id")
    (path,) = sql(server.dsn(), "SELECT pg_relation_filepath('t')")[0]
    server.stop()
    with (server.data_directory / path).open("r+b") as file:
        file.seek(3 * 8192 + 4000)
        file.write(b"\xde\xad\xbe\xef")
    server.start({"fsync": False})
    repository = new_repository(work_dir / "repository")

    manifest = backup(server.dsn(), repository)

    assert [(page.path.decode(), page.block) for page in manifest.damaged_pages] == [(path, 3)]
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []
    plan = make_plan(RestoreRequest(target=str(work_dir / "restored")), repository)
    assert any("damaged" in note for note in plan.notes)


def test_settings_outside_the_data_directory_are_missed_and_said_to_be(make_server: MakeServer, work_dir: Path) -> None:
    """As on Debian: the copy starts with defaults, and the notes name what it lacks."""
    server: ThrowawayServer = make_server(15)
    server.stop()
    place = server_place(work_dir / "etc")
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (server.data_directory / name).rename(place / name)
    files = {name: str(place / f"{file}.conf") for name, file in (("hba_file", "pg_hba"), ("ident_file", "pg_ident"))}
    server.start({"fsync": False, "config_file": str(place / "postgresql.conf"), **files})
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository)

    outcome = restore(repository, work_dir / "restored", start=True)

    assert outcome.recovery is not None
    assert any("postgresql.conf" in note for note in outcome.notes)
    assert any("pg_hba.conf" in note for note in outcome.notes)
    Server(work_dir / "restored", server.binaries).stop()
