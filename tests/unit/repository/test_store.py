"""What every store must do: a directory, and a bucket of a real S3 server, listed folder by folder or as the server does."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgkeep.errors import ConfigError, StoreError
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.store import Capabilities, ObjectExists, ObjectMissing, Store, check_name, open_store

if TYPE_CHECKING:
    from support.seaweed import S3Bucket

pytestmark = pytest.mark.deletes


KINDS = ["directory", "bucket", "bucket without conditions"]


def make_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if kind == "directory":
        return PosixStore(tmp_path / "repository")
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    store = open_store(bucket.url)
    store.adapt(Capabilities(conditional_put=kind == "bucket", sorted_listing=False))
    return store


@pytest.fixture(params=KINDS[:2])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    return make_store(request.param, request, tmp_path)


@pytest.fixture(params=KINDS)
def written_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same, with one more for what is about writing."""
    return make_store(request.param, request, tmp_path)


def names(store: Store, prefix: str = "") -> list[str]:
    return [info.name for info in store.list(prefix)]


def test_an_object_comes_back_whole_and_in_ranges(written_store: Store) -> None:
    store = written_store
    store.put("a/b", [b"0123", bytearray(b"45"), memoryview(b"6789")])
    assert store.get("a/b") == b"0123456789"
    assert store.get("a/b", 3, 4) == b"3456"
    assert store.get("a/b", 3, 0) == b""
    assert store.get("a/b", 8) == b"89"
    assert store.get("a/b", 8, 100) == b"89"
    assert store.get("a/b", 10, 5) == b""
    assert store.get("a/b", 100, 5) == b""
    assert store.get("a/b", 100) == b""
    assert bytes(store.read_mapped("a/b")) == b"0123456789"
    info = store.info("a/b")
    assert (info.name, info.size) == ("a/b", 10)
    assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)
    assert list(store.list("a/")) == [info]


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, (128 << 10) - 1, 128 << 10, (1 << 20) + 1, (17 << 20) + 5])
def test_objects_of_every_size_come_back(store: Store, size: int) -> None:
    data = os.urandom(size)
    store.put("a", [data[: size // 3], b"", data[size // 3 :]])
    assert store.get("a") == data
    assert bytes(store.read_mapped("a")) == data
    assert store.get("a", size // 2, size) == data[size // 2 :]
    assert [info.size for info in store.list("")] == [size]


def test_an_object_is_never_replaced(written_store: Store) -> None:
    store = written_store
    store.put("a", [b"first"])
    with pytest.raises(ObjectExists, match=r"a is in (file|s3)://"):
        store.put("a", [b"second"])
    with pytest.raises(ObjectExists):
        store.put("a", [b"first"])
    assert store.get("a") == b"first"
    assert store.leftovers() == 0


def test_of_many_writers_of_one_name_exactly_one_wins(store: Store) -> None:
    # SeaweedFS lets them wait for each other for a second each time
    count = 16 if isinstance(store, PosixStore) else 4
    barrier, winners, losers = threading.Barrier(count), list[int](), list[int]()

    def write(number: int) -> None:
        barrier.wait()
        try:
            store.put("x/y/z", [bytes([number]) * 1000])
            winners.append(number)
        except ObjectExists:
            losers.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, count - 1)
    assert store.get("x/y/z") == bytes(winners) * 1000
    assert store.leftovers() == 0


@pytest.mark.parametrize("verb", ["get", "read_mapped", "info"])
def test_an_object_that_is_not_there_is_missing(store: Store, verb: str) -> None:
    with pytest.raises(ObjectMissing, match=r"a/b is not in (file|s3)://"):
        getattr(store, verb)("a/b")


def test_deleting_what_is_not_there_is_no_error(written_store: Store) -> None:
    store = written_store
    store.put("a", [b"1"])
    store.delete("a")
    store.delete("a")
    store.delete("b/c")
    assert names(store) == []
    store.put("a", [b"2"])
    assert store.get("a") == b"2"


segments = st.text("aA0-_.", min_size=1, max_size=3).filter(lambda text: not text.startswith("."))


@pytest.mark.parametrize("kind", KINDS[:2])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(st.lists(segments, min_size=1, max_size=3).map("/".join), max_size=8))
def test_a_listing_is_sorted_by_whole_names(
    kind: str, paths: set[str], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chosen = {path for path in paths if not any(other.startswith(path + "/") for other in paths)}
    directory = tmp_path_factory.mktemp("listing")
    store: Store = PosixStore(directory / "r")
    if kind == "bucket":
        url: str = request.getfixturevalue("s3_bucket").url
        store = open_store(url.replace("/auth?", f"/{directory.name}?"))
    for path in chosen:
        store.put(path, [path.encode()])
    assert names(store) == sorted(chosen)
    for prefix in {path.split("/")[0] + "/" for path in chosen if "/" in path}:
        assert names(store, prefix) == sorted(path for path in chosen if path.startswith(prefix))
        folders = {path.split("/")[1] for path in chosen if path.startswith(prefix) and path.count("/") == 2}
        assert store.folders(prefix) == sorted(folders)


def test_a_listing_of_more_than_a_page_is_whole(store: Store) -> None:
    """S3 gives a thousand objects at once."""
    wanted = [f"packs/{number:04}" for number in range(1050)]
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda name: store.put(name, [b"x"]), wanted))
    assert names(store) == wanted
    assert store.folders("packs/") == []


def test_a_prefix_is_a_folder_and_not_a_beginning_of_a_name(store: Store) -> None:
    for name in ("a/1", "ab/2", "a/c/3"):
        store.put(name, [b"x"])
    assert names(store, "a/") == ["a/1", "a/c/3"]
    assert names(store, "nothing/") == []
    assert store.folders("a/") == ["c"]
    assert store.folders("nothing/") == []


def test_what_is_below_tmp_is_no_object(store: Store) -> None:
    store.put("a", [b"1"])
    store.put("tmp/probe-1/a", [b"1"])
    assert names(store) == ["a"]


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", ".", "./a", "a/.b", "a b", "a\n", "a\0", "ä", "a\\b", "x" * 129,
     "a/" * 8 + "a"],
)  # fmt: skip
@pytest.mark.parametrize("address", ["file:///nowhere/at/all", "s3://bucket/prefix?endpoint=http://127.0.0.1:1"])
def test_names_that_could_leave_the_store_or_be_confused_are_refused(address: str, name: str) -> None:
    """Before anything is asked: there is nothing at either address."""
    store = open_store(address)
    for call in (
        lambda: check_name(name),
        lambda: store.put(name, [b"x"]),
        lambda: store.get(name),
        lambda: store.info(name),
        lambda: store.delete(name),
    ):
        with pytest.raises(StoreError, match="not a name for an object"):
            call()
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize("writer", ["*", "", "../keys/*", "..", "/etc/", "[a-f]*", "feedfeedfeedfeed"])
def test_a_forged_writer_removes_no_object(store: Store, writer: str) -> None:
    store.put("keys/a-b", [b"1"])
    store.discard_leftovers(writer)
    assert names(store) == ["keys/a-b"]


@pytest.mark.parametrize(
    ("url", "root"),
    [("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("file://localhost/a", "/a"), ("file:///a%20b", "/a b")],
)
def test_addresses_of_directories_are_understood(url: str, root: str) -> None:
    store = open_store(url)
    assert isinstance(store, PosixStore)
    assert str(store.root) == root
    assert open_store(store.url).url == store.url


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://bucket/a/b?region=eu-west-1", "gs://bucket/a", "az://container/a?account=mine"]
)
def test_addresses_of_buckets_are_understood(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    assert store.url == url
    assert open_store(store.url).url == store.url


@pytest.mark.parametrize("url", ["", "relative/path", "file://host/a", "ftp://a/b", "file:a"])
def test_other_addresses_are_refused_with_a_hint(url: str) -> None:
    with pytest.raises(ConfigError, match="not a repository address") as caught:
        open_store(url)
    assert "file:///absolute/path" in str(caught.value.hint)
