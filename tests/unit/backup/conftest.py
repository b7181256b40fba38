"""A small repository, and maps as anyone can read them: page by page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.contents import Parameters
from pgkeep.repository.posix import PosixStore

SMALL = Parameters(page_size=512, cell_size=8 * 512, pack_size=64 << 10)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests crash processes, not machines: without fsync they run several times faster."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A new repository with pages of 512 bytes and cells of 8 pages."""
    return Repository.create(PosixStore(tmp_path / "repository"), KeyFile(bytes(range(32))), SMALL)
