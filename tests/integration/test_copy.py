"""Copies of backups in other repositories: each alone brings the cluster back, and nothing is moved that is there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from pgkeep.copies import CopyReport, CopyRequest, plan_copy, run_copy, run_mend
from pgkeep.demo.workload import load
from pgkeep.errors import BusyError, NotFoundError, RepositoryError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.repository.distrust import read_distrusted
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import KEY, SMALL, backup, restore
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository.manifests import Manifest
    from support.seaweed import S3Bucket

History = tuple[ThrowawayServer, Repository, "list[Manifest]"]

OTHER_KEY = KeyFile(bytes(range(100, 132)))
OTHER_SIZES = Parameters(cell_size=128 << 10, pack_size=1 << 20)


@pytest.fixture(scope="module")
def history(
    binaries_of: Callable[[int], ServerBinaries], work_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    """A server, and a repository with three backups of it: a full one, and two of what changed since."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.start({**TEST_SETTINGS, "summarize_wal": True})
        load(server.dsn(), users=400)
        repository = Repository.create(open_store(str(tmp_path_factory.mktemp("source") / "repository")), KEY, SMALL)
        manifests = [backup(server.dsn(), repository)]
        for number in range(2):
            sql(server.dsn(), f"UPDATE users SET email = email || '{number}' WHERE ctid <= '(1,99)'")
            manifests.append(backup(server.dsn(), repository))
        assert [each.kind for each in manifests] == ["full", "incremental", "incremental"]
        yield server, repository, manifests


@pytest.fixture(params=["shared keys", "other keys"])
def empty(request: pytest.FixtureRequest, history: History, work_dir: Path) -> Repository:
    """A repository without backups, with the source's keys, or with a key and sizes of its own."""
    store = open_store(str(work_dir / "copy"))
    if request.param == "shared keys":
        return Repository.create(store, KEY, SMALL, keys_of=history[1].keys)
    return Repository.create(store, OTHER_KEY, OTHER_SIZES)


@pytest.fixture
def other(work_dir: Path) -> Repository:
    """A repository without backups, with a key and sizes of its own."""
    return Repository.create(open_store(str(work_dir / "copy")), OTHER_KEY, OTHER_SIZES)


def opened_anew(repository: Repository) -> Repository:
    """The repository as another process opens it: nothing of this one's is remembered."""
    return Repository(repository.store, repository.keys, repository.id, repository.parameters)


def copy(source: Repository, destination: Repository, **options: object) -> CopyReport:
    """Copy, without damage."""
    report = run_copy(CopyRequest(**options), source, destination)  # type: ignore[arg-type]
    assert report.ok
    return report


def ids(repository: Repository) -> list[str]:
    """The backups that a repository lists."""
    return [name.id for name in repository.catalog.names()]


def damage_in(repository: Repository) -> list[str]:
    """What a full verification finds."""
    report = run_verify(VerifyRequest(max_age_seconds=0), repository.store, opened_anew(repository))
    return [each.message for each in report.damage]


def expect_restores(server: ThrowawayServer, repository: Repository, backup_id: str, place: Path) -> None:
    """The repository alone restores what pg_verifybackup accepts."""
    restore(opened_anew(repository), place, backup=backup_id)
    run_program(server, "pg_verifybackup", "--exit-on-error", place)
    shutil.rmtree(place)


def test_a_copy_alone_restores_what_pg_verifybackup_accepts(
    history: History, empty: Repository, work_dir: Path
) -> None:
    """Every backup of a history, under its own id."""
    server, source, manifests = history

    copy(source, empty, everything=True)

    assert ids(empty) == [each.id for each in manifests]
    assert damage_in(empty) == []
    expect_restores(server, empty, manifests[-1].id, work_dir / "restored")


def test_a_copy_into_a_bucket_restores_like_the_first(history: History, s3_bucket: S3Bucket, work_dir: Path) -> None:
    """A directory on one side, an S3 server on the other, with another key."""
    server, source, manifests = history
    bucket = Repository.create(open_store(s3_bucket.url), OTHER_KEY, OTHER_SIZES)

    copy(source, bucket, everything=True, wal=True)

    assert damage_in(bucket) == []
    expect_restores(server, bucket, manifests[-1].id, work_dir / "restored")


def test_a_second_copy_moves_nothing(history: History, empty: Repository) -> None:
    """Every object of the destination is the one that was there."""
    _, source, _ = history
    copy(source, empty, everything=True, wal=True)
    before = {info.name for info in empty.store.list("")}

    again = copy(source, empty, everything=True, wal=True)

    assert (again.backups, again.there, again.wal.files) == ([], 3, 0)
    assert {info.name for info in empty.store.list("")} == before


def test_a_copied_incremental_moves_only_what_it_changed(history: History, empty: Repository) -> None:
    """Where the destination has the backup before."""
    _, source, manifests = history
    first = copy(source, empty, backups=(manifests[0].id,)).backups[0]

    second = copy(source, empty, backups=(manifests[1].id,)).backups[0]

    assert second.new_size < first.new_size / 4


def test_what_is_copied_when_nothing_is_named_is_newer_than_what_is_there(history: History, other: Repository) -> None:
    """Into an other repository the newest one; an older one that is not there may have been expired."""
    _, source, manifests = history

    assert [each.manifest.id for each in copy(source, other).backups] == [manifests[2].id]
    assert copy(source, other).backups == []
    assert [each.manifest.id for each in copy(source, other, everything=True).backups] == ids(source)[:2]


def test_a_plan_says_what_would_be_copied_and_copies_nothing(history: History, empty: Repository) -> None:
    """With shared keys to the byte."""
    _, source, manifests = history
    before = [info.name for info in empty.store.list("")]

    plan = plan_copy(CopyRequest(everything=True, wal=True), source, empty)

    assert [each.id for each in plan.backups] == [each.id for each in manifests]
    assert [info.name for info in empty.store.list("")] == before
    report = copy(source, empty, everything=True)
    moved = sum(each.new_size for each in report.backups)
    assert plan.size == moved if plan.same_keys else plan.size >= moved


def test_packs_of_repositories_that_share_their_keys_are_the_same_objects(history: History, work_dir: Path) -> None:
    """Nothing is opened on the way."""
    _, source, _ = history
    other = Repository.create(open_store(str(work_dir / "copy")), KEY, SMALL, keys_of=source.keys)

    copy(source, other, everything=True)

    assert {info.name for info in other.store.list("packs/")} <= {info.name for info in source.store.list("packs/")}


def test_all_wal_is_copied_where_it_is_asked_for(history: History, other: Repository) -> None:
    """Segment by segment the same bytes."""
    server, _, manifests = history
    system = manifests[0].system_identifier
    source = history[1]
    sql(server.dsn(), "SELECT pg_switch_wal()")

    copy(source, other, everything=True, wal=True)

    here, there = source.wal(system), other.wal(system)
    names = [name for name, _ in here.names()]
    assert [name for name, _ in there.names()] == names
    assert [there.get(name) for name in names] == [here.get(name) for name in names]


def test_a_repository_is_not_copied_into_itself(history: History) -> None:
    """Under whatever name it goes."""
    _, source, _ = history
    with pytest.raises(RepositoryError, match="are one repository"):
        copy(source, Repository.open(source.store, KEY))


def test_a_backup_that_is_not_there_cannot_be_copied(history: History, other: Repository) -> None:
    """And nothing is written."""
    with pytest.raises(NotFoundError, match="no backup has an id that begins with '1999'"):
        copy(history[1], other, backups=("1999",))


def test_a_copy_gives_way_to_a_backup_into_the_same_repository(history: History, other: Repository) -> None:
    """Both would write the same."""
    _, source, manifests = history
    with other.lease(f"backup of cluster {manifests[0].system_identifier}"), pytest.raises(BusyError):
        copy(source, other)


def test_a_damaged_pack_in_the_source_stops_the_backups_that_need_it_and_no_other(
    history: History, empty: Repository, work_dir: Path
) -> None:
    """What cannot be copied whole is not in the destination at all."""
    _, original, manifests = history
    shutil.copytree(original.store.url.removeprefix("file://"), work_dir / "source")
    source = Repository.open(open_store(str(work_dir / "source")), KEY)
    newest = {location.pack for location in _own_packs(source, manifests[2], manifests[1])}
    (work_dir / "source" / newest.pop()).unlink()

    report = run_copy(CopyRequest(everything=True), source, empty)

    assert ids(empty) == [manifests[0].id, manifests[1].id]
    assert [backup_id for backup_id, _ in report.failures] == [manifests[2].id]
    assert damage_in(empty) == []


def test_what_is_damaged_or_gone_is_mended_from_the_other_repository(
    history: History, empty: Repository, work_dir: Path
) -> None:
    """Packs, WAL and a manifest."""
    server, source, manifests = history
    copy(source, empty, everything=True)
    root = work_dir / "copy"
    packs = sorted(root.glob("packs/data/*/*"))
    packs[0].write_bytes(packs[0].read_bytes()[:-1] + b"x")
    packs[1].unlink()
    next(root.glob("packs/meta/*/*")).write_bytes(b"nothing of worth")
    wal = sorted(root.glob("clusters/*/wal/*/*/*"))
    wal[0].write_bytes(b"no WAL")
    wal[1].unlink()
    next(root.glob("clusters/*/backups/*")).write_bytes(b"no manifest")
    assert damage_in(empty)
    distrusted = read_distrusted(empty.store)

    report = run_mend(CopyRequest(), source, opened_anew(empty))

    assert report.failures == []
    assert len(report.mended) == 6
    assert len(distrusted) >= 2
    assert read_distrusted(empty.store) == {}
    assert damage_in(empty) == []
    expect_restores(server, empty, manifests[0].id, work_dir / "restored")


def test_a_whole_repository_needs_no_mending(history: History, other: Repository) -> None:
    """Everything was looked at, and nothing was written."""
    copy(history[1], other, everything=True)
    before = {info.name for info in other.store.list("")}

    report = run_mend(CopyRequest(), history[1], other)

    assert (report.mended, report.failures) == ([], [])
    assert report.objects > 10
    assert {info.name for info in other.store.list("")} == before


def _own_packs(repository: Repository, manifest: Manifest, before: Manifest) -> list:  # type: ignore[type-arg]
    """Where a backup's contents lie that the one before does not have."""
    contents = [_contents(repository, each) for each in (manifest, before)]
    return list(repository.index.find_all(contents[0] - contents[1]).values())


def _contents(repository: Repository, manifest: Manifest) -> set[bytes]:
    tree = repository.tree(manifest)
    return {extent.id for file in tree.files() if file.entry.inline is None for extent in tree.extents(file)}
