"""What only a store on a file system does, or meets: fsync and links, short reads, full disks, foreign files."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgkeep.errors import DamageError, StoreError
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.store import ObjectExists, ObjectMissing


def names(store: PosixStore) -> list[str]:
    return [info.name for info in store.list("")]


def test_an_empty_object_comes_back(store: PosixStore) -> None:
    store.put("a", [b"", b""])
    assert (store.get("a"), bytes(store.read_mapped("a")), store.info("a").size) == (b"", b"", 0)


def test_what_a_file_system_keeps_beside_objects_is_passed_over(store: PosixStore) -> None:
    store.put("a/1", [b""])
    (store.root / "lost+found").mkdir()
    (store.root / ".snapshot").mkdir()
    (store.root / "a" / ".nfs0001").write_bytes(b"")
    assert names(store) == ["a/1"]


def test_a_file_that_cannot_be_an_object_is_refused_on_the_way_out(store: PosixStore) -> None:
    store.put("a/1", [b""])
    (store.root / "a" / "two words").write_bytes(b"")
    with pytest.raises(StoreError, match="not a name for an object: 'a/two words'"):
        names(store)


def test_what_dead_writers_left_is_removed_by_their_name_alone(store: PosixStore) -> None:
    store.put("a", [b"1"])
    (store.root / "tmp").mkdir()
    mine, dead = store.root / "tmp" / f"{store.writer}-1", store.root / "tmp" / "feedfeedfeedfeed-1"
    mine.write_bytes(b"123")
    dead.write_bytes(b"12345")
    assert store.leftovers() == 8
    assert names(store) == ["a"]
    store.discard_leftovers("feedfeedfeedfeed")
    assert [path.name for path in (store.root / "tmp").iterdir()] == [mine.name]


@pytest.mark.parametrize("writer", ["*", "", "../keys/*", "..", "/etc/", "[a-f]*"])
def test_a_forged_writer_removes_nothing(store: PosixStore, writer: str) -> None:
    store.put("keys/a-b", [b"1"])
    (store.root / "tmp").mkdir()
    mine = store.root / "tmp" / f"{store.writer}-1"
    mine.write_bytes(b"123")
    store.discard_leftovers(writer)
    assert mine.exists()
    assert names(store) == ["keys/a-b"]


def test_an_object_is_fsynced_before_it_has_its_name_and_its_folder_after(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a/0", [b""])
    events, real_fsync, real_link = list[str](), os.fsync, os.link

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"fsync {path.name}" if path.is_dir() else "fsync file")
        real_fsync(descriptor)

    def link(source: Path, target: Path, **options: Any) -> None:
        events.append("link")
        real_link(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    store.put("a/1", [b"1"])
    assert events == ["fsync file", "link", "fsync a"]
    events.clear()
    with pytest.raises(ObjectExists):
        store.put("a/1", [b"1"])
    assert events == ["fsync file", "link", "fsync a"], "the one who finds it must be able to rely on it"
    events.clear()
    (store.root / "b").mkdir()
    PosixStore(store.root).put("b/2", [b"2"])
    assert events[-2:] == ["link", "fsync b"]
    assert f"fsync {store.root.name}" in events, "another writer may have died between making the folder and this"


def test_objects_can_be_read_by_the_group_and_changed_by_nobody(store: PosixStore) -> None:
    store.put("a/b", [b"1"])
    assert (store.root / "a/b").stat().st_mode & 0o777 == 0o440
    assert (store.root / "a").stat().st_mode & 0o007 == 0


def test_a_file_where_a_folder_should_be_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write a/b in file://.*: Not a directory") as caught:
        PosixStore(tmp_path / "file").put("a/b", [b"1"])
    assert "no directory stands at" in str(caught.value.hint)


def test_a_directory_without_the_right_to_write_is_an_error_with_a_hint(work_dir: Path) -> None:
    program = (
        "import sys; from pgkeep.errors import StoreError; from pgkeep.repository.posix import PosixStore\n"
        "try: PosixStore(sys.argv[1]).put('a', [b'1'])\n"
        "except StoreError as error: print(error, '|', error.hint)"
    )
    work_dir.chmod(0o555)
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    answer = subprocess.run(
        [sys.executable, "-c", program, str(work_dir)], capture_output=True, text=True, check=True, **user  # type: ignore[call-overload]
    )  # fmt: skip
    assert "cannot write a in file://" in answer.stdout
    assert "Permission denied | run as the user that owns" in answer.stdout


def test_a_full_disk_is_an_error_with_a_hint_and_leaves_nothing(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def simulated_full_disk(descriptor: int, data: memoryview, position: int) -> int:
        if position >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:4096], position)

    monkeypatch.setattr(os, "pwrite", simulated_full_disk)
    for size in (10_000, 1 << 20):
        with pytest.raises(StoreError, match="No space left on device") as caught:
            store.put("a", [bytes(size)])
        assert "free room" in str(caught.value.hint)
    assert (names(store), store.leftovers()) == ([], 0)


def test_a_file_size_limit_of_the_system_is_an_error_and_leaves_nothing(store: PosixStore) -> None:
    program = (
        "import sys; from pgkeep.errors import StoreError; from pgkeep.repository.posix import PosixStore\n"
        "try: PosixStore(sys.argv[1]).put('a', [bytes(1 << 20)])\n"
        "except StoreError as error: print(error)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(store.root)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert "File too large" in answer.stdout
    assert (names(store), store.leftovers()) == ([], 0)


@pytest.mark.parametrize("most", [1, 4097, 100_000])
def test_simulated_short_writes_are_continued(store: PosixStore, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, position: real(descriptor, data[:most], position))
    data = os.urandom(5000 if most == 1 else 300_000)
    store.put("a", [data[:1000], data[1000:]])
    assert store.get("a") == data


def test_simulated_short_reads_are_continued(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", [b"0123456789"])
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, start: real(descriptor, min(length, 3), start))
    assert store.get("a") == b"0123456789"
    assert store.get("a", 2, 7) == b"2345678"
    assert store.get("a", 5, 50) == b"56789"


def test_a_store_whose_file_system_went_away_says_so(store: PosixStore) -> None:
    store.put("a/b", [b"1"])
    (store.root / "a" / "b").unlink()
    (store.root / "a").rmdir()
    with pytest.raises(StoreError, match="its directory went away") as caught:
        store.put("a/b", [b"1"])
    assert not isinstance(caught.value, ObjectMissing)


def test_a_file_system_without_hard_links_is_named_as_the_reason(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulated_link(source: Path, target: Path, **options: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", simulated_link)
    with pytest.raises(StoreError, match="Operation not supported") as caught:
        store.put("a", [b"1"])
    assert "hard links" in str(caught.value.hint)


def test_free_room_is_measured_where_the_store_will_be(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store.root.exists()
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_bavail=3, f_frsize=4096))
    assert store.free_bytes() == 12288


def test_a_disk_that_cannot_read_an_object_has_damaged_it(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: pread answers EIO, as for a bad sector; the error names the object."""

    def unreadable(_descriptor: int, _size: int, _position: int) -> bytes:
        raise OSError(errno.EIO, "simulated")

    store.put("a/b", [b"0123"])
    monkeypatch.setattr(os, "pread", unreadable)

    with pytest.raises(DamageError) as caught:
        store.get("a/b")

    assert caught.value.object_name == "a/b"


def test_leftovers_can_be_counted_while_writers_come_and_go(store: PosixStore) -> None:
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            store.put(f"scrubs/{number}", [b"x"])

    with ThreadPoolExecutor(2) as executor:
        writer = executor.submit(write)
        try:
            for _ in range(300):
                assert store.leftovers() >= 0
        finally:
            stop.set()
        writer.result()
    assert store.leftovers() == 0
