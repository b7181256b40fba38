from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository import Repository
from pgkeep.repository.codec import Codec
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.repository.index import Index, Location, write_index
from pgkeep.repository.packs import PackEntry, PackKind, pack_name
from pgkeep.repository.posix import PosixStore

Packs = list[tuple[str, list[PackEntry]]]

numbers = st.integers(0, 2**32 - 1)
few_ids = st.integers(0, 40).map(lambda number: bytes([number]) * 32)
entries = st.builds(
    PackEntry, few_ids | st.binary(min_size=32, max_size=32), numbers, numbers, numbers, st.sampled_from(Codec)
)
pack_names = st.builds(pack_name, st.sampled_from(PackKind), st.binary(min_size=32, max_size=32).map(bytes.hex))
packs = st.lists(st.tuples(pack_names, st.lists(entries, max_size=10, unique_by=lambda entry: entry.id)), max_size=5)


@settings(max_examples=60)
@given(segments=st.lists(packs, max_size=3), unknown=st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_a_lookup_answers_as_a_dict_would(
    segments: list[Packs], unknown: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = KeyRing(Suite.AES_256_GCM, bytes(32), bytes(16))
    store = PosixStore(tmp_path_factory.mktemp("index"))
    index = Index(store, keys)
    for segment in segments:
        index.adopt(write_index(store, keys, segment))
    expected: dict[bytes, list[Location]] = {}
    for segment in segments:
        for name, held in segment:
            for entry in held:
                expected.setdefault(entry.id, []).append(Location(name, entry))
    for known in (index, Index(store, keys)):
        for content_id, places in expected.items():
            assert known.find(content_id) in places
        for content_id in set(unknown) - set(expected):
            assert known.find(content_id) is None
        assert known.known_packs() == {name for segment in segments for name, _ in segment}
        assert sum(len(segment) for segment in known.segments) == sum(
            len(held) for segment in {repr(segment): segment for segment in segments}.values() for _, held in segment
        )


def some_packs(seed: int, count: int = 2, held: int = 3) -> Packs:
    chance = random.Random(seed)
    return [
        (
            pack_name(PackKind.DATA, chance.randbytes(32).hex()),
            [PackEntry(chance.randbytes(32), 44 + n, 20, 4, Codec.RAW) for n in range(held)],
        )
        for _ in range(count)
    ]


def test_every_flipped_bit_of_an_index_is_found(
    store: PosixStore, keys: KeyRing, damage: Callable[[str, int], None]
) -> None:
    name = write_index(store, keys, some_packs(1, 1, 2))
    for bit in range(0, store.info(name).size * 8, 3):
        damage(name, bit)
        with pytest.raises(DamageError, match="its bytes do not match its name") as caught:
            Index(store, keys)
        assert caught.value.object_name == name
        assert "pgkeep repository reindex" in str(caught.value.hint)
        damage(name, bit)
    assert len(Index(store, keys).segments) == 1


@pytest.mark.parametrize("size", [0, 1, 31, 63, 64, 100])
def test_a_short_object_is_no_index(store: PosixStore, keys: KeyRing, size: int) -> None:
    data = bytes(size)
    store.put(f"index/{hashlib.sha256(data).hexdigest()}", [data])
    with pytest.raises(DamageError, match="was not written with this repository's key"):
        Index(store, keys)


def test_an_index_of_another_key_or_family_is_refused(store: PosixStore, keys: KeyRing) -> None:
    write_index(store, keys, some_packs(1))
    for stranger in (KeyRing(keys.suite, bytes(32), keys.family), KeyRing(keys.suite, keys.root_key, bytes(16))):
        with pytest.raises(DamageError):
            Index(store, stranger)


def test_an_index_takes_notice_of_segments_that_came_and_went(store: PosixStore, keys: KeyRing) -> None:
    index = Index(store, keys)
    first, second = some_packs(1), some_packs(2)
    one = write_index(store, keys, first)
    write_index(store, keys, second)
    assert index.find(first[0][1][0].id) is None
    index.refresh()
    assert index.find(first[0][1][0].id) == Location(first[0][0], first[0][1][0])
    assert index.find(second[1][1][2].id) == Location(second[1][0], second[1][1][2])
    store.delete(one)
    index.refresh()
    assert index.find(first[0][1][0].id) is None
    assert len(index.segments) == 1


def test_the_same_index_written_twice_is_one_object(store: PosixStore, keys: KeyRing) -> None:
    assert write_index(store, keys, some_packs(1)) == write_index(store, keys, some_packs(1))
    assert len(list(store.list("index/"))) == 1


def fill(repository: Repository, seed: int = 0) -> dict[bytes, bytes]:
    chance = random.Random(seed)
    written = {}
    for _ in range(2):
        with repository.writer() as writer:
            for number in range(12):
                plain = chance.randbytes(9000 + number)
                written[writer.put(PackKind.META if number % 4 == 0 else PackKind.DATA, plain).id] = plain
    return written


def locations(repository: Repository, written: dict[bytes, bytes]) -> list[Location | None]:
    return [repository.index.find(content_id) for content_id in written]


def test_a_new_index_equals_the_lost_one(repository: Repository, secret: object) -> None:
    written = fill(repository)
    before = locations(repository, written)
    old = [info.name for info in repository.store.list("index/")]
    assert len(old) == 2
    for name in old:
        repository.store.delete(name)
    packs_there = len(list(repository.store.list("packs/")))
    assert repository.reindex() == packs_there > 4
    assert locations(repository, written) == before
    assert len(list(repository.store.list("index/"))) == 1
    reader = repository.reader()
    assert {content_id: reader.get(content_id) for content_id in written} == written


def test_a_damaged_index_is_made_again_though_its_name_is_taken(
    repository: Repository, damage: Callable[[str, int], None]
) -> None:
    written = fill(repository)
    repository.reindex()
    (name,) = [info.name for info in repository.store.list("index/")]
    damage(name, -300)
    repository.reindex()
    assert [info.name for info in repository.store.list("index/")] == [name]
    assert None not in locations(repository, written)


def test_one_damaged_pack_does_not_keep_the_others_out_of_a_new_index(
    repository: Repository, damage: Callable[[str, int], None]
) -> None:
    written = fill(repository)
    broken = next(info.name for info in repository.store.list("packs/"))
    lost = {content_id for content_id in written if repository.index.find(content_id).pack == broken}  # type: ignore[union-attr]
    for info in list(repository.store.list("index/")):
        repository.store.delete(info.name)
    damage(broken, -1)
    with pytest.raises(DamageError, match=r"1 of .* packs cannot be read") as caught:
        repository.reindex()
    assert caught.value.object_name == broken
    reader = repository.reader()
    for content_id, plain in written.items():
        if content_id not in lost:
            assert reader.get(content_id) == plain
    with pytest.raises(DamageError, match="is in no index"):
        reader.get(lost.pop())


def test_an_index_that_comes_while_another_is_made_again_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that runs beside: its packs and index are written between the listings of a reindex."""
    fill(repository)
    store, late = repository.store, dict[bytes, bytes]()
    listed = type(store).list

    def list_and_let_a_backup_pass(self: PosixStore, prefix: str) -> list[object]:
        answer = list[object](listed(self, prefix))
        if prefix == "packs/" and not late:
            late[b""] = b""
            late.update(fill(repository, seed=1))
        return answer

    monkeypatch.setattr(PosixStore, "list", list_and_let_a_backup_pass)
    repository.reindex()
    del late[b""]
    assert None not in locations(repository, late)
