from __future__ import annotations

from collections.abc import Callable

import pytest

from pgkeep.errors import DamageError, KeyFailure, RepositoryError
from pgkeep.repository import KeyFile, Passphrase, Repository, exists
from pgkeep.repository.contents import Parameters
from pgkeep.repository.crypto import Generation
from pgkeep.repository.keys import create_slot
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import read_record, write_record

SECRET = KeyFile(bytes(range(32)))
SMALL = Parameters(cell_size=16 << 10, pack_size=64 << 10)


def rewrite(store: PosixStore, **changes: object) -> None:
    """As someone does who can write to the store and has no key."""
    fields = {**read_record(store, "pgkeep.json"), **changes}
    store.delete("pgkeep.json")
    write_record(store, "pgkeep.json", {name: value for name, value in fields.items() if value is not None})


def test_a_repository_opens_as_it_was_created(
    store: PosixStore, repository: Repository, secret: KeyFile | None
) -> None:
    opened = Repository.open(store, secret)
    assert (opened.id, opened.parameters, opened.keys) == (repository.id, repository.parameters, repository.keys)
    assert opened.encrypted is (secret is not None)
    assert opened.format == 1
    assert (opened.clusters(), opened.catalog.names()) == ([], [])
    assert exists(store)


def test_a_place_that_is_not_empty_is_refused(store: PosixStore) -> None:
    store.put("something", [b""])
    with pytest.raises(RepositoryError, match="the place is not empty"):
        Repository.create(store, None)
    assert not exists(store)


def test_a_creation_that_was_killed_before_its_last_write_can_be_done_again(store: PosixStore) -> None:
    """All it left is a key slot, which opens nothing."""
    create_slot(store, bytes(16), [Generation(bytes(32))], KeyFile(bytes(32)))

    Repository.create(store, SECRET)

    assert Repository.open(store, SECRET).encrypted


def test_a_repository_is_never_created_over_another(store: PosixStore, repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="there is a repository already"):
        Repository.create(store, None)
    assert read_record(store, "pgkeep.json")["id"] == repository.id


def test_a_directory_that_is_no_repository_is_an_error_with_a_hint(store: PosixStore) -> None:
    with pytest.raises(RepositoryError, match="is not a pgkeep repository") as caught:
        Repository.open(store, None)
    assert "pgkeep init" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2; this pgkeep knows format 1"),
        ({"format": None}, "has format None"),
        ({"required_features": ["time-travel"]}, r"has features \['time-travel'\]"),
        ({"required_features": None}, "has features None"),
    ],
)
def test_a_format_from_the_future_is_refused(
    store: PosixStore, repository: Repository, secret: KeyFile | None, change: dict[str, object], message: str
) -> None:
    rewrite(store, **change)
    with pytest.raises(RepositoryError, match=message) as caught:
        Repository.open(store, secret)
    assert "newer pgkeep" in str(caught.value.hint)


def test_an_encrypted_repository_asks_for_its_key(store: PosixStore) -> None:
    Repository.create(store, SECRET)
    with pytest.raises(KeyFailure, match="is encrypted, and no key is configured"):
        Repository.open(store, None)


def test_a_key_for_a_repository_without_encryption_is_an_error(store: PosixStore) -> None:
    """It would be how a stranger's repository in its place shows itself."""
    Repository.create(store, None)
    with pytest.raises(KeyFailure, match="is not encrypted, and the configuration names a key for it"):
        Repository.open(store, SECRET)


@pytest.mark.parametrize("wrong", [KeyFile(bytes(32)), Passphrase("wrong")], ids=["key", "passphrase"])
def test_a_wrong_key_is_a_clear_error(store: PosixStore, wrong: KeyFile | Passphrase) -> None:
    Repository.create(store, SECRET)
    with pytest.raises(KeyFailure, match=f"this {wrong.kind} does not open"):
        Repository.open(store, wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"page_size": 8192, "cell_size": 1, "pack_size": 1, "compression_level": 1}},
        {"parameters": 5},
        {"id": "0" * 32},
        {"created": "yesterday"},
        {"seal": "0" * 64},
        {"seal": None},
        {"seal": 7},
        {"seal": "é"},
        {"extra": 1},
        {"family": "no family"},
        {"family": None},
        {"encryption": None},
    ],
)
def test_parameters_changed_without_the_key_are_found(store: PosixStore, change: dict[str, object]) -> None:
    Repository.create(store, SECRET)
    rewrite(store, **change)
    with pytest.raises(DamageError) as caught:
        Repository.open(store, SECRET)
    assert caught.value.object_name == "pgkeep.json"


def test_encryption_cannot_be_turned_off_by_someone_without_the_key(store: PosixStore) -> None:
    Repository.create(store, SECRET)
    rewrite(store, encryption="none")
    with pytest.raises(KeyFailure):
        Repository.open(store, SECRET)
    with pytest.raises(DamageError):
        Repository.open(store, None)


def test_another_repositorys_family_does_not_open(store: PosixStore) -> None:
    Repository.create(store, SECRET)
    rewrite(store, family="00" * 16)
    with pytest.raises(KeyFailure):
        Repository.open(store, SECRET)


def test_every_flipped_bit_of_the_root_record_is_damage(
    store: PosixStore, repository: Repository, secret: KeyFile | None, damage: Callable[[str, int], None]
) -> None:
    for bit in range(0, store.info("pgkeep.json").size * 8, 5):
        damage("pgkeep.json", bit)
        with pytest.raises(DamageError, match=r"pgkeep\.json is damaged"):
            Repository.open(store, secret)
        damage("pgkeep.json", bit)


def test_the_recovery_key_opens_the_repository_in_place_of_the_first_one(store: PosixStore) -> None:
    repository = Repository.create(store, SECRET)
    printed = repository.add_recovery_key()
    opened = Repository.open(store, KeyFile.from_recovery_key(printed))
    assert opened.keys == repository.keys
    assert Repository.open(store, SECRET).keys == repository.keys
    assert len(list(store.list("keys/"))) == 2


def test_nothing_in_an_encrypted_repository_tells_its_keys(store: PosixStore) -> None:
    repository = Repository.create(store, SECRET)
    everything = b"".join(store.get(info.name) for info in store.list(""))
    for key in (SECRET.secret, repository.keys.root_key):
        assert key.hex().encode() not in everything
        assert key not in everything
