"""How objects come to be on file systems with and without nameless files, and what a killed writer leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgkeep.repository import posix
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.store import ObjectExists

_KILLED_BEFORE_THE_LINK = """
import os, signal, sys
from pgkeep.repository import posix
if sys.argv[2] == "named":
    posix._open_unnamed = lambda directory: None
os.link = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
store = posix.PosixStore(sys.argv[1])
print(store.writer, flush=True)
store.put("a/b", [b"x" * 300_000])
"""


def _kill_a_writer_before_it_links(root: Path, kind: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", _KILLED_BEFORE_THE_LINK, str(root), kind], capture_output=True, text=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    return process.stdout.strip()


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    _kill_a_writer_before_it_links(tmp_path, "unnamed")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_where_all_files_have_names_a_killed_writer_leaves_one_that_is_found_by_its_writer(tmp_path: Path) -> None:
    writer = _kill_a_writer_before_it_links(tmp_path, "named")
    store = PosixStore(tmp_path)
    assert store.leftovers() == 300_000
    assert list(store.list("")) == []
    store.discard_leftovers(writer)
    assert store.leftovers() == 0


def test_where_all_files_have_names_an_object_is_created_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix, "_open_unnamed", lambda _directory: None)
    store = PosixStore(tmp_path)
    data = os.urandom(300_000)
    store.put("a/b", [data])
    with pytest.raises(ObjectExists):
        store.put("a/b", [b"other"])
    assert store.get("a/b") == data
    assert store.leftovers() == 0
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []
