"""A program that changes keys and is killed at every change to the file system, one after the other: what is left must be good.

``python -m support.killed_keys SCENARIO DIRECTORY`` forks a child for each point; an audit hook ends it there as SIGKILL would.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pgkeep.config import KeyReference
from pgkeep.errors import KeyFailure
from pgkeep.key_care import rotate_key
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.keys.changes import list_slots
from pgkeep.repository.packs import PackKind

__all__ = ["main"]

CHANGES = {"os.link", "os.rename", "os.remove", "os.chmod", "os.chown", "os.mkdir", "os.truncate"}
MOST = 400
KILLED = 77
SECOND, THIRD = KeyFile(b"\2" * 32), KeyFile(b"\3" * 32)


class Place:
    """Two repositories with one key file, each with a content and a second slot."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory / "main.key"
        self.names = ("one", "two")

    def prepare(self) -> None:
        key = KeyFile.generate(self.key)
        shutil.copy(self.key, self.directory / "old")
        for name in self.names:
            repository = Repository.create(open_store(str(self.directory / name)), key)
            repository.slots.add(SECOND)
            with repository.writer() as writer:
                writer.put(PackKind.DATA, b"kept")

    def open(self, secret: KeyFile | None = None) -> list[Repository]:
        """By the key file, or by another secret."""
        secret = secret or KeyFile.read(self.key)
        return [Repository.open(open_store(str(self.directory / name)), secret) for name in self.names]

    def expect_kept(self, secret: KeyFile | None = None) -> None:
        """Each opens, reads what was stored before, and stores and reads what is new."""
        for repository in self.open(secret):
            with repository.writer() as writer:
                new = writer.put(PackKind.DATA, os.urandom(8)).id
            old = repository.keys.content_id(b"kept")
            assert repository.reader().get(old) == b"kept"
            assert len(repository.reader().get(new)) == 8

    def slots(self) -> int:
        """Of the first repository."""
        return len(list_slots(open_store(str(self.directory / "one"))))


def add(place: Place) -> None:
    for repository in place.open():
        repository.slots.add(THIRD)


def after_add(place: Place) -> None:
    place.expect_kept()
    place.expect_kept(SECOND)
    add(place)
    place.expect_kept(THIRD)


def remove(place: Place) -> None:
    for repository in place.open():
        for name in [
            listed.name for listed in list_slots(repository.store) if listed.name != repository.slots.own.name
        ]:
            repository.slots.remove(name)


def after_remove(place: Place) -> None:
    place.expect_kept()
    remove(place)
    place.expect_kept()
    assert place.slots() == 1
    _expect_shut(place, SECOND)
    assert [info.name for info in place.open()[0].store.list("keys/leaving")] == []


def new_root(place: Place) -> None:
    for repository in place.open():
        if repository.slots.root_keys == 1:
            repository.slots.new_root()


def after_new_root(place: Place) -> None:
    place.expect_kept()
    place.expect_kept(SECOND)
    new_root(place)
    place.expect_kept()
    place.expect_kept(SECOND)
    assert [repository.slots.root_keys for repository in place.open(SECOND)] == [2, 2]


def rotate(place: Place) -> None:
    rotate_key(place.open(), KeyReference(kind="file", path=place.key))


def after_rotate(place: Place) -> None:
    old = KeyFile.read(place.directory / "old")
    place.expect_kept()
    place.expect_kept(SECOND)
    rotate_key(place.open(), KeyReference(kind="file", path=place.key))
    place.expect_kept()
    place.expect_kept(SECOND)
    _expect_shut(place, old)
    assert place.slots() == 2
    assert not place.key.with_name("main.key.new").exists()


SCENARIOS: dict[str, tuple[Callable[[Place], None], Callable[[Place], None]]] = {
    "add": (add, after_add),
    "remove": (remove, after_remove),
    "new root key": (new_root, after_new_root),
    "rotate": (rotate, after_rotate),
}


def main(scenario: str, directory: Path) -> int:
    """How many points there were at which it was killed; every one was good."""
    # processes are killed here, not machines
    os.fsync = lambda _: None  # type: ignore[assignment]
    act, check = SCENARIOS[scenario]
    first = Place(directory / "prepared")
    first.directory.mkdir()
    first.prepare()
    for point in range(MOST):
        place = Place(directory / str(point))
        shutil.copytree(first.directory, place.directory)
        child = os.fork()
        if child == 0:
            _end_at(point)
            act(place)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in {0, KILLED}, code
        if code == 0:
            return point
        check(place)
        shutil.rmtree(place.directory)
    raise AssertionError(f"it did not end within {MOST} changes")


def _end_at(point: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            if count == point:
                os._exit(KILLED)
            count += 1

    sys.addaudithook(hook)


def _expect_shut(place: Place, secret: KeyFile) -> None:
    try:
        place.open(secret)
    except KeyFailure:
        return
    raise AssertionError("a key that was removed opens the repository")


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1], Path(sys.argv[2]))}\n")
