"""Repositories for the tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.cold_repository import ColdRepository


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing crashes here: without fsync the tests run several times faster."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def cold(tmp_path: Path) -> ColdRepository:
    """An empty one."""
    return ColdRepository(tmp_path / "repository")
