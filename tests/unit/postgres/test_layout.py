from __future__ import annotations

import pytest

from pgkeep.postgres.layout import (
    Fork,
    RelationFile,
    is_checksummed,
    is_excluded,
    must_be_empty,
    parse_relation_path,
)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        (b"global/1262", RelationFile(1664, 0, 1262, Fork.MAIN, 0)),
        (b"global/1262_fsm", RelationFile(1664, 0, 1262, Fork.FSM, 0)),
        (b"base/5/16384", RelationFile(1663, 5, 16384, Fork.MAIN, 0)),
        (b"base/5/16384.12", RelationFile(1663, 5, 16384, Fork.MAIN, 12)),
        (b"base/5/16384_vm.3", RelationFile(1663, 5, 16384, Fork.VM, 3)),
        (b"base/5/16384_init", RelationFile(1663, 5, 16384, Fork.INIT, 0)),
        (b"base/4294967295/4294967295", RelationFile(1663, 4294967295, 4294967295, Fork.MAIN, 0)),
        (b"pg_tblspc/16500/PG_15_202209061/5/2619.1", RelationFile(16500, 5, 2619, Fork.MAIN, 1)),
    ],
)
def test_a_relation_file_is_known_by_its_path(path: bytes, file: RelationFile) -> None:
    assert parse_relation_path(path) == file
    assert is_checksummed(path)


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"16384",
        b"PG_VERSION",
        b"base/16384",
        b"base/5/PG_VERSION",
        b"base/5/pg_filenode.map",
        b"base/5/pg_internal.init",
        b"base/5/t3_16384",
        b"base/5/t3_16384_vm",
        b"base/5/16384_toast",
        b"base/5/16384.",
        b"base/5/16384.0",
        b"base/5/016384",
        b"base/5/16384\n",
        b"base/5/16384.bak",
        b"base/5/4294967296",
        b"base/5/INCREMENTAL.16384",
        b"base/pgsql_tmp/pgsql_tmp1.0",
        b"global/pg_control",
        b"global/5/16384",
        b"pg_tblspc/16500/PG_15_202209061/16384",
        b"pg_tblspc/16500/other/5/16384",
        b"pg_xact/0000",
        b"./base/5/16384",
        "base/٣/16384".encode(),
    ],
)
def test_other_files_are_no_relations_and_have_no_checksums(path: bytes) -> None:
    assert parse_relation_path(path) is None
    assert not is_checksummed(path)


@pytest.mark.parametrize(
    "path",
    [
        b"postmaster.pid",
        b"postmaster.opts",
        b"backup_label",
        b"tablespace_map",
        b"backup_manifest",
        b"postgresql.auto.conf.tmp",
        b"current_logfiles.tmp",
        b"global/pg_internal.init",
        b"base/5/pg_internal.init.1234",
        b"base/pgsql_tmp/pgsql_tmp12.0",
        b"base/5/t3_16384",
        b"pg_tblspc/16500/PG_15_202209061/5/t3_16384_fsm.1",
        b"pg_wal/000000010000000000000001",
        b"pg_wal/archive_status/000000010000000000000001.ready",
        b"pg_replslot/mine/state",
        b"pg_stat_tmp/global.stat",
    ],
)
def test_what_a_base_backup_leaves_out(path: bytes) -> None:
    assert is_excluded(path)


@pytest.mark.parametrize(
    "path",
    [
        b"PG_VERSION",
        b"postgresql.auto.conf",
        b"global/pg_control",
        b"base/5/16384",
        b"base/5/pg_filenode.map",
        b"pg_xact/0000",
        b"pg_replslot",
        b"pg_wal",
        b"pg_logical/replorigin_checkpoint",
        b"log/postgresql.log",
        b"backup_label.old",
        b"t3_16384",
    ],
)
def test_what_a_base_backup_holds(path: bytes) -> None:
    assert not is_excluded(path)


@pytest.mark.parametrize(
    ("directory", "empty"),
    [(b"pg_wal", True), (b"pg_wal/summaries", True), (b"pg_notify", True), (b"pg_xact", False), (b"base/5", False)],
)
def test_directories_without_contents_are_known(directory: bytes, empty: bool) -> None:
    assert must_be_empty(directory) is empty
