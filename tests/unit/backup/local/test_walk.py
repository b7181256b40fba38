from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from pgkeep.backup.local.walk import DataDirectory, FoundDirectory
from pgkeep.errors import ServerSettingError
from pgkeep.postgres.control_file import ControlFile


@dataclass
class OfVersion:
    """As much of a control file as names the directories of tablespaces."""

    catalog_version: int = 202209061


CONTROL = cast("ControlFile", OfVersion())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory's bones."""
    place = tmp_path / "data"
    for name in ("base/5", "global", "pg_wal/archive_status", "pg_wal/summaries", "pg_stat_tmp", "pg_tblspc", "log"):
        (place / name).mkdir(parents=True)
    for name in ("base/5/1259", "base/5/PG_VERSION", "global/1262", "global/pg_control", "PG_VERSION", "log/today"):
        (place / name).write_bytes(b"some bytes")
    return place


def found_in(place: Path, major: int = 15) -> tuple[set[str], set[str]]:
    """Directories and files of the backup."""
    directory = DataDirectory(os.fsencode(place), major, CONTROL)
    directories, files = set[str](), set[str]()
    for found in directory.walk():
        kind = directories if isinstance(found, FoundDirectory) else files
        name = found.path.decode()
        assert name not in directories | files
        assert os.path.dirname(name) in directories | {""} or "pg_tblspc" in name
        kind.add(name)
    return directories, files


def test_everything_is_found_but_the_control_file_which_comes_last(data: Path) -> None:
    directories, files = found_in(data)
    assert files == {"base/5/1259", "base/5/PG_VERSION", "global/1262", "PG_VERSION", "log/today"}
    assert directories == {
        *("base", "base/5", "global", "log", "pg_stat_tmp", "pg_tblspc", "pg_wal", "pg_wal/archive_status")
    }


def test_from_17_on_there_is_a_place_for_summaries(data: Path) -> None:
    assert found_in(data, 17)[0] - found_in(data, 15)[0] == {"pg_wal/summaries"}


def test_wal_and_what_a_server_makes_anew_are_left_out(data: Path) -> None:
    before = found_in(data)
    for name in (
        *("pg_wal/000000010000000000000001", "pg_wal/archive_status/000000010000000000000001.ready"),
        *("pg_stat_tmp/global.stat", "postmaster.pid", "postmaster.opts", "backup_label", "backup_manifest"),
        *("base/5/pg_internal.init", "base/5/t3_16400", "global/pg_internal.init.17", "postgresql.auto.conf.tmp"),
    ):
        (data / name).write_bytes(b"")
    (data / "base/pgsql_tmp").mkdir()
    (data / "base/pgsql_tmp/pgsql_tmp12.0").write_bytes(b"")
    assert found_in(data) == before


def test_of_an_unlogged_relation_only_the_init_fork_is_found(data: Path) -> None:
    _, before = found_in(data)
    for name in ("16400", "16400.1", "16400_init", "16400_vm", "16400_fsm", "16401", "164001"):
        (data / "base/5" / name).write_bytes(b"")
    assert found_in(data)[1] - before == {"base/5/16400_init", "base/5/16401", "base/5/164001"}


def test_of_a_tablespace_only_what_is_of_this_version_is_found(data: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    for version in ("PG_15_202209061", "PG_17_202406281"):
        (place / version / "5").mkdir(parents=True)
        (place / version / "5/16500").write_bytes(b"")
    (data / "pg_tblspc/16390").symlink_to(place)

    directories, files = found_in(data)

    assert {name for name in directories | files if name.startswith("pg_tblspc/")} == {
        "pg_tblspc/16390/PG_15_202209061",
        "pg_tblspc/16390/PG_15_202209061/5",
        "pg_tblspc/16390/PG_15_202209061/5/16500",
    }
    (tablespace,) = DataDirectory(os.fsencode(data), 15, CONTROL).tablespaces
    assert (tablespace.oid, tablespace.location) == (16390, os.fsencode(place))


def test_a_tablespace_inside_the_data_directory_is_found_once(data: Path) -> None:
    (data / "inside/PG_15_202209061/5").mkdir(parents=True)
    (data / "inside/PG_15_202209061/5/16500").write_bytes(b"")
    (data / "pg_tblspc/16390").symlink_to(data / "inside")

    directories, files = found_in(data)

    assert {name for name in files if name.endswith("16500")} == {"pg_tblspc/16390/PG_15_202209061/5/16500"}
    assert "inside" in directories
    assert "inside/PG_15_202209061" not in directories


def test_a_link_to_the_wal_elsewhere_becomes_a_directory(data: Path, tmp_path: Path) -> None:
    before = found_in(data)
    (data / "pg_wal").rename(tmp_path / "wal")
    (data / "pg_wal").symlink_to(tmp_path / "wal")
    assert found_in(data) == before


def test_other_links_and_sockets_are_left_out(data: Path, tmp_path: Path) -> None:
    before = found_in(data)
    (data / "conf").symlink_to(tmp_path)
    os.mkfifo(data / "pipe")
    assert found_in(data) == before


def test_a_tablespace_that_is_not_here_is_an_error_that_names_it(data: Path) -> None:
    (data / "pg_tblspc/16390").symlink_to("/nowhere/at/all")
    with pytest.raises(ServerSettingError, match="/nowhere/at/all") as raised:
        DataDirectory(os.fsencode(data), 15, CONTROL)
    assert "--mode stream" in str(raised.value.hint)
