"""Fixtures of tests that drill: imported by name where they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgkeep.postgres.binaries import ServerBinaries
from pgkeep.postgres.server import ThrowawayServer
from support.drills import Drilled, make_drill_template, start_drilled

__all__ = ["MakeDrilled", "drilled", "templates"]

MakeDrilled = Callable[..., Drilled]


@pytest.fixture(scope="session")
def templates(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Callable[[int], Path]:
    made: dict[int, Path] = {}

    def get(major: int) -> Path:
        if major not in made:
            made[major] = make_drill_template(binaries_of(major), work_root)
        return made[major]

    return get


@pytest.fixture
def drilled(
    templates: Callable[[int], Path], binaries_of: Callable[[int], ServerBinaries], work_root: Path, work_dir: Path
) -> Iterator[MakeDrilled]:
    """A cluster to be drilled, of the test's own."""
    servers: list[ThrowawayServer] = []

    def make(major: int = 17, **drill: object) -> Drilled:
        template = templates(major)
        server = ThrowawayServer(binaries_of(major), parent=work_root)
        servers.append(server)
        return start_drilled(server, template, work_dir, **drill)

    yield make
    for server in servers:
        server.remove()
