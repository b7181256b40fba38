"""Sealed mode: a database host adds and deduplicates, and reads neither data nor WAL back."""

from __future__ import annotations

import pytest

from pgkeep.errors import DamageError, KeyFailure
from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.contents import ContentWriter
from pgkeep.repository.crypto import BOXED
from pgkeep.repository.keys import held_generations
from pgkeep.repository.packs import PackKind, read_pack_table
from pgkeep.repository.posix import PosixStore

HOST, OWNER, OTHER = (KeyFile(bytes([number]) * 32) for number in range(1, 4))
SYSTEM, SEGMENT = 7, "000000010000000000000001"
CANNOT = "this key adds to the repository and does not read data or WAL back"


@pytest.fixture
def host(store: PosixStore) -> Repository:
    """Opened by the key of the database host."""
    return Repository.create(store, HOST, reader=OWNER)


@pytest.fixture
def owner(host: Repository, store: PosixStore) -> Repository:
    """The same repository, opened by the key that reads."""
    return Repository.open(PosixStore(store.root), OWNER)


def put(writer: ContentWriter, kind: PackKind, content: bytes) -> bytes:
    return writer.put(kind, content).id


def test_a_host_cannot_read_back_the_data_that_it_has_stored(host: Repository, owner: Repository) -> None:
    with host.writer() as writer:
        content = put(writer, PackKind.DATA, b"rows")
    with pytest.raises(KeyFailure, match=CANNOT):
        host.reader().get(content)
    owner.index.refresh()
    assert owner.reader().get(content) == b"rows"


def test_a_host_cannot_read_back_the_wal_that_it_has_stored(host: Repository, owner: Repository) -> None:
    host.wal(SYSTEM).put(SEGMENT, b"commit" * 1000)
    with pytest.raises(KeyFailure, match=CANNOT):
        host.wal(SYSTEM).get(SEGMENT)
    assert owner.wal(SYSTEM).get(SEGMENT) == b"commit" * 1000


def test_everything_in_a_hosts_keys_together_opens_no_data(host: Repository) -> None:
    """Not only the door is shut: no key that a stolen host has opens the bytes."""
    with host.writer() as writer:
        content = put(writer, PackKind.DATA, b"rows" * 100)
    location = host.reader().locate(content)
    data, entry = host.store.get(location.pack), location.entry
    sealed = data[entry.offset : entry.offset + entry.stored_size]
    (generation,) = held_generations(host.keys)
    assert generation.private is None
    for purpose in ("pack data", "pack meta", "boxed pack data", "pack data table"):
        with pytest.raises(DamageError):
            host.keys.sealer(data[12:44], purpose, boxed=False).open(entry.offset.to_bytes(12, "little"), sealed, b"")
    assert data[10] == BOXED


def test_a_host_finds_what_is_stored_and_does_not_store_it_again(host: Repository, store: PosixStore) -> None:
    with host.writer() as writer:
        put(writer, PackKind.DATA, b"rows")
    again = Repository.open(PosixStore(store.root), HOST)
    with again.writer() as writer:
        assert not writer.put(PackKind.DATA, b"rows").new


def test_a_host_reads_maps_and_what_packs_say_of_themselves(host: Repository) -> None:
    """It needs them to compare the next backup with the last, and to bring packs of a killed writer into the index."""
    with host.writer() as writer:
        data, page_map = put(writer, PackKind.DATA, b"rows"), put(writer, PackKind.META, b"map")
    assert host.reader().get(page_map) == b"map"
    assert [entry.id for entry in read_pack_table(host.store, host.keys, host.reader().locate(data).pack)] == [data]
    assert host.reindex() == 2


def test_the_same_wal_again_is_no_error_for_its_writer(host: Repository) -> None:
    """Who is killed between the store's answer and his own note pushes again."""
    host.wal(SYSTEM).put(SEGMENT, b"commit")
    assert host.wal(SYSTEM).put(SEGMENT, b"commit") > 0


def test_other_wal_under_the_same_name_is_an_error_for_who_cannot_read_it(host: Repository) -> None:
    from pgkeep.repository.wal_objects import DifferentWalError

    host.wal(SYSTEM).put(SEGMENT, b"commit")
    with pytest.raises(DifferentWalError, match="exists with other content"):
        host.wal(SYSTEM).put(SEGMENT, b"commis")


def test_a_host_tells_what_it_has_from_what_is_stored_without_reading_it(host: Repository) -> None:
    archive = host.wal(SYSTEM)
    archive.put(SEGMENT, b"commit")
    assert archive.holds(SEGMENT, b"commit")
    assert not archive.holds(SEGMENT, b"commis")
    assert not archive.holds("000000010000000000000002", b"commit")


def test_bytes_under_way_are_kept_under_another_name_by_a_host(host: Repository, owner: Repository) -> None:
    """The beginning of the last segment, at a backup's end."""
    sealer = host.wal(SYSTEM).sealer(SEGMENT)
    sealer.write(b"begun" * 300_000)
    plain = host.wal(SYSTEM).unseal(sealer)
    assert plain == b"begun" * 300_000
    piece = f"{SEGMENT}.00000000-{len(plain):08x}"
    host.wal(SYSTEM).put(piece, plain)
    assert owner.wal(SYSTEM).get(piece) == plain


def test_a_timelines_history_is_no_data_and_a_host_reads_it(host: Repository) -> None:
    """Without it nobody knows where WAL goes on."""
    host.wal(SYSTEM).put("00000002.history", b"1\t0/3000000\tno reason\n")
    assert host.wal(SYSTEM).get("00000002.history") == b"1\t0/3000000\tno reason\n"


@pytest.mark.parametrize("place", [-33, -40, -64, 100, 48])
def test_a_flipped_bit_in_sealed_wal_is_damage_for_both(
    host: Repository, owner: Repository, store: PosixStore, place: int
) -> None:
    name = host.wal(SYSTEM).object_name(SEGMENT)
    host.wal(SYSTEM).put(SEGMENT, b"commit" * 10_000)
    data = bytearray(store.get(name))
    data[place] ^= 1
    store.delete(name)
    store.put(name, [bytes(data)])
    for look in (lambda: host.wal(SYSTEM).holds(SEGMENT, b"commit"), lambda: owner.wal(SYSTEM).get(SEGMENT)):
        with pytest.raises(DamageError, match="its bytes do not match its check"):
            look()


def test_jobs_that_read_are_refused_before_they_begin(host: Repository, owner: Repository) -> None:
    with pytest.raises(KeyFailure, match=CANNOT):
        host.keys.require_reading()
    owner.keys.require_reading()


def test_a_host_lets_other_hosts_add_and_nobody_read(host: Repository, store: PosixStore) -> None:
    with pytest.raises(KeyFailure, match="cannot let others read"):
        host.slots.add(OTHER)
    with pytest.raises(KeyFailure, match="cannot make a root key"):
        host.slots.new_root()
    host.slots.add(OTHER, appends_only=True)
    again = Repository.open(PosixStore(store.root), OTHER)
    assert (again.keys.boxes, again.keys.opens_boxes) == (True, False)


def test_a_new_root_key_brings_a_new_pair_and_the_old_data_stays_readable(
    host: Repository, owner: Repository, store: PosixStore
) -> None:
    with host.writer() as writer:
        old = put(writer, PackKind.DATA, b"old")
    owner.slots.new_root()
    later = Repository.open(PosixStore(store.root), HOST)
    with later.writer() as writer:
        new = put(writer, PackKind.DATA, b"new")
    with pytest.raises(KeyFailure, match=CANNOT):
        later.reader().get(new)
    reader = Repository.open(PosixStore(store.root), OWNER).reader()
    assert (reader.get(old), reader.get(new)) == (b"old", b"new")
    first, second = held_generations(owner.keys)
    assert first.private != second.private


def test_without_sealed_mode_there_are_no_keys_that_only_add(store: PosixStore) -> None:
    from pgkeep.errors import UsageError

    with pytest.raises(UsageError, match="only a repository in sealed mode"):
        Repository.create(store, HOST).slots.add(OTHER, appends_only=True)
