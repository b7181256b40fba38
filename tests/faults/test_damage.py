"""Damage: a changed byte in any object is found, and never restored."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.demo.workload import load
from pgkeep.errors import DamageError, KeyFailure, PgkeepError
from pgkeep.repository import KeyFile, Passphrase, Repository, open_store
from pgkeep.restore import RestoreRequest, run_restore
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import KEY, SMALL, backup, new_repository, server_place
from support.servers import TEST_SETTINGS, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.server import ThrowawayServer

_SEED = int(os.environ.get("PGKEEP_DAMAGE_SEED", "20261123"))
_SECRET = random.Random(1).randbytes(500_000)
_OF_A_KIND = int(os.environ.get("PGKEEP_DAMAGED_OBJECTS", "3"))
_NOT_READ = ("scrubs/", "keys/")
"""Objects that a restore may do without: records of earlier checks, and slots of other keys."""


def _kind(name: str) -> str:
    """The folders of a name without the cluster: ``packs/data``, ``clusters/backups``."""
    folders = [part for part in name.split("/")[:-1] if not part.isdigit()]
    return "/".join(folders[:2])


class Place:
    """A repository on disk, the bytes of a clean restore, and a way to damage one object for a while."""

    def __init__(self, root: Path, *, encrypted: bool) -> None:
        self.root = root / "repository"
        self.work = root
        self.encrypted = encrypted

    def open(self) -> Repository:
        """As a new process would."""
        return Repository.open(open_store(str(self.root)), KEY if self.encrypted else None)

    def objects(self) -> list[str]:
        """Names of all objects."""
        return [info.name for info in open_store(str(self.root)).list("") if not info.name.startswith("leases/")]

    def some_of_each_kind(self, chance: random.Random) -> list[str]:
        """Names of objects: all of a kind of which there are few, a few of each other."""
        names: list[str] = []
        for _, group in itertools.groupby(self.objects(), key=_kind):
            kind = list(group)
            names += chance.sample(kind, min(len(kind), _OF_A_KIND))
        return names

    def replace(self, name: str, data: bytes | None) -> bytes:
        """Put other bytes (None: nothing) in an object's place; gives back what was there."""
        path = self.root / name
        before = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return before

    def put_back(self, name: str, data: bytes) -> None:
        """Undo `replace`."""
        path = self.root / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def damage_found(self) -> list[str]:
        """What a whole verification says, by object; an error that stops it counts."""
        store = open_store(str(self.root))
        scrub = run_verify(VerifyRequest(content=False, max_age_seconds=0), store, None)
        found = [str(damage.object_name) for damage in scrub.damage]
        try:
            content = run_verify(VerifyRequest(scrub=False, max_age_seconds=0), store, self.open())
        except DamageError as error:
            return [*found, str(error.object_name)]
        return [*found, *(str(damage.object_name) for damage in content.damage)]

    def restored(self) -> dict[str, bytes]:
        """The files of a restore, without what depends on the moment."""
        target = self.work / "restored"
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(self.work / "ts-new", ignore_errors=True)
        tablespaces = {str(self.work / "ts"): str(self.work / "ts-new")}
        run_restore(RestoreRequest(target=str(target), tablespaces=tablespaces, jobs=1), self.open())
        return {
            str(path.relative_to(self.work)): path.read_bytes()
            for base in (target, self.work / "ts-new")
            for path in sorted(base.rglob("*"))
            if path.is_file() and path.name != "postgresql.auto.conf"
        }


@pytest.fixture(scope="module", params=[True, False], ids=["encrypted", "plain"])
def place(
    request: pytest.FixtureRequest, damaged_service: Callable[[Path], ThrowawayServer], work_root: Path
) -> Iterator[Place]:
    """A small backup with a tablespace, verified once, so that there is an object of every kind."""
    root = work_root / f"damage-{request.param}"
    root.mkdir(mode=0o755)
    place = Place(root, encrypted=request.param)
    server = damaged_service(root)
    repository = new_repository(place.root, SMALL, encrypted=request.param)
    if request.param:
        repository.add_recovery_key()
    backup(server.dsn(), repository)
    run_verify(VerifyRequest(), repository.store, repository)
    yield place
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def damaged_service(
    binaries_of: Callable[[int], object], work_root: Path
) -> Iterator[Callable[[Path], ThrowawayServer]]:
    """Start a server with a tablespace in a directory."""
    from pgkeep.postgres.server import ThrowawayServer

    servers: list[ThrowawayServer] = []

    def start(root: Path) -> ThrowawayServer:
        server = ThrowawayServer(binaries_of(18), parent=work_root)  # type: ignore[arg-type]
        servers.append(server)
        server.initdb()
        server.start(TEST_SETTINGS)
        load(server.dsn(), users=100)
        sql(server.dsn(), "CREATE TABLE secrets (secret bytea)")
        sql(server.dsn(), "ALTER TABLE secrets ALTER secret SET STORAGE EXTERNAL")
        sql(server.dsn(), "INSERT INTO secrets VALUES (%s)", [_SECRET])
        sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{server_place(root / 'ts')}'")
        sql(server.dsn(), "CREATE TABLE elsewhere TABLESPACE apart AS SELECT generate_series(1, 20000) AS id")
        return server

    yield start
    for server in servers:
        server.remove()


def _expect_found_and_never_restored(place: Place, name: str, clean: dict[str, bytes], what: str) -> bool:
    """Whether the restore was refused; where it was not, it must not have needed what is damaged."""
    assert name in place.damage_found(), f"verify did not find {what} in {name}"
    files = error = None
    try:
        files = place.restored()
    except PgkeepError as raised:
        error = raised
    if error is None:
        assert files == clean, f"a wrong restore: {what} in {name}"
        return False
    assert name.rpartition("/")[2][:16] in str(error), f"{what} in {name}: {error}"
    return True


def test_a_flipped_bit_in_any_object_is_found_and_never_restored(place: Place) -> None:
    """Objects of each kind at a random byte and at either end: verify names it, and a restore that needs it is refused.

    A restore passes over the end of a pack (its table, for reindexing), other keys' slots and records of checks.
    """
    chance = random.Random(_SEED)
    clean = place.restored()
    for name in place.some_of_each_kind(chance):
        size = (place.root / name).stat().st_size
        is_pack = name.startswith("packs/")
        needed = 44 + chance.randrange(size // 2) if is_pack else chance.randrange(size)
        for position in (needed, chance.choice([0, size - 1])):
            data = bytearray((place.root / name).read_bytes())
            data[position] ^= 1 << chance.randrange(8)
            before = place.replace(name, bytes(data))
            what = f"a flipped bit at byte {position} (seed {_SEED})"
            refused = _expect_found_and_never_restored(place, name, clean, what)
            place.put_back(name, before)
            spare = (is_pack and position == size - 1) or name.startswith(_NOT_READ)
            assert refused or spare, f"restored in spite of {what} in {name}"

    assert place.damage_found() == []
    assert place.restored() == clean


def test_a_cut_object_is_found_and_never_restored(place: Place) -> None:
    """Cut to nothing, to a half, by one byte."""
    chance = random.Random(_SEED)
    clean = place.restored()
    for name in place.some_of_each_kind(chance):
        data = (place.root / name).read_bytes()
        size = chance.choice([0, len(data) // 2, len(data) - 1])
        before = place.replace(name, data[:size])
        _expect_found_and_never_restored(place, name, clean, f"its end cut off after {size} bytes")
        place.put_back(name, before)


def test_two_objects_that_changed_places_are_found_and_not_restored(place: Place) -> None:
    """Packs with packs, and a manifest or a segment under another name."""
    clean = place.restored()
    packs = [name for name in place.objects() if name.startswith("packs/data/")][:4]
    for first, second in itertools.pairwise(packs):
        data = (place.root / second).read_bytes()
        before = place.replace(first, data)
        place.replace(second, before)
        found = place.damage_found()
        assert {first, second} <= set(found)
        with pytest.raises(DamageError):
            place.restored()
        place.put_back(first, before)
        place.put_back(second, data)
    assert place.restored() == clean


@pytest.mark.parametrize("kind", ["/backups/", "/wal/"])
def test_an_old_object_under_another_name_does_not_open(place: Place, kind: str) -> None:
    """Replayed: the manifest of one backup as another, a segment as the next one."""
    name = next(name for name in place.objects() if kind in name)
    folder, _, last = name.rpartition("/")
    other = f"{folder}/{'9' + last[1:] if kind == '/backups/' else last[:-1] + 'F'}"
    shutil.copyfile(place.root / name, place.root / other)
    try:
        if kind == "/backups/":
            assert other in place.damage_found()
            with pytest.raises(DamageError, match=r"9\d+T"):
                place.restored()
        else:
            with pytest.raises(DamageError):
                place.open().wal(int(name.split("/")[1])).get(other.rpartition("/")[2])
    finally:
        (place.root / other).unlink()


def test_a_lost_object_is_missed(place: Place) -> None:
    """Packs, index, WAL: a restore says what is gone, and verify finds it."""
    for prefix in ("packs/data/", "packs/meta/", "index/", "clusters/"):
        name = next(name for name in place.objects() if name.startswith(prefix) and "/backups/" not in name)
        before = place.replace(name, None)
        with pytest.raises(PgkeepError) as caught:
            place.restored()
        store = open_store(str(place.root))
        report_or_error: list[object] = []
        try:
            report_or_error += run_verify(VerifyRequest(max_age_seconds=0), store, place.open()).damage
        except PgkeepError as error:
            report_or_error.append(error)
        place.put_back(name, before)

        assert caught.value.exit_code in {8, 9}, caught.value
        assert report_or_error, f"verify did not miss {name}"


def test_a_wrong_key_is_said_to_be_wrong(place: Place) -> None:
    """A key file, a passphrase, none where one is needed, one where none is."""
    store = open_store(str(place.root))
    wrong = [KeyFile(bytes(32)), Passphrase("wrong"), *([None] if place.encrypted else [])]

    for secret in wrong:
        with pytest.raises(KeyFailure):
            Repository.open(store, secret)


def test_an_encrypted_repository_shows_no_byte_of_user_data(place: Place) -> None:
    """A row that no compression touches is nowhere in its bytes; without encryption it is."""
    everything = b"".join((place.root / name).read_bytes() for name in place.objects())

    assert (_SECRET[100:140] in everything) is not place.encrypted
