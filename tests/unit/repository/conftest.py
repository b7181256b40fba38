"""Small repositories for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.contents import Parameters
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.repository.posix import PosixStore

SMALL = Parameters(cell_size=16 << 10, pack_size=64 << 10)
SECRET = KeyFile(bytes(range(32)))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests crash processes, not machines: without fsync they run several times faster."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    """An empty store."""
    return PosixStore(tmp_path / "repository")


@pytest.fixture(params=[Suite.AES_256_GCM, Suite.NONE], ids=["encrypted", "plain"])
def suite(request: pytest.FixtureRequest) -> Suite:
    """Both ways of sealing."""
    chosen: Suite = request.param
    return chosen


@pytest.fixture
def keys(suite: Suite) -> KeyRing:
    """Keys of either suite."""
    family = os.urandom(16)
    return KeyRing.unencrypted(family) if suite is Suite.NONE else KeyRing(suite, os.urandom(32), family)


@pytest.fixture
def secret(suite: Suite) -> KeyFile | None:
    """What opens `repository`."""
    return None if suite is Suite.NONE else SECRET


@pytest.fixture
def repository(store: PosixStore, secret: KeyFile | None) -> Repository:
    """A new repository of either suite, with small cells and packs."""
    return Repository.create(store, secret, SMALL)


@pytest.fixture
def damage(store: PosixStore) -> Callable[[str, int], None]:
    """Flip one bit of a stored object; negative bits count from its end."""

    def flip(name: str, bit: int) -> None:
        path = store.root / name
        data = bytearray(path.read_bytes())
        bit %= len(data) * 8
        data[bit // 8] ^= 1 << bit % 8
        path.chmod(0o600)
        path.write_bytes(data)

    return flip
