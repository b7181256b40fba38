"""A cluster with several repositories: one read of the server for all of them, and restores from whichever has what is needed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.backup import BackupRequest, Stored, run_backup_everywhere
from pgkeep.copies import CopyRequest, run_copy
from pgkeep.demo.workload import load
from pgkeep.errors import DamageError, RepositoryError, StoreError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.restore import RestoreOutcome, RestoreRequest, run_restore
from support.fault_proxy import Fault
from support.jobs import KEY, SMALL, backup
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from support.fault_proxy import FaultProxy
    from support.seaweed import S3Bucket

OTHER_KEY = KeyFile(bytes(range(100, 132)))
OTHER_SIZES = Parameters(cell_size=128 << 10, pack_size=1 << 20)


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A small server that logs what it is asked for."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.start({**TEST_SETTINGS, "summarize_wal": True, "log_replication_commands": True})
        load(server.dsn(), users=400)
        yield server


class Site:
    """A repository in a directory that can be away for a while."""

    def __init__(self, place: Path, key: KeyFile, sizes: Parameters) -> None:
        self.place = place
        self.key = key
        Repository.create(open_store(str(place)), key, sizes)

    def open(self) -> Repository:
        """As a command does."""
        return Repository.open(open_store(str(self.place)), self.key)

    @property
    def ids(self) -> list[str]:
        """The backups that it lists."""
        return [name.id for name in self.open().catalog.names()]

    def leave(self) -> None:
        """As a disk that is not mounted."""
        self.place.rename(self.place.with_suffix(".away"))

    def come_back(self) -> None:
        """Mounted again."""
        self.place.with_suffix(".away").rename(self.place)


@pytest.fixture
def sites(work_dir: Path) -> dict[str, Site]:
    """Two empty repositories with keys and sizes of their own."""
    return {
        "near": Site(work_dir / "near", KEY, SMALL),
        "far": Site(work_dir / "far", OTHER_KEY, OTHER_SIZES),
    }


def backup_everywhere(server: ThrowawayServer, sites: dict[str, Site]) -> dict[str, Stored]:
    """A backup into all of them; the outcomes by name."""
    request = BackupRequest(cluster="test", dsn=server.dsn(), mode="stream")
    outcomes = run_backup_everywhere(request, [(name, site.open) for name, site in sites.items()])
    return {outcome.name: outcome for outcome in outcomes}


def restore_from(repositories: list[Repository], target: Path, **options: object) -> RestoreOutcome:
    """A restore that may read from all of them, in their order."""
    request = RestoreRequest(target=str(target), **{"backup": "latest", **options})  # type: ignore[arg-type]
    return run_restore(request, repositories[0], others=repositories[1:])


def reads_of(server: ThrowawayServer) -> int:
    """How many base backups the server has been asked for."""
    return server.log_file.read_text().count("received replication command: BASE_BACKUP")


def test_the_server_is_read_once_for_all_repositories(
    service: ThrowawayServer, sites: dict[str, Site], work_dir: Path
) -> None:
    """The backup has one id in both, and each alone restores it."""
    before = reads_of(service)

    outcomes = backup_everywhere(service, sites)

    assert reads_of(service) == before + 1
    (backup_id,) = {outcome.manifest.id for outcome in outcomes.values() if outcome.manifest is not None}
    for name, site in sites.items():
        assert site.ids == [backup_id]
        restore_from([site.open()], work_dir / f"from {name}")
        run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / f"from {name}")


def test_a_repository_that_is_away_misses_backups_and_has_them_after_the_next_one(
    service: ThrowawayServer, sites: dict[str, Site], work_dir: Path
) -> None:
    """The others are not held up; what was missed is brought in order, and incrementals go on from the newest."""
    ids = [backup_everywhere(service, sites)["near"].manifest.id]  # type: ignore[union-attr]
    for away in ("far", "near"):
        here = {"far": "near", "near": "far"}[away]
        sites[away].leave()
        for _ in range(2):
            outcomes = backup_everywhere(service, sites)
            assert isinstance(outcomes[away].error, RepositoryError)
            manifest = outcomes[here].manifest
            assert manifest is not None
            assert manifest.parent == ids[-1]
            ids.append(manifest.id)
        sites[away].come_back()

        outcomes = backup_everywhere(service, sites)

        assert outcomes[away].caught_up == ids[-2:]
        manifest = outcomes[away].manifest
        assert manifest is not None
        assert manifest.parent == ids[-1]
        ids.append(manifest.id)
        assert sites["near"].ids == sites["far"].ids == ids
    for name, site in sites.items():
        restore_from([site.open()], work_dir / f"from {name}")
        run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / f"from {name}")


def test_a_repository_that_joins_later_gets_the_newest_backup(service: ThrowawayServer, sites: dict[str, Site]) -> None:
    """Its past is a matter for pgkeep copy --all."""
    backup(service.dsn(), sites["near"].open())

    outcomes = backup_everywhere(service, sites)

    assert outcomes["far"].manifest is not None
    assert sites["far"].ids == [outcomes["far"].manifest.id]
    assert len(sites["near"].ids) == 2


def test_where_every_repository_is_away_the_backup_fails(service: ThrowawayServer, sites: dict[str, Site]) -> None:
    """With what the first one said, and without asking the server for anything."""
    before = reads_of(service)
    for site in sites.values():
        site.leave()

    with pytest.raises(RepositoryError, match="near is not a pgkeep repository"):
        backup_everywhere(service, sites)

    assert reads_of(service) == before


def test_a_bucket_that_fails_in_the_middle_of_a_backup_leaves_it_to_the_directory(
    service: ThrowawayServer, sites: dict[str, Site], s3_bucket: S3Bucket, fault_proxy: FaultProxy
) -> None:
    """The bucket has the newest backup, so that it is the first to be asked; then no pack gets through to it any more."""
    address = s3_bucket.url_at(fault_proxy.endpoint, retry_for="1s")
    backup(service.dsn(), Repository.create(open_store(address), KEY, SMALL))
    fault_proxy.plan = lambda message: (
        Fault.RESET if message.method == "PUT" and "/packs/" in message.path else Fault.NONE
    )
    request = BackupRequest(cluster="test", dsn=service.dsn(), mode="stream", full=True)

    bucket, near = run_backup_everywhere(
        request, [("bucket", lambda: Repository.open(open_store(address), KEY)), ("near", sites["near"].open)]
    )

    assert isinstance(bucket.error, StoreError)
    assert near.manifest is not None
    assert sites["near"].ids == [near.manifest.id]


def test_a_damaged_pack_in_the_first_is_read_from_the_second(
    service: ThrowawayServer, sites: dict[str, Site], work_dir: Path
) -> None:
    """With a warning that names it; the restore is whole."""
    backup_everywhere(service, sites)
    pack = max(sites["near"].place.glob("packs/data/*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    near, far = (site.open() for site in sites.values())
    with pytest.raises(DamageError):
        restore_from([near], work_dir / "broken")

    outcome = restore_from([near, far], work_dir / "restored")

    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    warnings = [note for note in outcome.notes if pack.name in note]
    assert len(warnings) == 1
    assert warnings[0].endswith(f"read from {far.store.url} instead")


@pytest.mark.parametrize("keys", ["shared keys", "other keys"])
def test_what_survives_in_one_of_two_repositories_is_enough(
    service: ThrowawayServer, work_dir: Path, keys: str
) -> None:
    """Objects are gone from both at random, each from one of them only: packs, listings, maps and WAL."""
    near = Site(work_dir / "near", KEY, SMALL)
    repository = near.open()
    for number in range(2):
        backup(service.dsn(), repository)
        sql(service.dsn(), f"UPDATE users SET email = email || '{number}' WHERE ctid <= '(1,99)'")
    backup(service.dsn(), repository)
    sharing = repository.keys if keys == "shared keys" else None
    far = Repository.create(open_store(str(work_dir / "far")), KEY if sharing else OTHER_KEY, SMALL, keys_of=sharing)
    run_copy(CopyRequest(everything=True), repository, far)
    _delete_at_random(repository, far, (work_dir / "near", work_dir / "far"))

    outcome = restore_from(
        [near.open(), Repository.open(far.store, KEY if sharing else OTHER_KEY)], work_dir / "restored"
    )

    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    assert any("is gone" in note or "is not in" in note for note in outcome.notes)


def test_a_repository_that_has_lost_all_its_maps_is_helped_by_the_other(
    service: ThrowawayServer, sites: dict[str, Site], work_dir: Path
) -> None:
    """Though every content has another id there."""
    backup_everywhere(service, sites)
    shutil.rmtree(sites["near"].place / "packs" / "meta")
    near, far = (site.open() for site in sites.values())

    outcome = restore_from([near, far], work_dir / "restored")

    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    assert any(note.startswith("packs/meta/") for note in outcome.notes)


def test_a_backup_that_the_first_lacks_comes_from_the_second(
    service: ThrowawayServer, sites: dict[str, Site], work_dir: Path
) -> None:
    """And it says which one it reads from, and why."""
    first = backup_everywhere(service, sites)["near"].manifest
    assert first is not None
    sites["near"].leave()
    second = backup_everywhere(service, sites)["far"].manifest
    assert second is not None
    sites["near"].come_back()
    near, far = (site.open() for site in sites.values())

    outcome = restore_from([near, far], work_dir / "restored", backup=second.id)

    assert outcome.plan.manifest.id == second.id
    assert any(note.startswith(f"reading from {far.store.url}, the next one") for note in outcome.notes)


def _delete_at_random(near: Repository, far: Repository, places: tuple[Path, Path]) -> None:
    """Of packs and WAL, whatever the other repository has, in one of the two; with keys of their own, both keep their maps."""
    chance = random.Random(20261123)
    shares_keys = near.keys == far.keys
    gone = set()
    for path in sorted([*places[0].glob("packs/*/*/*"), *places[0].glob("clusters/*/wal/*/*/*")]):
        if chance.random() < 0.5 and (shares_keys or "meta" not in path.parts):
            gone.add(path.relative_to(places[0]))
    spared = gone if shares_keys else {*_packs_with(far, near, gone), *(name for name in gone if "wal" in name.parts)}
    for path in sorted([*places[1].glob("packs/*/*/*"), *places[1].glob("clusters/*/wal/*/*/*")]):
        name = path.relative_to(places[1])
        if name not in spared and (shares_keys or "meta" not in name.parts) and chance.random() < 0.5:
            path.unlink()
    for name in gone:
        (places[0] / name).unlink()


def _packs_with(far: Repository, near: Repository, gone: set[Path]) -> set[Path]:
    """The far one's packs that hold what is gone from the near one: the same bytes under other ids."""
    lost = {content for segment in near.index.segments for content in segment.contents_of({str(name) for name in gone})}
    reader = far.reader()
    return {
        Path(pack)
        for segment in far.index.segments
        for content in segment.contents_of(far.index.known_packs())
        for pack in [reader.locate(content).pack]
        if near.keys.content_id(reader.get(content)) in lost
    }
