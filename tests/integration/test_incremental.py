"""Incremental backups over the wire: only what changed is read and stored, and every backup restores alone."""

from __future__ import annotations

import os
import random
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest

from pgkeep.backup.health import MAX_FETCH, unhealthy_cells
from pgkeep.repository.codec import compress
from pgkeep.repository.manifests import BackupName
from pgkeep.restore import RestoreRequest, make_plan
from pgkeep.verify import VerifyRequest, run_verify
from support.incremental import expect_equal_copy, expect_sound, extents_of, quiet_server, relation_path, restart
from support.jobs import SMALL, backup, new_repository, restore, running_copy, server_place
from support.servers import run_program, sql

if TYPE_CHECKING:
    from pgkeep.postgres.server import ThrowawayServer
    from pgkeep.repository import Repository
    from support.servers import MakeServer

_WITH_SUMMARIES = pytest.mark.parametrize("major", [17, 18])
_PAGE = 8192


def _table(server: ThrowawayServer, name: str, rows: int, database: str = "postgres") -> None:
    """Eight rows to a page of what hardly compresses, and that nobody vacuums."""
    sql(server.dsn(database), f"CREATE TABLE {name} (id int, filler text) WITH (autovacuum_enabled = off)")
    sql(
        server.dsn(database),
        f"INSERT INTO {name} SELECT i, (SELECT string_agg(md5(i::text || part::text), '')"
        f" FROM generate_series(1, 28) AS part) FROM generate_series(1, {rows}) AS i",
    )


@_WITH_SUMMARIES
def test_an_idle_cluster_costs_next_to_nothing(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Nothing of the large table is read; what is, is small files and the maps of free space and visibility."""
    server = quiet_server(make_server, major)
    _table(server, "large", 20_000)
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository, deep_check=0)
    backup(server.dsn(), repository, deep_check=0)

    idle = backup(server.dsn(), repository, deep_check=0)

    assert (idle.kind, idle.number, idle.notes) == ("incremental", 2, [])
    assert idle.logical_size == pytest.approx(first.logical_size, rel=0.001)
    assert idle.read_size < 15 << 20
    assert first.read_size > 40 << 20
    assert idle.new_size < 100_000


@_WITH_SUMMARIES
def test_one_percent_of_pages_changed_costs_about_one_percent(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """Of the table's bytes read and stored; scattered, so that hardly a cell of it has no changed page."""
    server = quiet_server(make_server, major)
    _table(server, "large", 64_000)
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository, deep_check=0)
    idle = backup(server.dsn(), repository, deep_check=0)
    (size,) = sql(server.dsn(), "SELECT pg_relation_size('large')")[0]
    pages = size // _PAGE
    # a locked row is a changed page, and its content hardly changes
    chosen = random.Random(1).sample(range(pages), pages // 100)
    sql(
        server.dsn(),
        "SELECT id FROM large WHERE ctid = ANY (%s::tid[]) FOR UPDATE",
        [[f"({page},1)" for page in chosen]],
    )

    incremental = backup(server.dsn(), repository, deep_check=0)

    changed = len(chosen) * _PAGE
    assert incremental.kind == "incremental"
    assert changed <= incremental.read_size - idle.read_size < 2 * changed
    # random hexadecimal digits halve when compressed
    assert incremental.new_size - idle.new_size < 1.2 * changed * first.stored_size / first.logical_size + 200_000
    restore(repository, work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        expect_sound(copy)


@_WITH_SUMMARIES
def test_relations_created_dropped_truncated_extended_and_rewritten(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """Each between two backups; the copy holds what the server holds, page by page."""
    server = quiet_server(make_server, major)
    for name in ("kept", "dropped", "truncated", "emptied", "extended", "rewritten", "shortened"):
        _table(server, name, 2000)
    sql(server.dsn(), "CREATE INDEX ON extended (id)")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    _table(server, "created", 1500)
    sql(server.dsn(), "CREATE INDEX ON created (filler)")
    sql(server.dsn(), "DROP TABLE dropped")
    sql(server.dsn(), "TRUNCATE truncated")
    sql(server.dsn(), "DELETE FROM emptied")
    sql(server.dsn(), "VACUUM emptied")
    sql(server.dsn(), "INSERT INTO extended SELECT id + 2000, filler FROM extended")
    sql(server.dsn(), "DELETE FROM shortened WHERE id > 300")
    sql(server.dsn(), "VACUUM shortened")
    sql(server.dsn(), "UPDATE rewritten SET id = -id WHERE id % 3 = 0")
    sql(server.dsn(), "VACUUM FULL rewritten")

    incremental = backup(server.dsn(), repository, deep_check=0)

    assert incremental.kind == "incremental"
    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_rows_deleted_before_a_truncation_do_not_come_back_with_pages_of_zeros(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """VACUUM cuts a table off, COPY extends it by pages that WAL does not tell of; the server counts on the old ones.

    pg_combinebackup brings the deleted rows back here: the length that the server names is the new one.
    """
    server = quiet_server(make_server, major)
    _table(server, "t", 8000)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "DELETE FROM t WHERE id > 80")
    sql(server.dsn(), "VACUUM t")
    with (
        psycopg.connect(server.dsn(), autocommit=True) as connection,
        connection.cursor() as cursor,
        cursor.copy("COPY t FROM STDIN") as copy,
    ):
        for number in range(200):
            copy.write_row((100_000 + number, "y" * 900))
    sql(server.dsn(), "CHECKPOINT")
    path = relation_path(server, "t")
    data = (server.data_directory / path).read_bytes()
    zeros = [start for start in range(0, len(data), _PAGE) if data[start : start + _PAGE] == bytes(_PAGE)]
    assert zeros, "the server did not extend the table by pages of zeros"

    incremental = backup(server.dsn(), repository, deep_check=0)

    assert incremental.kind == "incremental"
    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_changes_after_a_truncation_are_not_lost_among_several_summaries(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """The server reads summaries in any order, and a truncation makes it forget what later ones have told.

    pg_combinebackup loses the rows; in what order summaries are read is the file system's choice.
    """
    server = quiet_server(make_server, major)
    names = [f"t{number}" for number in range(8)]
    for name in names:
        _table(server, name, 400)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    # each is cut off in another summary, and grows in all of those that follow
    for number, name in enumerate(names):
        sql(server.dsn(), f"DELETE FROM {name} WHERE id > 200")
        sql(server.dsn(), f"VACUUM {name}")
        for grown in names[: number + 1]:
            sql(server.dsn(), f"INSERT INTO {grown} SELECT * FROM {grown} WHERE id <= 100")
        sql(server.dsn(), "CHECKPOINT")

    incremental = backup(server.dsn(), repository, deep_check=0)

    assert incremental.kind == "incremental"
    expect_equal_copy(server, repository, work_dir)


def test_a_relation_of_several_segments(make_server: MakeServer, work_dir: Path) -> None:
    """Changed in its second segment, truncated within its first one, extended into a second one again."""
    server = quiet_server(make_server, 18)
    sql(server.dsn(), "CREATE TABLE t (id int, filler text) WITH (fillfactor = 10, autovacuum_enabled = off)")
    sql(server.dsn(), "ALTER TABLE t ALTER filler SET STORAGE PLAIN")
    insert = "INSERT INTO t SELECT i, repeat('x', 800) FROM generate_series(%s, %s) AS i"
    sql(server.dsn(), insert, [1, 133_000])
    # it sets a flag in every page
    sql(server.dsn(), "VACUUM t")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    path = relation_path(server, "t")
    question = "SELECT count(*), sum(id), sum(length(filler)) FROM t"
    for change in (
        "UPDATE t SET filler = repeat('y', 800) WHERE id IN (5, 132000, 132999)",
        "DELETE FROM t WHERE id > 120000",
        None,
    ):
        if change is None:
            sql(server.dsn(), insert, [120_001, 132_500])
        else:
            sql(server.dsn(), change)
            sql(server.dsn(), "VACUUM t")
        incremental = backup(server.dsn(), repository, deep_check=0)
        assert incremental.kind == "incremental"
        assert incremental.read_size < 500 << 20
        target = work_dir / f"restored-{incremental.number}"
        restore(repository, target)
        with running_copy(target, server.binaries) as copy:
            assert sql(copy.dsn(), question) == sql(server.dsn(), question)
            expect_sound(copy)
        has_second = (server.data_directory / f"{path}.1").stat().st_size > 0
        assert has_second == (incremental.number != 2)


@_WITH_SUMMARIES
def test_databases_created_by_either_strategy_and_dropped(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Copied as files, a database is known to WAL as a whole only; copied by WAL, page by page."""
    server = quiet_server(make_server, major)
    sql(server.dsn(), "CREATE DATABASE origin")
    _table(server, "t", 1000, "origin")
    sql(server.dsn(), "CREATE DATABASE doomed")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "CREATE DATABASE by_files TEMPLATE origin STRATEGY file_copy")
    sql(server.dsn(), "CREATE DATABASE by_wal TEMPLATE origin STRATEGY wal_log")
    sql(server.dsn(), "DROP DATABASE doomed")
    sql(server.dsn("by_files"), "DELETE FROM t WHERE id <= 10")

    incremental = backup(server.dsn(), repository, deep_check=0)

    assert incremental.kind == "incremental"
    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_tablespaces_that_were_there_new_ones_and_databases_that_move(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """A database moves with ALTER DATABASE … SET TABLESPACE, a table with ALTER TABLE; one tablespace goes."""
    server = quiet_server(make_server, major)
    places = {name: server_place(work_dir / name) for name in ("old", "new", "gone")}
    for name in ("old", "gone"):
        sql(server.dsn(), f"CREATE TABLESPACE {name} LOCATION '{places[name]}'")
    sql(server.dsn(), "CREATE DATABASE moving")
    _table(server, "t", 1000, "moving")
    _table(server, "moved", 1000)
    sql(server.dsn(), "CREATE TABLE apart TABLESPACE old AS SELECT generate_series(1, 50000) AS id")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), f"CREATE TABLESPACE new LOCATION '{places['new']}'")
    sql(server.dsn(), "DROP TABLESPACE gone")
    sql(server.dsn(), "ALTER DATABASE moving SET TABLESPACE new")
    sql(server.dsn(), "ALTER TABLE moved SET TABLESPACE old")
    sql(server.dsn(), "DELETE FROM apart WHERE id % 1000 = 0")

    incremental = backup(server.dsn(), repository, deep_check=0)

    assert incremental.kind == "incremental"
    assert len(incremental.tablespaces) == 2
    new_places = {str(places[name]): str(work_dir / f"{name}-restored") for name in ("old", "new")}
    expect_equal_copy(server, repository, work_dir, new_places)


@_WITH_SUMMARIES
def test_visibility_and_free_space_maps_are_those_of_the_server(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """WAL of servers before 17.11 and 18.5 does not name the visibility map's pages that it clears."""
    server = quiet_server(make_server, major)
    sql(server.dsn(), "CREATE EXTENSION pg_visibility")
    _table(server, "t", 5000)
    sql(server.dsn(), "VACUUM (FREEZE) t")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "UPDATE t SET id = -id WHERE id IN (1, 2500, 5000)")

    assert backup(server.dsn(), repository, deep_check=0).kind == "incremental"

    restore(repository, work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        for question in ("pg_check_visible('t')", "pg_check_frozen('t')"):
            assert sql(copy.dsn(), f"SELECT * FROM {question}") == []
        summary = "SELECT * FROM pg_visibility_map_summary('t')"
        assert sql(copy.dsn(), summary) == sql(server.dsn(), summary)


@_WITH_SUMMARIES
def test_files_whose_times_and_sizes_lie(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Changed pages are known by WAL alone: times are set back, and sizes stay as they were."""
    server = quiet_server(make_server, major)
    _table(server, "t", 2000)
    path = server.data_directory / relation_path(server, "t")
    repository = new_repository(work_dir / "repository")
    sql(server.dsn(), "CHECKPOINT")
    before = path.stat()
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "SELECT id FROM t WHERE id % 100 = 0 FOR UPDATE")
    sql(server.dsn(), "CHECKPOINT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size

    assert backup(server.dsn(), repository, deep_check=0).kind == "incremental"

    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_unlogged_relations_come_back_empty_and_logged_ones_whole(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """A table that becomes unlogged between backups, one that becomes logged, and one that stays unlogged."""
    server = quiet_server(make_server, major)
    for name in ("becomes_unlogged", "becomes_logged", "stays"):
        _table(server, name, 500)
    sql(server.dsn(), "ALTER TABLE becomes_logged SET UNLOGGED")
    sql(server.dsn(), "ALTER TABLE stays SET UNLOGGED")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "ALTER TABLE becomes_unlogged SET UNLOGGED")
    sql(server.dsn(), "ALTER TABLE becomes_logged SET LOGGED")
    sql(server.dsn(), "INSERT INTO stays SELECT * FROM becomes_logged")

    assert backup(server.dsn(), repository, deep_check=0).kind == "incremental"

    restore(repository, work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        counts = {name: sql(copy.dsn(), f"SELECT count(*) FROM {name}")[0][0] for name in ("becomes_unlogged", "stays")}
        assert counts == {"becomes_unlogged": 0, "stays": 0}
        assert sql(copy.dsn(), "SELECT count(*) FROM becomes_logged") == [(500,)]


@_WITH_SUMMARIES
def test_the_restored_label_names_no_other_backup(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """A server refuses to start on a label with the lines of an incremental backup."""
    server = quiet_server(make_server, major)
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository)

    incremental = backup(server.dsn(), repository)

    assert incremental.kind == "incremental"
    assert incremental.parent == first.id
    assert b"INCREMENTAL" not in incremental.backup_label
    assert incremental.backup_label.startswith(b"START WAL LOCATION: ")
    restore(repository, work_dir / "restored")
    run_program(server, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    assert (work_dir / "restored" / "backup_label").read_bytes() == incremental.backup_label


@_WITH_SUMMARIES
def test_any_backups_may_go_and_the_others_restore(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Every other one of seven is deleted, the first and the newest's parent among them."""
    server = quiet_server(make_server, major)
    _table(server, "t", 3000)
    repository = new_repository(work_dir / "repository")
    manifests, sums = [], {}
    for number in range(7):
        sql(server.dsn(), f"UPDATE t SET id = id + 100000 WHERE id % 7 = {number}")
        manifest = backup(server.dsn(), repository)
        manifests.append(manifest)
        sums[manifest.id] = sql(server.dsn(), "SELECT count(*), sum(id) FROM t")
    for manifest in manifests[0::2][:-1] + manifests[5:6]:
        repository.store.delete(BackupName(manifest.id, manifest.system_identifier).object_name)

    left = [name.id for name in repository.catalog.names()]

    assert left == [manifests[number].id for number in (1, 3, 6)]
    for identifier in random.Random(2).sample(left, len(left)):
        restore(repository, work_dir / identifier, backup=identifier)
        with running_copy(work_dir / identifier, server.binaries) as copy:
            assert sql(copy.dsn(), "SELECT count(*), sum(id) FROM t") == sums[identifier]
    assert run_verify(VerifyRequest(), repository.store, repository).damage == []
    assert backup(server.dsn(), repository).kind == "incremental"


def _page(server: ThrowawayServer, path: str, number: int) -> bytes:
    """A page as it is on the server's disk."""
    with (server.data_directory / path).open("rb") as file:
        file.seek(number * _PAGE)
        return file.read(_PAGE)


def _put_page(server: ThrowawayServer, path: str, number: int, page: bytes) -> None:
    """Put a page on the server's disk, while the server is down."""
    server.stop()
    with (server.data_directory / path).open("r+b") as file:
        file.seek(number * _PAGE)
        file.write(page)
    restart(server)


def _expect_full(server: ThrowawayServer, repository: Repository, reason: str, **options: object) -> None:
    manifest = backup(server.dsn(), repository, **options)
    assert manifest.kind == "full"
    assert any(reason in note for note in manifest.notes), manifest.notes


@_WITH_SUMMARIES
def test_without_summaries_everything_is_read_and_only_changes_are_stored(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """summarize_wal is off, and the backup says so; once it has been on from one backup to the next, only changes are read."""
    server = quiet_server(make_server, major)
    _table(server, "t", 5000)
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository)
    server.stop()
    restart(server, summarize_wal=False)

    off = backup(server.dsn(), repository)

    assert (off.kind, off.parent) == ("full", first.id)
    assert "summarize_wal is off" in off.notes[0]
    assert off.new_size < 300_000
    server.stop()
    restart(server)
    _expect_full(server, repository, "WAL summaries are required")
    assert backup(server.dsn(), repository).kind == "incremental"


@_WITH_SUMMARIES
def test_where_summaries_are_missing_everything_is_read(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Their files are gone, and so is the WAL that they would be made from again: the note has the server's words."""
    server = quiet_server(make_server, major)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository)
    for _ in range(3):
        sql(server.dsn(), "SELECT pg_switch_wal()")
        sql(server.dsn(), "CHECKPOINT")
    server.stop()
    for summary in (server.data_directory / "pg_wal" / "summaries").iterdir():
        summary.unlink()
    restart(server)

    _expect_full(server, repository, "WAL summaries are required")

    assert backup(server.dsn(), repository).kind == "incremental"


@_WITH_SUMMARIES
def test_a_server_that_takes_no_sql_session_is_read_wholly(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Which relations were truncated takes one, and the replication protocol does not tell."""
    server = quiet_server(make_server, major)
    repository = new_repository(work_dir / "repository")
    sql(server.dsn(), "CREATE ROLE walsender LOGIN REPLICATION")
    dsn = server.dsn(user="walsender")
    assert backup(dsn, repository).kind == "full"
    assert backup(dsn, repository).kind == "incremental"
    server.configure(hba="local all postgres trust\nlocal replication all trust\n")
    sql(server.dsn(), "SELECT pg_reload_conf()")

    manifest = backup(dsn, repository)

    assert manifest.kind == "full"
    assert "takes an SQL session" in manifest.notes[0]


def test_checksums_turned_off_and_on_take_a_full_read(make_server: MakeServer, work_dir: Path) -> None:
    """pg_checksums rewrites pages, and writes no WAL."""
    server = quiet_server(make_server, 17)
    _table(server, "t", 1000)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository)
    for switch, word in (("--disable", "off"), ("--enable", "on")):
        server.stop()
        run_program(server, "pg_checksums", switch, "-D", server.data_directory)
        restart(server)
        _expect_full(server, repository, f"page checksums were turned {word}")
        assert backup(server.dsn(), repository).kind == "incremental"
    expect_equal_copy(server, repository, work_dir)


def test_another_server_in_the_same_place_takes_a_full_read(make_server: MakeServer, work_dir: Path) -> None:
    """Its system identifier is another one."""
    repository = new_repository(work_dir / "repository")
    first = backup(quiet_server(make_server, 17).dsn(), repository)

    other = backup(quiet_server(make_server, 17).dsn(), repository)

    assert (other.kind, other.parent) == ("full", "")
    assert f"backup {first.id} is of another server" in other.notes[0]


def test_postgresql_15_is_read_wholly_and_only_changes_are_stored(make_server: MakeServer, work_dir: Path) -> None:
    server = quiet_server(make_server, 15)
    _table(server, "t", 20_000)
    # who reads a row first changes its page
    sql(server.dsn(), "SELECT count(*) FROM t")
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository)
    sql(server.dsn(), "SELECT id FROM t WHERE id % 1000 = 0 FOR UPDATE")

    second = backup(server.dsn(), repository)

    assert (second.kind, second.parent) == ("full", first.id)
    assert "PostgreSQL 15 cannot tell what changed" in second.notes[0]
    assert second.read_size > 20 << 20
    assert second.new_size < first.new_size / 10
    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_full_rests_on_no_other_backup(make_server: MakeServer, work_dir: Path, major: int) -> None:
    server = quiet_server(make_server, major)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository)

    full = backup(server.dsn(), repository, full=True)

    assert (full.kind, full.parent, full.number) == ("full", "", 0)
    assert full.notes == ["a full read was asked for"]
    assert backup(server.dsn(), repository).parent == full.id


@_WITH_SUMMARIES
def test_a_parent_of_the_timeline_before_is_built_on(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """A server that recovered to the end of its WAL goes on on timeline 2, and its summaries go on with it."""
    server = quiet_server(make_server, major)
    _table(server, "t", 2000)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "SELECT id FROM t WHERE id % 100 = 0 FOR UPDATE")
    server.stop()
    (server.data_directory / "recovery.signal").touch()
    restart(server, restore_command="false")
    while sql(server.dsn(), "SELECT pg_is_in_recovery()") == [(True,)]:
        time.sleep(0.05)
    sql(server.dsn(), "DELETE FROM t WHERE id % 100 = 1")

    promoted = backup(server.dsn(), repository, deep_check=0)

    assert (promoted.timeline, promoted.kind) == (2, "incremental")
    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_a_parent_that_is_not_in_the_servers_past_is_only_compared_with(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """The server is taken back to before its newest backup: an older one is built on, and where there is none, all is read."""
    server = quiet_server(make_server, major)
    _table(server, "t", 2000)
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository)
    sql(server.dsn(), "DELETE FROM t WHERE id > 1000")
    lost = backup(server.dsn(), repository)
    server.stop()
    target = work_dir / "back"
    restore(repository, target, backup=first.id)
    with running_copy(target, server.binaries) as copy:
        back = backup(copy.dsn(), repository)
        assert back.timeline == 2
        assert back.parent == first.id
        assert any(lost.id in note and "not in the server's past" in note for note in back.notes), back.notes
        assert sql(copy.dsn(), "SELECT count(*) FROM t") == [(2000,)]
        restore(repository, work_dir / "restored", backup=back.id)
    with running_copy(work_dir / "restored", server.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM t") == [(2000,)]


@_WITH_SUMMARIES
def test_a_parent_that_is_damaged_in_the_repository_is_done_without(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """Its listings are gone: the new backup says so and is whole."""
    server = quiet_server(make_server, major)
    _table(server, "t", 500)
    repository = new_repository(work_dir / "repository")
    first = backup(server.dsn(), repository)
    (pack,) = [info.name for info in repository.store.list("packs/meta/")]
    repository.store.delete(pack)

    second = backup(server.dsn(), repository)

    assert (second.kind, second.parent) == ("full", "")
    assert f"backup {first.id} cannot be built on: {pack} is gone" in second.notes[0]


@_WITH_SUMMARIES
def test_a_damaged_page_in_an_incremental_is_found_and_recorded(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """In a table that changed; it stays recorded in the next one, and is gone once the page is mended."""
    server = quiet_server(make_server, major)
    _table(server, "t", 2000)
    path = relation_path(server, "t")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    sql(server.dsn(), "SELECT id FROM t WHERE id IN (1, 1000, 2000) FOR UPDATE")
    changed = sql(server.dsn(), "SELECT (ctid::text::point)[0]::int FROM t WHERE id = 1000")[0][0]
    sql(server.dsn(), "CHECKPOINT")
    good = _page(server, path, changed)
    _put_page(server, path, changed, good[:5000] + b"\xde\xad\xbe\xef" + good[5004:])

    found = backup(server.dsn(), repository, deep_check=0)
    again = backup(server.dsn(), repository, deep_check=0)
    _put_page(server, path, changed, good)
    mended = backup(server.dsn(), repository, deep_check=0)

    for manifest, damaged in ((found, [(path, changed)]), (again, [(path, changed)]), (mended, [])):
        assert manifest.kind == "incremental"
        assert [(page.path.decode(), page.block) for page in manifest.damaged_pages] == damaged
        assert manifest.unexplained_pages == []
    plan = make_plan(RestoreRequest(target=str(work_dir / "plan"), backup=found.id), repository)
    assert any("damaged" in note for note in plan.notes)
    expect_equal_copy(server, repository, work_dir)


@_WITH_SUMMARIES
def test_a_page_that_changed_behind_the_servers_back_is_an_alarm(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """A lost write: the page is as it was some time ago, checksum and all. The deep check finds it within its rounds."""
    server = quiet_server(make_server, major)
    _table(server, "t", 2000)
    path = relation_path(server, "t")
    sql(server.dsn(), "CHECKPOINT")
    old = _page(server, path, 7)
    sql(server.dsn(), "SELECT id FROM t FOR UPDATE")
    sql(server.dsn(), "CHECKPOINT")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=1 / 3)
    clean = [backup(server.dsn(), repository, deep_check=1 / 3) for _ in range(3)]
    _put_page(server, path, 7, old)

    rounds = [backup(server.dsn(), repository, deep_check=1 / 3) for _ in range(3)]

    assert [manifest.unexplained_pages for manifest in clean] == [[], [], []]
    assert [manifest.kind for manifest in (*clean, *rounds)] == ["incremental"] * 6
    found = [(page.path.decode(), page.block) for manifest in rounds for page in manifest.unexplained_pages]
    assert found == [(path, 7)]
    assert any(f"{path} block 7 differs from backup" in note for manifest in rounds for note in manifest.notes)


def test_hint_bits_and_dead_rows_are_no_alarm(make_server: MakeServer, work_dir: Path) -> None:
    """Reading after a bulk change sets hint bits; pruning and vacuuming change pages without a row being touched."""
    server = quiet_server(make_server, 17)
    _table(server, "t", 3000)
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=1)
    for change in (
        "SELECT count(*) FROM t",
        "UPDATE t SET id = -id WHERE id % 5 = 0",
        "SELECT count(*) FROM t WHERE filler > 'a'",
        "VACUUM t",
        "VACUUM (FREEZE) t",
        "CREATE INDEX ON t USING gist (int4range(0, abs(id)))",
        "CREATE INDEX ON t USING gin (to_tsvector('simple', filler))",
        "CREATE INDEX ON t USING spgist (filler)",
        "CREATE INDEX ON t USING brin (id)",
        "CREATE INDEX ON t USING hash (id)",
        "DELETE FROM t WHERE id % 7 = 0",
        "VACUUM t",
    ):
        sql(server.dsn(), change)
        manifest = backup(server.dsn(), repository, deep_check=1)
        assert (manifest.kind, manifest.unexplained_pages) == ("incremental", []), change
    expect_equal_copy(server, repository, work_dir)


def _compressed(repository: Repository, pages: list[bytes]) -> int:
    """What pages take when nothing but them is compressed, a cell's worth at a time."""
    parameters = repository.parameters
    room = parameters.cell_size // parameters.page_size
    return sum(
        len(compress(b"".join(pages[start : start + room]), parameters.compression_level))
        for start in range(0, len(pages), room)
    )


def _stored(repository: Repository) -> int:
    """Bytes of all packs: pages, maps and listings."""
    return sum(info.size for info in repository.store.list("packs/"))


@pytest.mark.timeout(600)
def test_thirty_incrementals_later_maps_are_healthy_and_only_changes_were_stored(
    make_server: MakeServer, work_dir: Path
) -> None:
    """One page in a hundred changes each time: cells stay within the bounds, and stored bytes within 15 % of the changes'."""
    server = quiet_server(make_server, 18)
    _table(server, "t", 32_000)
    path = relation_path(server, "t")
    repository = new_repository(work_dir / "repository")
    backup(server.dsn(), repository, deep_check=0)
    # what is stored of other files settles
    backup(server.dsn(), repository, deep_check=0)
    before = np.fromfile(server.data_directory / path, np.uint8).reshape(-1, _PAGE)
    cell_pages = repository.parameters.cell_size // _PAGE
    chance = random.Random(3)
    first, changes = _stored(repository), 0
    for _ in range(30):
        chosen = [f"({page},1)" for page in chance.sample(range(len(before)), len(before) // 100)]
        sql(server.dsn(), "SELECT id FROM t WHERE ctid = ANY (%s::tid[]) FOR UPDATE", [chosen])
        manifest = backup(server.dsn(), repository, deep_check=0)
        assert manifest.kind == "incremental"
        after = np.fromfile(server.data_directory / path, np.uint8).reshape(-1, _PAGE)
        changes += _compressed(repository, [page.tobytes() for page in after[(after != before).any(axis=1)]])
        before = after
        extents = extents_of(repository, manifest, path)
        assert unhealthy_cells(extents, cell_pages, max_fetch=MAX_FETCH + 0.1).tolist() == []
    stored = _stored(repository) - first

    assert changes > 4 << 20
    assert stored < 1.15 * changes
    expect_equal_copy(server, repository, work_dir)


@pytest.mark.parametrize("deep_check", [0, 1])
def test_cells_that_changed_too_often_are_stored_anew(
    make_server: MakeServer, work_dir: Path, deep_check: float
) -> None:
    """Four cells of 32 pages, of which two more each change every time; changes alone are read, or all and compared."""
    server = quiet_server(make_server, 17)
    _table(server, "t", 1200)
    path = relation_path(server, "t")
    repository = new_repository(work_dir / "repository", SMALL)
    backup(server.dsn(), repository, deep_check=deep_check)
    contents = []
    for number in range(20):
        chosen = [f"({page},1)" for page in range(number % 16, 128, 16)]
        sql(server.dsn(), "SELECT id FROM t WHERE ctid = ANY (%s::tid[]) FOR UPDATE", [chosen])
        manifest = backup(server.dsn(), repository, deep_check=deep_check)
        extents = extents_of(repository, manifest, path)
        # what one cell leaves in a bundle when it is stored anew counts against the others next time
        assert unhealthy_cells(extents, SMALL.cell_size // _PAGE, max_fetch=MAX_FETCH + 1).tolist() == []
        contents.append(len(np.unique(extents["id"])))
    # their number falls where cells are stored anew
    assert min(later - earlier for earlier, later in pairwise(contents)) < 0
    expect_equal_copy(server, repository, work_dir)
