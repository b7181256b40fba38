"""What tests of backups beside the data ask."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pgkeep.backup.parent import ParentBackup
from pgkeep.postgres.layout import Fork, parse_relation_path
from pgkeep.progress import Silent
from support.jobs import restore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgkeep.postgres.server import Server
    from pgkeep.repository import Repository
    from pgkeep.repository.manifests import Manifest
    from pgkeep.repository.maps import FileEntry

__all__ = ["AtCopying", "expect_the_pages_on_disk", "files_of"]


class AtCopying(Silent):
    """Does something once, when a backup begins to copy, before the first file is opened; keeps its notes."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call
        self.notes: list[str] = []

    def phase(self, name: str, total: int | None = None) -> None:
        """The moment has come, or not."""
        if name.startswith("copying") and self._call is not None:
            call, self._call = self._call, None
            call()

    def note(self, message: str) -> None:
        """Kept."""
        self.notes.append(message)


def files_of(repository: Repository, manifest: Manifest) -> dict[str, FileEntry]:
    """The files of a backup by path."""
    parent = ParentBackup(manifest, repository)
    return {
        os.fsdecode(os.path.join(directory.path, entry.name)): entry
        for directory in parent.directories()
        for entry in parent.entries(directory.path)
    }


def expect_the_pages_on_disk(server: Server, repository: Repository, target: Path) -> None:
    """Every relation of a server that has been idle since its newest backup is in it, page by page."""
    restore(repository, target)
    compared = 0
    for directory in (
        b"global",
        *(b"base/" + name for name in os.listdir(os.fsencode(server.data_directory / "base"))),
    ):
        for name in os.listdir(os.path.join(os.fsencode(server.data_directory), directory)):
            path = os.path.join(directory, name)
            relation = parse_relation_path(path)
            if relation is not None and relation.fork is not Fork.INIT:
                here, there = ((place / os.fsdecode(path)).read_bytes() for place in (server.data_directory, target))
                assert len(here) == len(there), path
                differing = [
                    page for page in range(0, len(here), 8192) if here[page : page + 8192] != there[page : page + 8192]
                ]
                assert differing == [], path
                compared += len(here) // 8192
    assert compared > 1000
