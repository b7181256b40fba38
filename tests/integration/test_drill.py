"""Drills on real servers: what comes back is looked at, and what is wrong with it is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.postgres.server import ThrowawayServer
from support.drills import Drilled, check_of, make_drill_template, start_drilled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.binaries import ServerBinaries

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


def test_a_backup_comes_back_and_is_proven(drilled: MakeDrilled, postgres_major: int) -> None:
    cluster = drilled(postgres_major)
    record = cluster.drill()
    assert record.cause is None
    assert [check.outcome for check in record.checks] == ["passed"] * 7, record.checks
    assert cluster.left_behind() == []
    assert check_of(record, "tables").detail
