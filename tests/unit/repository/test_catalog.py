from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pgkeep.errors import DamageError, NotFoundError
from pgkeep.repository import Repository
from pgkeep.repository.manifests import BackupName, Catalog, DamagedPage, Manifest, Tablespace, WalRange, new_backup_id
from pgkeep.repository.maps import Directory
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.store import ObjectExists, ObjectMissing

MOMENT = datetime(2026, 11, 23, 3, 4, 5, 678_901, tzinfo=UTC)


def manifest(identity: str, cluster: str = "auth", system_identifier: int = 7123) -> Manifest:
    return Manifest(
        id=identity, cluster=cluster, label="ночь", mode="stream", system_identifier=system_identifier,
        server_version=180001, from_standby=False, started=MOMENT, finished=MOMENT, timeline=1, start_lsn=2**63,
        stop_lsn=2**64 - 1, block_size=8192, page_size=8192, segment_blocks=131072, data_checksums=True, backup_label=b"\xff",
        tablespace_map=b"", tablespaces=[Tablespace(16999, b"/data/\xff", 5)],
        directories=[Directory(b"base/5", 0o700, [bytes(32)], 1, 2)],
        wal=WalRange(1, 0, 1, 16 << 20, ["000000010000000000000002"], 3), logical_size=1, stored_size=2, new_size=3,
        files=4, damaged_pages=[DamagedPage(b"base/5/1", 7)], writer="pgkeep",
    )  # fmt: skip


@pytest.fixture
def catalog(repository: Repository) -> Catalog:
    """Three backups of two clusters, committed out of order."""
    catalog = repository.catalog
    catalog.commit(manifest("20261102T000000Z-bbbbbbbb", "other", 99))
    catalog.commit(manifest("20261101T000000Z-aaaaaaaa"))
    catalog.commit(manifest("20261101T120000Z-cccccccc"))
    return catalog


def test_a_manifest_comes_back_as_it_was_committed(repository: Repository) -> None:
    taken = manifest("20261101T000000Z-aaaaaaaa")
    repository.catalog.commit(taken)
    assert list(repository.catalog.read_all()) == [taken]
    assert repository.clusters() == [7123]


def test_backups_are_listed_oldest_first_over_all_clusters(catalog: Catalog) -> None:
    assert [name.id[:11] for name in catalog.names()] == ["20261101T00", "20261101T12", "20261102T00"]
    assert [found.id[-8:] for found in catalog.read_all("auth")] == ["aaaaaaaa", "cccccccc"]
    assert [found.id[-8:] for found in catalog.read_all()] == ["aaaaaaaa", "cccccccc", "bbbbbbbb"]


@pytest.mark.parametrize(
    ("reference", "cluster", "found"),
    [
        ("latest", None, "bbbbbbbb"),
        ("latest", "auth", "cccccccc"),
        ("latest", "other", "bbbbbbbb"),
        ("20261101T000000Z-aaaaaaaa", None, "aaaaaaaa"),
        ("20261101T000000Z-aaaaaaaa", "auth", "aaaaaaaa"),
        ("20261101T12", None, "cccccccc"),
        ("20261102", "other", "bbbbbbbb"),
        ("2026", "other", "bbbbbbbb"),
    ],
)
def test_a_backup_is_found_by_latest_id_or_prefix(
    catalog: Catalog, reference: str, cluster: str | None, found: str
) -> None:
    assert catalog.find(reference, cluster).id[-8:] == found


@pytest.mark.parametrize(
    ("reference", "cluster", "message"),
    [
        ("20261101", None, "2 backups have an id that begins with '20261101'"),
        ("2026", "auth", "2 backups have an id that begins with '2026' in cluster auth"),
        ("2027", None, "no backup has an id that begins with '2027'"),
        ("20261102", "auth", "no backup has an id that begins with '20261102' in cluster auth"),
        ("20261102T000000Z-bbbbbbbb", "auth", "no backup has an id"),
        ("latest", "nobody", "there is no backup of cluster nobody"),
    ],
)
def test_a_reference_to_none_or_several_backups_is_an_error(
    catalog: Catalog, reference: str, cluster: str | None, message: str
) -> None:
    with pytest.raises(NotFoundError, match=message) as caught:
        catalog.find(reference, cluster)
    assert caught.value.hint


def test_an_empty_repository_has_no_latest_backup(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match=r"there is no backup in file://.* yet") as caught:
        repository.catalog.find("latest")
    assert "pgkeep backup" in str(caught.value.hint)


def test_a_backup_cannot_be_committed_twice_or_under_an_id_that_is_taken(catalog: Catalog) -> None:
    with pytest.raises(ObjectExists):
        catalog.commit(manifest("20261101T000000Z-aaaaaaaa"))


def test_a_damaged_manifest_is_named_and_the_others_are_found(
    catalog: Catalog, damage: Callable[[str, int], None]
) -> None:
    damage("clusters/99/backups/20261102T000000Z-bbbbbbbb", 999)
    with pytest.raises(DamageError, match="clusters/99/backups/20261102T000000Z-bbbbbbbb is damaged"):
        catalog.find("latest")
    assert catalog.find("20261101T12").id[-8:] == "cccccccc"


def test_a_manifest_copied_to_another_name_is_no_backup(store: PosixStore, catalog: Catalog) -> None:
    """An attacker cannot show an old backup as the newest."""
    store.put("clusters/7123/backups/20270101T000000Z-aaaaaaaa", [store.get(catalog.names()[0].object_name)])
    with pytest.raises(DamageError, match="20270101T000000Z-aaaaaaaa is damaged"):
        catalog.find("latest")


def test_a_manifest_that_went_since_the_listing_is_missing(store: PosixStore, catalog: Catalog) -> None:
    name = catalog.names()[0]
    store.delete(name.object_name)
    with pytest.raises(ObjectMissing):
        catalog.read(name)


def test_reading_all_passes_over_a_backup_that_was_removed_meanwhile(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [*catalog.names(), BackupName("20261103T000000Z-dddddddd", 7123)]
    monkeypatch.setattr(catalog, "names", lambda: listed)
    assert [found.id for found in catalog.read_all()] == [name.id for name in listed[:-1]]


def test_a_manifest_can_be_read_without_its_directories(catalog: Catalog) -> None:
    assert {len(found.directories) for found in catalog.read_all(directories=False)} == {0}
    assert {len(found.directories) for found in catalog.read_all()} == {1}


def test_ids_sort_by_time_and_differ_within_a_millisecond() -> None:
    """Two backups of a small cluster may begin within one second, and ``latest`` must be the later one."""
    moment = MOMENT.replace(second=5, microsecond=6000)
    first, twin = new_backup_id(moment), new_backup_id(moment)
    assert first.startswith("20261123T030405.006Z-")
    assert first != twin
    assert max(first, twin) < new_backup_id(moment.replace(microsecond=7000)) < new_backup_id(moment.replace(second=6))
