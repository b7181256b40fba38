from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pgkeep.errors import DamageError, StoreError
from pgkeep.repository import KeyFile, Repository, contents
from pgkeep.repository.codec import Codec
from pgkeep.repository.content_reader import spans
from pgkeep.repository.contents import ContentWriter, StoredContent
from pgkeep.repository.index import Location
from pgkeep.repository.packs import PackBuilder, PackEntry, PackKind
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.store import Buffer
from pgkeep.workers import Workers


def cells(count: int, seed: int = 1, size: int = 16 << 10) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(size // 2) + bytes(size // 2) for _ in range(count)]


def packs(store: PosixStore) -> list[str]:
    return [info.name for info in store.list("packs/")]


def stored_bytes(store: PosixStore) -> int:
    return sum(info.size for info in store.list("packs/"))


def read_all(repository: Repository, written: Sequence[StoredContent]) -> list[bytes]:
    reader = repository.reader()
    return [reader.get(content.id) for content in written]


def test_contents_come_back_after_the_writer_and_the_process_are_gone(
    store: PosixStore, repository: Repository, secret: KeyFile | None
) -> None:
    plains = [b"", b"x", bytes(100_000), *cells(20)]
    with repository.writer() as writer:
        written = [writer.put(PackKind.DATA, plain) for plain in plains]
        assert all(content.new for content in written)
    assert writer.new_bytes == stored_bytes(store)
    assert len(packs(store)) > 2
    assert read_all(repository, written) == plains
    assert read_all(Repository.open(store, secret), written) == plains


def test_a_content_is_stored_once_within_and_across_writers(store: PosixStore, repository: Repository) -> None:
    with repository.writer() as writer:
        first = writer.put(PackKind.DATA, b"same" * 1000)
        again = writer.put(PackKind.META, b"same" * 1000)
    assert (first.new, again.new, again.id) == (True, False, first.id)
    before = packs(store)
    with repository.writer() as writer:
        later = writer.put(PackKind.DATA, b"same" * 1000)
    assert later == StoredContent(first.id, first.stored_size, new=False)
    assert writer.new_bytes == 0
    assert packs(store) == before
    assert len(list(store.list("index/"))) == 1


def test_data_and_maps_lie_in_packs_of_their_own(store: PosixStore, repository: Repository) -> None:
    with repository.writer() as writer:
        writer.put(PackKind.DATA, b"data")
        writer.put(PackKind.META, b"map")
    assert [name.split("/")[1] for name in packs(store)] == ["data", "meta"]


def test_twins_that_are_put_at_once_by_many_threads_are_stored_once(store: PosixStore, repository: Repository) -> None:
    plains = cells(30)
    written = list[StoredContent]()
    with repository.writer() as writer, Workers(8, "put", waiting=1000) as workers:
        for plain in plains * 8:
            workers.submit(lambda plain: written.append(writer.put(PackKind.DATA, plain)), plain)
        workers.drain()
    assert sum(content.new for content in written) == 30
    assert len({content.id for content in written}) == 30
    assert sum(len(segment) for segment in repository.index.segments) == 30
    assert sorted(read_all(repository, written)) == sorted(plains * 8)


def test_no_index_names_a_pack_that_is_not_durable(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    order, real = list[str](), PosixStore.put

    def put(self: PosixStore, name: str, parts: Sequence[Buffer]) -> None:
        real(self, name, parts)
        order.append(name.split("/", maxsplit=1)[0])

    monkeypatch.setattr(PosixStore, "put", put)
    monkeypatch.setattr(contents, "_INDEX_ENTRIES", 10)
    with repository.writer() as writer:
        written = [writer.put(PackKind.DATA, plain) for plain in cells(43)]
    assert order.count("index") >= 3
    assert order[0] == "packs"
    assert order[-1] == "index"
    assert sum(len(segment) for segment in repository.index.segments) == 43
    assert read_all(repository, written) == cells(43)


class FullDisk:
    """A store of which nothing more is written after some packs; a simulated one, since it must fail in time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, packs: int, *, also_index: bool = False) -> None:
        self.left, self.real = packs, PosixStore.put
        self.asked = 0
        self.also_index = also_index
        disk = self

        def put(store: PosixStore, name: str, parts: Sequence[Buffer]) -> None:
            disk.put(store, name, parts)

        monkeypatch.setattr(PosixStore, "put", put)

    def put(self, store: PosixStore, name: str, parts: Sequence[Buffer]) -> None:
        if name.startswith("packs/"):
            self.left -= 1
            self.asked += 1
        if self.left < 0 and (self.also_index or name.startswith("packs/")):
            raise StoreError("cannot write: No space left on device", hint="free room")
        self.real(store, name, parts)


def put_by_threads(repository: Repository, plains: list[bytes]) -> None:
    with repository.writer() as writer, Workers(6, "put") as workers:
        for plain in plains:
            workers.submit(put, writer, plain)
        workers.drain()


def put(writer: ContentWriter, plain: bytes) -> None:
    writer.put(PackKind.DATA, plain)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("good_packs", [0, 1, 3])
def test_a_store_that_fails_ends_every_thread_and_loses_nothing_that_was_complete(
    store: PosixStore, repository: Repository, secret: KeyFile | None, monkeypatch: pytest.MonkeyPatch, good_packs: int
) -> None:
    plains = cells(100)
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, good_packs)
        with pytest.raises(StoreError, match="No space left") as caught:
            put_by_threads(repository, plains)
        assert caught.value.hint == "free room"
        assert disk.asked <= good_packs + 2, "a store that fails is not asked for ever"
    assert len(packs(store)) == good_packs
    again = Repository.open(store, secret)
    assert len(again.index.known_packs()) == good_packs, "what is complete is used again"
    put_by_threads(again, plains)
    assert sum(len(segment) for segment in again.index.segments) == 100, "nothing is stored twice"
    assert sorted(
        read_all(again, [StoredContent(again.keys.content_id(plain), 0, new=False) for plain in plains])
    ) == sorted(plains)


@pytest.mark.timeout(60)
def test_an_error_of_the_last_pack_is_raised_at_the_end(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, 0)
    with pytest.raises(StoreError, match="No space left"), repository.writer() as writer:
        writer.put(PackKind.DATA, b"1")


@pytest.mark.timeout(60)
def test_an_index_that_cannot_be_written_is_an_error(
    store: PosixStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PosixStore.put

    def put(self: PosixStore, name: str, parts: Sequence[Buffer]) -> None:
        if name.startswith("index/"):
            raise StoreError("cannot write the index")
        real(self, name, parts)

    with monkeypatch.context() as patch:
        patch.setattr(PosixStore, "put", put)
        with pytest.raises(StoreError, match="cannot write the index"), repository.writer() as writer:
            writer.put(PackKind.DATA, b"1")
    assert len(packs(store)) == 1
    assert repository.adopt_orphans() == 1
    assert repository.reader().get(repository.keys.content_id(b"1")) == b"1"


def test_what_was_put_before_another_error_is_kept_and_the_error_stays_itself(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        with repository.writer() as writer:
            writer.put(PackKind.DATA, bytes([number]) * 100)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(1)
    assert repository.reader().get(repository.keys.content_id(bytes([1]) * 100)) == bytes([1]) * 100
    FullDisk(monkeypatch, 0, also_index=True)
    with pytest.raises(KeyboardInterrupt):
        fail(2)


def test_full_packs_do_not_pile_up_before_a_slow_store(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: a writer that runs ahead waits. Packs of 64 KiB, of which two may wait and a few fill."""
    real, waiting, most = PosixStore.put, [0], [0]
    made, lock = PackBuilder.__init__, threading.Lock()

    def init(self: PackBuilder, *arguments: object) -> None:
        with lock:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
        made(self, *arguments)  # type: ignore[arg-type]

    def put(self: PosixStore, name: str, parts: Sequence[Buffer]) -> None:
        time.sleep(0.005)
        real(self, name, parts)
        if name.startswith("packs/"):
            with lock:
                waiting[0] -= 1

    monkeypatch.setattr(PackBuilder, "__init__", init)
    monkeypatch.setattr(PosixStore, "put", put)
    put_by_threads(repository, cells(300))
    # two that wait for the store, one that fills, one a thread that has just filled it
    assert 3 <= most[0] <= 2 + 1 + 6
    assert waiting[0] == 0


KILLED = """
import os, random, sys
from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.packs import PackKind
from pgkeep.repository.posix import PosixStore
repository = Repository.open(PosixStore(sys.argv[1]), KeyFile(bytes(range(32))) if sys.argv[2] == "key" else None)
with repository.lease("backup"):
    writer = repository.writer()
    chance = random.Random(1)
    for _ in range(43):
        writer.put(PackKind.DATA, chance.randbytes(8 << 10) + bytes(8 << 10))
    writer._wait()
    os.kill(os.getpid(), 9)
"""


def test_packs_of_a_killed_writer_are_used_by_the_next_one(
    store: PosixStore, repository: Repository, secret: KeyFile | None
) -> None:
    assert repository.index.segments == []
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root), "none" if secret is None else "key"], check=False
    )
    assert killed.returncode == -9
    orphans = len(packs(store))
    assert orphans >= 4
    assert list(store.list("index/")) == []
    with repository.lease("backup") as lease:
        assert lease.took_over
        assert repository.adopt_orphans() == orphans
        assert repository.adopt_orphans() == 0
        with repository.writer() as writer:
            written = [writer.put(PackKind.DATA, plain) for plain in cells(43)]
    assert 0 < sum(content.new for content in written) < 8, "only what was not in a complete pack is stored again"
    assert read_all(repository, written) == cells(43)


def test_packs_that_another_writer_has_indexed_meanwhile_are_no_orphans(
    store: PosixStore, repository: Repository, secret: KeyFile | None
) -> None:
    assert repository.index.segments == []
    with Repository.open(store, secret).writer() as writer:
        writer.put(PackKind.DATA, b"1")
    assert repository.adopt_orphans() == 0
    assert len(list(store.list("index/"))) == 1


def test_a_content_of_a_damaged_pack_is_an_error_that_names_the_pack(
    store: PosixStore, repository: Repository, damage: Callable[[str, int], None]
) -> None:
    with repository.writer() as writer:
        content = writer.put(PackKind.DATA, os.urandom(1000))
    (name,) = packs(store)
    damage(name, 44 * 8 + 5)
    with pytest.raises(DamageError, match=name) as caught:
        repository.reader().get(content.id)
    assert caught.value.object_name == name


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "damaged"])
def test_a_content_that_a_second_pack_has_is_read_there_where_the_first_one_is(
    store: PosixStore, repository: Repository, *, lost: bool
) -> None:
    plains = cells(3)
    writers = [ContentWriter(store, repository.keys, repository.index, repository.parameters) for _ in range(2)]
    written = [[writer.put(PackKind.DATA, plain) for plain in plains] for writer in writers]
    for writer in writers:
        writer.flush()
    places = [repository.index.find(content.id) for content in written[0]]
    first = {place.pack for place in places if place is not None}
    for name in first:
        path = Path(store.url.removeprefix("file://")) / name
        data = bytes(path.stat().st_size)
        path.unlink()
        if not lost:
            path.write_bytes(data)

    assert [content.new for content in written[1]] == [True] * 3
    assert read_all(repository, written[0]) == plains
    with pytest.raises(DamageError, match=sorted(first)[0]):
        list(repository.reader().read(sorted(first)[0], [places[0].entry], elsewhere=False))  # type: ignore[union-attr]


def test_a_content_of_a_lost_or_cut_pack_is_damage_that_names_the_pack(
    store: PosixStore, repository: Repository
) -> None:
    with repository.writer() as writer:
        content = writer.put(PackKind.DATA, os.urandom(1000))
    (name,) = packs(store)
    data = store.get(name)
    for length in (0, 20, 44, 500):
        store.delete(name)
        store.put(name, [data[:length]])
        with pytest.raises(DamageError) as caught:
            repository.reader().get(content.id)
        assert caught.value.object_name == name
    store.delete(name)
    with pytest.raises(DamageError, match=f"{name} is gone"):
        repository.reader().get(content.id)


def test_a_content_in_no_index_names_the_command_that_mends_it(repository: Repository) -> None:
    with pytest.raises(DamageError, match="is in no index") as caught:
        repository.reader().get(bytes(32))
    assert "pgkeep repository reindex" in str(caught.value.hint)


def test_neighbours_in_a_pack_are_read_at_once(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    plains = cells(3, size=2000)
    with repository.writer() as writer:
        written = [writer.put(PackKind.DATA, plain) for plain in plains]
    reader = repository.reader()
    found = list(spans([reader.locate(content.id) for content in written[::-1]]))
    assert len(found) == 1
    reads, real = [0], PosixStore.get

    def get(self: PosixStore, name: str, start: int = 0, length: int | None = None) -> bytes:
        reads[0] += 1
        return real(self, name, start, length)

    monkeypatch.setattr(PosixStore, "get", get)
    assert [plain for _, plain in reader.read(*found[0])] == plains
    assert reads[0] == 2, "the span and, once, the pack's header"


def place(pack: str, offset: int, size: int) -> Location:
    return Location(pack, PackEntry(offset.to_bytes(32, "big"), offset, size, size, Codec.RAW))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([("a", 0, 10), ("a", 10, 10)], [("a", [0, 10])]),
        ([("a", 10, 10), ("a", 0, 10), ("a", 10, 10)], [("a", [0, 10])]),
        ([("a", 0, 10), ("b", 10, 10)], [("a", [0]), ("b", [10])]),
        ([("b", 0, 10), ("a", 0, 10)], [("a", [0]), ("b", [0])]),
        ([("a", 0, 10), ("a", 10 + (64 << 10), 10)], [("a", [0, 10 + (64 << 10)])]),
        ([("a", 0, 10), ("a", 11 + (64 << 10), 10)], [("a", [0]), ("a", [11 + (64 << 10)])]),
        ([("a", 0, 3 << 20), ("a", 3 << 20, 1 << 20)], [("a", [0, 3 << 20])]),
        ([("a", 0, 3 << 20), ("a", 3 << 20, (1 << 20) + 1)], [("a", [0]), ("a", [3 << 20])]),
    ],
)
def test_places_are_joined_into_reads(
    places: list[tuple[str, int, int]], expected: list[tuple[str, list[int]]]
) -> None:
    found = [(pack, [entry.offset for entry in entries]) for pack, entries in spans([place(*each) for each in places])]
    assert found == expected
