"""Slots are added and removed, and root keys follow each other, by many people at once and against people without a key."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from pgkeep.errors import BusyError, DamageError, KeyFailure, NotFoundError, PgkeepError
from pgkeep.repository import KeyFile, Passphrase, Repository
from pgkeep.repository.crypto import Generation
from pgkeep.repository.keys import changes, create_slot, generations, held_generations, same_keys
from pgkeep.repository.keys.changes import list_slots
from pgkeep.repository.keys.generations import give_to, write_generation
from pgkeep.repository.keys.slots import read_slot
from pgkeep.repository.packs import PackKind, _associated
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import read_record, write_record

FIRST, SECOND, THIRD = (KeyFile(bytes([number]) * 32) for number in range(1, 4))


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is at work whom to wait for."""
    monkeypatch.setattr(changes, "_PATIENCE", 0.0)


@pytest.fixture
def repository(store: PosixStore) -> Repository:
    """Opened by FIRST."""
    return Repository.create(store, FIRST)


def opened(repository: Repository, secret: KeyFile | Passphrase) -> Repository:
    return Repository.open(PosixStore(repository.store.url.removeprefix("file://")), secret)


def keep(repository: Repository, content: bytes) -> bytes:
    with repository.writer() as writer:
        return writer.put(PackKind.DATA, content).id


def slots_of(repository: Repository) -> list[str]:
    return [listed.name for listed in list_slots(repository.store)]


def test_an_added_key_reads_what_was_stored_before_it(repository: Repository) -> None:
    content = keep(repository, b"old")
    slot = repository.slots.add(SECOND, label="in the safe")
    again = opened(repository, SECOND)
    assert again.reader().get(content) == b"old"
    assert (again.slots.own.name, again.slots.own.label) == (slot.name, "in the safe")


def test_a_removed_key_opens_nothing(repository: Repository) -> None:
    repository.slots.add(SECOND)
    opened(repository, SECOND).slots.remove(repository.slots.own.name)
    with pytest.raises(KeyFailure, match="this key does not open"):
        opened(repository, FIRST)
    assert opened(repository, SECOND).slots.root_keys == 1


def test_the_slot_that_was_used_to_open_cannot_be_removed_by_it(repository: Repository) -> None:
    """So the last one cannot either."""
    own = repository.slots.own.name
    repository.slots.add(SECOND)
    with pytest.raises(KeyFailure, match=f"opens the slot {own}, which is the one to be removed"):
        repository.slots.remove(own)
    assert opened(repository, FIRST).slots.own.name == own


def test_slots_that_are_not_there_cannot_be_removed_or_found(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match="there is no key slot 00000000"):
        repository.slots.remove("00000000")
    own = repository.slots.own.name
    assert repository.slots.find(own[:7]) == own
    for beginning in ("", "x"):
        with pytest.raises(NotFoundError, match="no key slot has a name that begins with"):
            repository.slots.find(beginning)


def test_a_removal_that_was_broken_off_is_seen_and_finished_by_the_next(repository: Repository) -> None:
    slot = repository.slots.add(SECOND).name
    write_record(repository.store, f"keys/leaving-{slot}-00000000.json", {"slot": slot, "by": "?"})
    assert [listed.leaving for listed in list_slots(repository.store) if listed.name == slot] == [True]
    with pytest.raises(BusyError, match=f"the key slot {slot}, which your key opens, is being removed itself"):
        opened(repository, SECOND).slots.remove(repository.slots.own.name)
    repository.slots.remove(slot)
    assert [info.name for info in repository.store.list("keys/")] == [f"keys/{repository.slots.own.name}.json"]


def test_of_many_who_remove_each_others_slots_at_once_one_slot_stays(store: PosixStore) -> None:
    for _ in range(15):
        repository = Repository.create(PosixStore(f"{store.root}-{_}"), FIRST)
        secrets = [FIRST, *(KeyFile(bytes([number]) * 32) for number in range(2, 7))]
        for secret in secrets[1:]:
            repository.slots.add(secret)
        rings = [opened(repository, secret).slots for secret in secrets]
        names = [ring.own.name for ring in rings]
        barrier = threading.Barrier(len(rings))

        def remove_the_next(number: int) -> None:
            barrier.wait()  # noqa: B023 - joined before the next turn
            with suppress(BusyError):
                rings[number].remove(names[(number + 1) % len(names)])  # noqa: B023

        with ThreadPoolExecutor(len(rings)) as executor:
            list(executor.map(remove_the_next, range(len(rings))))
        left = slots_of(repository)
        assert left
        by_name = dict(zip(names, secrets, strict=True))
        assert [opened(repository, by_name[name]).slots.own.name for name in left] == left


def test_new_data_takes_the_new_root_key_and_every_slot_reads_old_and_new(repository: Repository) -> None:
    repository.slots.add(Passphrase("open sesame"))
    old = keep(repository, b"old")
    assert repository.slots.new_root() == 1
    new = keep(repository, b"new")
    for secret in (FIRST, Passphrase("open sesame")):
        reader = opened(repository, secret).reader()
        assert (reader.get(old), reader.get(new)) == (b"old", b"new")
    modes = {repository.store.get(info.name, 10, 1) for info in repository.store.list("packs/")}
    assert modes == {b"\0", b"\1"}


def test_the_old_root_key_alone_does_not_open_what_is_new(repository: Repository) -> None:
    """Somebody who had a key once, and kept the root key of then."""
    kept = held_generations(repository.keys)
    repository.slots.new_root()
    new = keep(repository, b"new")
    pack = repository.reader().locate(new).pack
    data = repository.store.get(pack)
    thief = type(repository.keys)(repository.keys.suite, kept[0].root, repository.keys.family)
    with pytest.raises(DamageError, match="names generation 1 of the root key"):
        thief.sealer(data[12:44], "pack data", 1)
    entry = repository.reader().locate(new).entry
    nonce, sealed = entry.offset.to_bytes(12, "little"), data[entry.offset : entry.offset + entry.stored_size]
    associated = _associated(repository.keys, PackKind.DATA, new, entry.plain_size, entry.codec)
    assert repository.keys.sealer(data[12:44], "pack data", 1).open(nonce, sealed, associated)
    with pytest.raises(DamageError, match="not what was sealed"):
        thief.sealer(data[12:44], "pack data").open(nonce, sealed, associated)


def test_what_is_stored_already_is_found_again_under_a_new_root_key(repository: Repository) -> None:
    keep(repository, b"the same")
    repository.slots.new_root()
    with repository.writer() as writer:
        assert not writer.put(PackKind.DATA, b"the same").new


def test_a_reader_that_was_open_before_a_new_root_key_reads_what_comes(repository: Repository) -> None:
    reader = opened(repository, FIRST)
    repository.slots.new_root()
    content = keep(repository, b"new")
    reader.index.refresh()
    assert reader.reader().get(content) == b"new"


def test_a_writer_that_runs_on_takes_the_new_root_key_within_minutes(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(repository, FIRST)
    repository.slots.new_root()
    assert writer.keys.new_seal("test").mode == 0
    monkeypatch.setattr(generations, "_LOOK_EVERY", 0.0)
    assert writer.keys.new_seal("test").mode == 1


def test_a_key_added_after_a_new_root_key_has_all_of_them(repository: Repository) -> None:
    contents = [keep(repository, b"0")]
    for number in (1, 2):
        repository.slots.new_root()
        contents.append(keep(repository, b"%d" % number))
    repository.slots.add(SECOND)
    repository.slots.new_root()
    contents.append(keep(repository, b"3"))
    again = opened(repository, SECOND)
    assert [again.reader().get(content) for content in contents] == [b"0", b"1", b"2", b"3"]
    assert again.slots.root_keys == 4


def test_one_of_two_who_make_a_root_key_at_once_is_told(repository: Repository) -> None:
    rings = [opened(repository, FIRST).slots for _ in range(2)]
    barrier = threading.Barrier(2)

    def make(number: int) -> object:
        barrier.wait()
        try:
            return rings[number].new_root()
        except BusyError as error:
            return str(error)

    with ThreadPoolExecutor(2) as executor:
        answers = list(executor.map(make, range(2)))
    assert 1 in answers
    assert opened(repository, FIRST).slots.root_keys == 1 + sum(isinstance(answer, int) for answer in answers)


def test_keys_added_while_root_keys_are_made_have_all_of_them(repository: Repository) -> None:
    """Whoever of the two sees the other gives what is missing."""
    secrets = [KeyFile(bytes([number]) * 32) for number in range(10, 22)]
    barrier = threading.Barrier(len(secrets) + 1)

    def add(secret: KeyFile) -> None:
        ring = opened(repository, FIRST).slots
        barrier.wait()
        ring.add(secret)

    def make() -> None:
        barrier.wait()
        for _ in range(3):
            repository.slots.new_root()

    with ThreadPoolExecutor(len(secrets) + 1) as executor:
        jobs = [*(executor.submit(add, secret) for secret in secrets), executor.submit(make)]
        for job in jobs:
            job.result()
    content = keep(repository, b"newest")
    for secret in secrets:
        again = opened(repository, secret)
        assert again.slots.root_keys == 4
        assert again.reader().get(content) == b"newest"


def test_a_slot_that_someone_without_a_key_put_there_gets_no_root_key(repository: Repository, hurry: None) -> None:
    """He knows the family and the format, and can write to the store."""
    own = Generation(b"his own root key, of 32 bytes...")
    planted = create_slot(repository.store, repository.keys.family, [own], THIRD).slot.name
    with pytest.raises(KeyFailure, match=f"nobody who has this repository's keys has made the key slot {planted}"):
        repository.slots.new_root()
    repository.slots.remove(planted)
    assert repository.slots.new_root() == 1


def test_a_slot_whose_public_key_was_exchanged_gets_no_root_key(repository: Repository, hurry: None) -> None:
    slot = repository.slots.add(SECOND)
    fields = read_record(repository.store, slot.object_name)
    repository.store.delete(slot.object_name)
    write_record(repository.store, slot.object_name, {**fields, "public": "09" * 32})
    with pytest.raises(KeyFailure, match=f"made the key slot {slot.name} as it is now"):
        repository.slots.new_root()


def test_a_slot_made_with_an_old_root_key_after_it_was_replaced_gets_no_new_one(
    repository: Repository, hurry: None
) -> None:
    """By somebody who had a key once."""
    kept = held_generations(repository.keys)
    repository.slots.new_root()
    planted = create_slot(repository.store, repository.keys.family, kept, THIRD).slot.name
    repository.slots.add(SECOND)
    with pytest.raises(KeyFailure, match=f"made the key slot {planted} as it is now"):
        repository.slots.new_root()
    with pytest.raises(KeyFailure, match=f"the key slot {planted} was not given the newest root key"):
        opened(repository, THIRD).slots.new_root()


def test_a_root_key_that_someone_without_a_key_put_there_is_refused(repository: Repository) -> None:
    """He would be able to read everything that is stored from then on."""
    family, slot = repository.keys.family, repository.slots.own
    his, guessed = Generation(b"h" * 32), Generation(b"g" * 32)
    write_generation(repository.store, family, guessed, his, 1, [slot])
    with pytest.raises(DamageError, match=r"keys/root-1.json was not written by someone who holds"):
        opened(repository, FIRST)


def test_a_root_key_given_to_a_slot_by_someone_with_an_old_one_is_refused(repository: Repository) -> None:
    """He saw the slot come, and was faster than whoever made the newest root key."""
    old = held_generations(repository.keys)[0]
    slot = repository.slots.add(SECOND)
    his = Generation(b"h" * 32)
    write_generation(repository.store, repository.keys.family, old, Generation(b"i" * 32), 1, [])
    give_to(repository.store, repository.keys.family, old, his, 1, slot)
    with pytest.raises(PgkeepError):
        repository.slots.new_root()


def test_a_damaged_slot_is_listed_and_can_be_removed(repository: Repository, damage: object) -> None:
    slot = repository.slots.add(SECOND)
    damage(slot.object_name, 300)  # type: ignore[operator]
    assert [listed.slot for listed in list_slots(repository.store) if listed.name == slot.name] == [None]
    with pytest.raises(DamageError, match=slot.name):
        repository.slots.new_root()
    repository.slots.remove(slot.name)
    assert slots_of(repository) == [repository.slots.own.name]


def test_a_repository_without_encryption_has_no_slots(store: PosixStore) -> None:
    repository = Repository.create(store, None)
    with pytest.raises(KeyFailure, match="is not encrypted and has no keys"):
        _ = repository.slots


def test_a_repository_can_share_the_keys_of_another(repository: Repository, store: PosixStore) -> None:
    content = keep(repository, b"shared")
    repository.slots.new_root()
    copy = Repository.create(PosixStore(f"{store.root}-copy"), SECOND, keys_of=repository.keys)
    assert same_keys(repository.keys, copy.keys)
    for info in repository.store.list("packs/"):
        copy.store.put(info.name, [repository.store.get(info.name)])
    copy.reindex()
    assert opened(copy, SECOND).reader().get(content) == b"shared"
    copy.slots.new_root()
    assert same_keys(repository.keys, copy.keys)
    assert not same_keys(copy.keys, repository.keys)
    repository.slots.new_root()
    assert not same_keys(repository.keys, copy.keys)


def test_a_slot_says_no_root_key_and_no_secret(repository: Repository) -> None:
    repository.slots.new_root()
    slot = repository.slots.add(SECOND)
    stored = b"".join(repository.store.get(info.name) for info in repository.store.list("keys/"))
    for generation in held_generations(repository.keys):
        assert generation.root.hex().encode() not in stored
    assert SECOND.secret.hex().encode() not in stored
    assert set(read_slot(repository.store, slot.name).fields) == {
        *("kind", "salt", "nonce", "wrapped", "public", "generation", "label", "created", "seal"),
        "check",
    } - {"check"}
