"""Backups read beside the data: the files of a running server, on its own machine."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.errors import ServerError
from pgkeep.postgres.account import process_identity
from pgkeep.postgres.wal_summary import parse_summary, parse_summary_name
from pgkeep.verify import VerifyRequest, run_verify
from support.incremental import expect_equal_copy, expect_sound, quiet_server, relation_path, restart
from support.jobs import backup, new_repository, restore, running_copy, server_place
from support.local import AtCopying, expect_the_pages_on_disk, files_of
from support.servers import run_program, sql

if TYPE_CHECKING:
    from pgkeep.postgres.server import ThrowawayServer
    from pgkeep.repository import Repository
    from pgkeep.repository.manifests import Manifest
    from support.servers import MakeServer


def local(server: ThrowawayServer, repository: Repository, **options: object) -> Manifest:
    """A backup beside the data, without the share of files that is read whole each time."""
    manifest = backup(server.dsn(), repository, **{"mode": "local", "deep_check": 0, **options})
    assert manifest.mode == "local"
    return manifest


def table(server: ThrowawayServer, name: str, rows: int, *, more: str = "") -> None:
    """A few rows to a page, that nobody vacuums."""
    sql(
        server.dsn(),
        f"CREATE TABLE {name} WITH (autovacuum_enabled = off) {more} AS"
        f" SELECT i AS id, repeat(md5(i::text), 30) AS filler FROM generate_series(1, {rows}) AS i",
    )


def test_a_backup_beside_the_data_holds_what_a_streamed_one_holds(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    """The same directories and files, with the same sizes, modes and checksums."""
    server = quiet_server(make_server, postgres_major)
    place = server_place(work_dir / "elsewhere")
    sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{place}'")
    table(server, "t", 3000)
    table(server, "u", 100, more="TABLESPACE apart")
    sql(server.dsn(), "CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 1000)")
    sql(server.dsn(), "CREATE INDEX ON t (id); CREATE INDEX ON t (filler) TABLESPACE apart")
    sql(server.dsn(), "VACUUM")
    streamed, read = new_repository(work_dir / "streamed"), new_repository(work_dir / "read")
    # what a first backup makes the server write, the two that are compared do not
    local(server, new_repository(work_dir / "before"))

    one, other = backup(server.dsn(), streamed), local(server, read)

    assert [(found.path, found.mode, found.files) for found in one.directories] == [
        (found.path, found.mode, found.files) for found in other.directories
    ]
    files, others = files_of(streamed, one), files_of(read, other)
    assert files.keys() == others.keys()
    changing = {"backup_label", "global/pg_control"}
    for path in files.keys() - changing:
        facts, others_facts = (
            (entry.size, entry.mode, entry.crc32c, entry.inline, entry.extents, entry.map_id)
            for entry in (files[path], others[path])
        )
        assert facts[:4] == others_facts[:4], path
    assert other.tablespace_map == one.tablespace_map
    assert [(found.oid, found.location) for found in other.tablespaces] == [
        (found.oid, found.location) for found in one.tablespaces
    ]
    assert other.tablespaces[0].size == pytest.approx(one.tablespaces[0].size, rel=0.2)
    assert other.damaged_pages == []


def test_backups_under_load_are_consistent_to_the_last_transaction(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    """A full one and two that take only what changed, while four clients write: each restores alone, with every sum right."""
    summaries = {"summarize_wal": True} if postgres_major >= 17 else {}
    server = make_server(postgres_major, settings={"max_wal_size": "128MB", **summaries})
    run_program(server, "pgbench", "--initialize", "--scale=4", "--quiet", server.dsn())
    load: list[str | Path] = [server.binaries.path("pgbench"), "--client=4", "--time=120", "--no-vacuum", server.dsn()]
    writers = subprocess.Popen(
        load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **process_identity(server.account)
    )
    repository = new_repository(work_dir / "repository")
    taken: list[tuple[Manifest, int]] = []
    try:
        for _ in range(3):
            ((before,),) = sql(server.dsn(), "SELECT count(*) FROM pgbench_history")
            while sql(server.dsn(), f"SELECT count(*) < {before + 200} FROM pgbench_history") == [(True,)]:
                assert writers.poll() is None
            taken.append((local(server, repository), before))
        assert writers.poll() is None
    finally:
        writers.terminate()
        writers.wait()

    assert [manifest.kind for manifest, _ in taken] == ["full", "incremental", "incremental"]
    assert all(manifest.damaged_pages == manifest.unexplained_pages == [] for manifest, _ in taken)
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []
    for manifest, before in reversed(taken):
        target = work_dir / manifest.id[:8] / manifest.id
        restore(repository, target, backup=manifest.id)
        run_program(server, "pg_verifybackup", "--exit-on-error", target)
        with running_copy(target, server.binaries) as copy:
            expect_sound(copy)
            ((count, *sums),) = sql(
                copy.dsn(),
                "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history),"
                " (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
                " (SELECT sum(bbalance) FROM pgbench_branches)",
            )
            assert count > before
            assert len(set(sums)) == 1
        run_program(server, "pg_checksums", "--check", "-D", target)


def test_only_what_changed_is_taken_and_all_of_it(make_server: MakeServer, postgres_major: int, work_dir: Path) -> None:
    """Relations created, dropped, truncated, extended, rewritten; a database dropped and made: the pages are those on disk."""
    server = quiet_server(make_server, postgres_major)
    for name in ("kept", "dropped", "truncated", "emptied", "extended", "rewritten", "shortened", "updated"):
        table(server, name, 1500)
    sql(server.dsn(), "CREATE INDEX ON extended (id); CREATE SEQUENCE numbers; SELECT nextval('numbers')")
    sql(server.dsn(), "CREATE DATABASE old")
    sql(server.dsn(), "VACUUM")
    repository = new_repository(work_dir / "repository")
    first = local(server, repository)
    table(server, "created", 1500)
    sql(server.dsn(), "CREATE INDEX ON created (filler)")
    sql(server.dsn(), "CREATE TABLE points AS SELECT point(i, i) AS p FROM generate_series(1, 9000) AS i")
    sql(server.dsn(), "CREATE INDEX ON points USING gist (p)")
    sql(server.dsn(), "DROP TABLE dropped; TRUNCATE truncated; DELETE FROM emptied")
    sql(server.dsn(), "VACUUM emptied")
    sql(server.dsn(), "INSERT INTO extended SELECT id + 2000, filler FROM extended")
    sql(server.dsn(), "DELETE FROM shortened WHERE id > 300")
    sql(server.dsn(), "VACUUM shortened")
    # extends the table by pages of zeros, some of which stay so
    with psycopg.connect(server.dsn()) as connection, connection.cursor().copy("COPY shortened FROM STDIN") as copy:
        for number in range(200):
            copy.write_row((100_000 + number, "y" * 900))
    sql(server.dsn(), "UPDATE rewritten SET id = -id WHERE id % 3 = 0")
    sql(server.dsn(), "VACUUM FULL rewritten")
    sql(
        server.dsn(),
        "UPDATE updated SET id = -id WHERE id % 100 = 0; SELECT nextval('numbers') FROM generate_series(1, 50)",
    )
    sql(server.dsn(), "DROP DATABASE old")
    sql(server.dsn(), "CREATE DATABASE copied STRATEGY file_copy")
    sql(server.dsn(), "CREATE DATABASE logged STRATEGY wal_log")
    # whoever looks at a row marks it as committed
    sql(
        server.dsn(),
        "SELECT count(filler) FROM kept; SELECT count(filler) FROM created; SELECT count(filler) FROM updated",
    )

    second = local(server, repository)

    assert (second.kind, second.parent, second.unexplained_pages) == ("incremental", first.id, [])
    expect_the_pages_on_disk(server, repository, work_dir / "as-it-is")
    expect_equal_copy(server, repository, work_dir)
    if postgres_major >= 17:
        assert second.read_size < 0.6 * first.read_size
        assert second.notes == []


def until_summarized(server: ThrowawayServer) -> None:
    """Return when there are summaries up to the last checkpoint."""
    ((reached,),) = sql(server.dsn(), "SELECT redo_lsn FROM pg_control_checkpoint()")
    deadline = time.monotonic() + 60
    while sql(server.dsn(), f"SELECT bool_or(end_lsn >= '{reached}') FROM pg_available_wal_summaries()") != [(True,)]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("major", [17, 18])
def test_summaries_are_read_as_the_server_reads_them(make_server: MakeServer, major: int) -> None:
    """Every row of ``pg_wal_summary_contents``, of files with lists, bitmaps, truncations and new databases."""
    server = quiet_server(make_server, major)
    for step in (
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 1800) AS w FROM generate_series(1, 40000) AS i",
        "CREATE INDEX ON t (id); CREATE DATABASE other STRATEGY file_copy",
        "UPDATE t SET id = -id WHERE id % 500 = 0",
        "DELETE FROM t WHERE abs(id) > 20000",
        "VACUUM t",
        "INSERT INTO t SELECT i, '' FROM generate_series(1, 5000) AS i; DROP DATABASE other",
    ):
        for command in step.split("; "):
            sql(server.dsn(), command)
        sql(server.dsn(), "CHECKPOINT")
    until_summarized(server)

    files = sorted((server.data_directory / "pg_wal/summaries").iterdir())

    named = [summary for file in files if (summary := parse_summary_name(file.name))]
    assert sorted((name.timeline, str(name.start_lsn), str(name.end_lsn)) for name in named) == sorted(
        sql(server.dsn(), "SELECT tli::int, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()")
    )
    seen = 0
    for file, name in zip(files, named, strict=True):
        expected = sql(
            server.dsn(),
            "SELECT reltablespace::bigint, reldatabase::bigint, relfilenode::bigint, relforknumber::int,"
            " relblocknumber, is_limit_block FROM pg_wal_summary_contents(%s, %s::pg_lsn, %s::pg_lsn)",
            (name.timeline, str(name.start_lsn), str(name.end_lsn)),
        )
        found = {
            (fork.tablespace, fork.database, fork.relfilenode, fork.fork, block, limit)
            for fork in parse_summary(file.read_bytes())
            for block, limit in [
                *((block, False) for block in fork.blocks.tolist()),
                *([(fork.limit_block, True)] if fork.limit_block != 0xFFFFFFFF else []),
            ]
        }
        assert found == set(expected)
        seen += len(found)
    assert seen > 10_000


def test_a_summary_that_is_missing_is_made_up_for_by_the_lsns_of_pages(make_server: MakeServer, work_dir: Path) -> None:
    """And the backup says so."""
    server = quiet_server(make_server, 17)
    table(server, "t", 3000)
    repository = new_repository(work_dir / "repository")
    first = local(server, repository)
    sql(server.dsn(), "UPDATE t SET id = -id WHERE id % 100 = 0; CHECKPOINT")
    until_summarized(server)
    for file in (server.data_directory / "pg_wal/summaries").iterdir():
        found = parse_summary_name(file.name)
        if found is not None and found.end_lsn > first.start_lsn:
            file.unlink()

    second = local(server, repository)
    sql(server.dsn(), "ALTER SYSTEM SET summarize_wal = off")
    server.stop()
    server.start({"autovacuum": False, "fsync": False})
    sql(server.dsn(), "UPDATE t SET id = -id WHERE id % 90 = 0")
    third = local(server, repository)

    assert second.kind == third.kind == "incremental"
    assert "no WAL summary of timeline 1 from" in second.notes[0]
    assert "summarize_wal is off" in third.notes[0]
    assert "told by their LSNs" in second.notes[1]
    assert "told by their LSNs" in third.notes[1]
    expect_the_pages_on_disk(server, repository, work_dir / "as-it-is")


def test_without_checksums_contents_are_compared(make_server: MakeServer, work_dir: Path) -> None:
    """VACUUM marks pages all-visible without a new LSN then: had the LSN been believed, the map would say more than the page."""
    server = make_server(15, checksums=False, settings={"autovacuum": False})
    table(server, "t", 3000)
    sql(server.dsn(), "SELECT count(filler) FROM t")
    repository = new_repository(work_dir / "repository")
    local(server, repository)
    sql(server.dsn(), "VACUUM t")

    second = local(server, repository)

    assert second.kind == "full"
    assert "without data checksums" in second.notes[0]
    expect_the_pages_on_disk(server, repository, work_dir / "as-it-is")
    restore(repository, work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        sql(copy.dsn(), "CREATE EXTENSION pg_visibility")
        ((all_visible, on_pages),) = sql(
            copy.dsn(), "SELECT sum(all_visible::int), sum(pd_all_visible::int) FROM pg_visibility('t')"
        )
        assert all_visible == on_pages > 100


@pytest.mark.parametrize("within_a_second", [False, True])
def test_a_database_that_was_copied_into_the_place_of_another_is_not_taken_for_it(
    within_a_second: bool, make_server: MakeServer, work_dir: Path
) -> None:
    """Its files have the names of before, and its pages LSNs that are older than the first backup; even its times may be the same."""
    server = quiet_server(make_server, 15)
    for name in ("one", "other"):
        sql(server.dsn(), f"CREATE DATABASE {name} TEMPLATE template0")
        sql(server.dsn(name), "CREATE TABLE t (id int, filler text)")
        sql(server.dsn(name), f"INSERT INTO t SELECT i, repeat('{name}', 100) FROM generate_series(1, 5000) AS i")
    sql(server.dsn("other"), "COMMENT ON TABLE t IS 'of the other'")
    sql(server.dsn(), "CREATE DATABASE place TEMPLATE one OID 50000 STRATEGY file_copy")
    repository = new_repository(work_dir / "repository")
    version = server.data_directory / "base/50000/PG_VERSION"
    now = time.time()
    made, made_again = (now, now) if within_a_second else (now - 10, now)
    os.utime(version, (made, made))
    local(server, repository)
    sql(server.dsn(), "DROP DATABASE place")
    sql(server.dsn(), "CREATE DATABASE place TEMPLATE other OID 50000 STRATEGY file_copy")
    os.utime(version, (made_again, made_again))

    second = local(server, repository)

    assert second.kind == "incremental"
    expect_the_pages_on_disk(server, repository, work_dir / "as-it-is")


@pytest.fixture
def damaged(make_server: MakeServer, postgres_major: int, work_dir: Path) -> tuple[ThrowawayServer, Repository, str]:
    """A server, a backup of it, and the path of a table whose block 3 has had a wrong byte since."""
    server = quiet_server(make_server, postgres_major)
    table(server, "t", 3000)
    repository = new_repository(work_dir / "repository")
    path = relation_path(server, "t")
    local(server, repository)
    server.stop()
    with (server.data_directory / path).open("r+b") as file:
        file.seek(3 * 8192 + 4000)
        file.write(b"\xde\xad\xbe\xef")
    restart(server)
    return server, repository, path


def test_damaged_pages_are_named_and_stored_as_they_are(
    damaged: tuple[ThrowawayServer, Repository, str], work_dir: Path
) -> None:
    """In a full read; then in one that takes what changed, for as long as the page stays damaged."""
    server, repository, path = damaged

    found = [local(server, repository, full=True), local(server, repository), local(server, repository)]

    for manifest in found:
        assert [(page.path.decode(), page.block) for page in manifest.damaged_pages] == [(path, 3)]
    assert found[1].kind == found[2].kind == "incremental"
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []
    expect_the_pages_on_disk(server, repository, work_dir / "as-it-is")


def test_a_page_that_went_bad_without_wal_is_found_where_it_is_read(
    damaged: tuple[ThrowawayServer, Repository, str], work_dir: Path, postgres_major: int
) -> None:
    """Every page is where LSNs tell what changed; else those of the files whose turn it is."""
    server, repository, path = damaged

    second = local(server, repository, deep_check=1 if postgres_major >= 17 else 0)

    assert second.kind == "incremental"
    assert [(page.path.decode(), page.block) for page in second.damaged_pages] == [(path, 3)]
    expect_the_pages_on_disk(server, repository, work_dir / "as-it-is")


def test_tables_that_come_and_go_while_files_are_read(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    """One that was found is dropped before it is opened, one is made, one shrinks, one grows: WAL sees to all of them."""
    server = quiet_server(make_server, postgres_major)
    for name in ("dropped", "shrinking", "growing"):
        table(server, name, 20_000)
    repository = new_repository(work_dir / "repository")
    local(server, repository)

    def change() -> None:
        sql(server.dsn(), "DROP TABLE dropped; DELETE FROM shrinking WHERE id > 100")
        sql(server.dsn(), "VACUUM shrinking")
        sql(server.dsn(), "CHECKPOINT")
        table(server, "made", 2000)
        sql(server.dsn(), "INSERT INTO growing SELECT -id, filler FROM growing")
        sql(server.dsn(), "CHECKPOINT")

    request = BackupRequest(cluster="test", dsn=server.dsn(), mode="local", full=True)
    run_backup(request, repository, AtCopying(change))

    expect_equal_copy(server, repository, work_dir)


def test_a_session_that_is_ended_ends_the_backup(make_server: MakeServer, work_dir: Path) -> None:
    """With an error that says what was lost; the server knows of no backup afterwards, and the next one is good."""
    server = make_server(17)
    table(server, "t", 3000)
    repository = new_repository(work_dir / "repository")

    def end_it() -> None:
        ended = sql(
            server.dsn(),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pgkeep' AND backend_type = 'client backend'",
        )
        assert ended == [(True,)]

    request = BackupRequest(cluster="test", dsn=server.dsn(), mode="local")
    with pytest.raises(ServerError, match=r"the session that holds the backup was lost.*administrator command"):
        run_backup(request, repository, AtCopying(end_it))

    assert repository.catalog.names() == []
    local(server, repository)
    expect_equal_copy(server, repository, work_dir)


def test_a_rate_is_kept(make_server: MakeServer, work_dir: Path) -> None:
    """A backup of some 30 MB at 15 MB a second takes two seconds."""
    server = make_server(18)
    manifest = local(server, new_repository(work_dir / "repository"), rate=15 << 20)
    taken = (manifest.finished - manifest.started).total_seconds()
    assert taken > manifest.read_size / (15 << 20) - 1.2
