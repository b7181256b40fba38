"""Superusers are found in the files of real clusters, whatever they are called and however often they were changed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import DamageError, TargetError
from pgkeep.postgres.roles import login_superusers
from pgkeep.postgres.server import ThrowawayServer
from support.servers import MAJORS, TEST_SETTINGS, MakeServer, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.binaries import ServerBinaries

ODD_NAME = "Großer Chef"


@pytest.fixture(params=MAJORS, ids=lambda major: f"pg{major}")
def cluster(
    request: pytest.FixtureRequest, binaries_of: Callable[[int], ServerBinaries], work_root: Path
) -> Iterator[ThrowawayServer]:
    """A cluster of each version that was never started, whose superuser has an odd name."""
    with ThrowawayServer(binaries_of(request.param), parent=work_root) as server:
        server.initdb(user=ODD_NAME)
        yield server


def test_the_name_that_initdb_was_given_is_found(cluster: ThrowawayServer) -> None:
    """In a cluster that never ran; the roles that may not log in are left out."""
    assert login_superusers(cluster.data_directory) == [ODD_NAME]


def test_roles_that_were_made_renamed_demoted_and_vacuumed_away_come_in_the_right_order(
    cluster: ThrowawayServer,
) -> None:
    """What is there now comes first; an old name may follow, and never one that may not log in."""
    cluster.start(TEST_SETTINGS)
    dsn = cluster.dsn(user=ODD_NAME)
    sql(dsn, "CREATE ROLE second SUPERUSER LOGIN; CREATE ROLE plain LOGIN; CREATE ROLE closed SUPERUSER NOLOGIN")
    sql(dsn, "ALTER ROLE second RENAME TO boss")
    sql(dsn, "CREATE ROLE demoted SUPERUSER LOGIN; ALTER ROLE demoted NOSUPERUSER")
    cluster.stop()

    found = login_superusers(cluster.data_directory)

    assert set(found[:2]) == {ODD_NAME, "boss"}
    assert not {"plain", "closed"} & set(found)

    cluster.start(TEST_SETTINGS)
    sql(dsn, "VACUUM FULL pg_authid")
    cluster.stop()

    assert sorted(login_superusers(cluster.data_directory)) == sorted([ODD_NAME, "boss"])


def test_many_roles_fill_many_pages(make_server: MakeServer) -> None:
    """The superuser stands on the last page too."""
    server = make_server(17)
    sql(server.dsn(), "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE format('CREATE ROLE r%s', i); END LOOP; END $$")
    sql(server.dsn(), "CREATE ROLE late SUPERUSER LOGIN")
    server.stop()

    assert login_superusers(server.data_directory) == ["postgres", "late"]


def test_a_map_that_is_damaged_is_refused(cluster: ThrowawayServer) -> None:
    """By its checksum, and by its length."""
    path = cluster.data_directory / "global" / "pg_filenode.map"
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 12, 7)

    path.write_bytes(data)
    with pytest.raises(DamageError, match="checksum"):
        login_superusers(cluster.data_directory)
    path.write_bytes(data[:100])
    with pytest.raises(DamageError, match="not a relation map"):
        login_superusers(cluster.data_directory)


def test_a_directory_that_holds_no_cluster_is_refused(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(TargetError, match=str(tmp_path)):
        login_superusers(tmp_path)
