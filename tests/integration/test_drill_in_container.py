"""Drills whose server runs in a container: Podman here; Docker takes the same words."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pgkeep.drill import programs
from pgkeep.errors import ConfigError, NotFoundError
from pgkeep.postgres.binaries import ServerBinaries
from pgkeep.postgres.container import ENGINE_VARIABLE, Engine
from support.containers import make_image, own_engine
from support.drill_fixtures import MakeDrilled, drilled, templates
from support.drills import AtPhase, check_of, new_timeline
from support.killed_drills import kill_drill

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["drilled", "templates"]

IMAGE = "postgres:{major}"


@pytest.fixture(scope="module")
def images(work_root: Path, binaries_of: Callable[[int], ServerBinaries]) -> Path:
    """Where an engine's images are: ``postgres:18``, and ``bare``, which has a shell alone."""
    place = work_root / "containers"
    with pytest.MonkeyPatch.context() as patch:
        engine = own_engine(place, patch)
        make_image(engine, "postgres:18", binaries_of(18))
        make_image(engine, "bare", None)
    return place


@pytest.fixture
def engine(images: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return own_engine(images, monkeypatch)


def no_server(major: int) -> ServerBinaries:
    """As on a machine without PostgreSQL."""
    raise NotFoundError(f"no PostgreSQL {major} server was found", hint="install it")


def containers(engine: Engine) -> list[str]:
    """Their names, running or not."""
    answer = subprocess.run([engine.program, "ps", "--all", "--quiet"], capture_output=True, text=True, check=True)
    return answer.stdout.split()


def test_a_backup_is_proven_by_a_server_in_a_container(drilled: MakeDrilled, engine: Engine) -> None:
    """Its WAL comes by files, over a switch of timelines; every check is done as it is outside."""
    cluster = drilled(18, image=IMAGE)
    # neither engine's words end at such signs
    directory = cluster.place / "drills: some, or 'all'"
    new_timeline(cluster)
    record = cluster.drill(
        full=True,
        settings={
            "directory": directory,
            "assert": [{"name": "is there", "query": "SELECT count(*) FROM users", "expect": 2505}],
        },
    )
    assert record.cause is None, record
    assert [check.outcome for check in record.checks] == ["passed"] * 8, record.checks
    assert record.server_from == "image postgres:18 (podman)"
    assert record.reached is not None
    assert (record.reached.timeline, record.reached.crossed) == (2, [1, 2])
    assert check_of(record, "tables").detail.endswith("1 tables in 2 databases, 2,505 rows")
    assert ([path.name for path in directory.iterdir()], containers(engine)) == ([".register"], [])


def test_a_comparison_is_done_with_a_copy_in_a_container(drilled: MakeDrilled, engine: Engine) -> None:
    cluster = drilled(18, image=IMAGE, checks=["tables"])
    with cluster.shipping():
        record = cluster.drill(compare=True)
    assert record.cause is None, record
    assert record.comparison is not None
    assert record.comparison.equal
    assert containers(engine) == []


def test_a_container_has_no_network_no_rights_and_nothing_of_the_machine_but_the_drill(
    drilled: MakeDrilled, engine: Engine
) -> None:
    cluster = drilled(18, image=IMAGE, checks=["tables"])
    asked = {
        "no way out": (
            "SELECT string_agg(m[1], ' ') FROM regexp_matches(pg_read_file('/proc/net/dev'), '(\\w+):', 'g') m",
            "lo",
        ),
        "no rights": (r"SELECT pg_read_file('/proc/self/status') ~ 'CapEff:\s+0+\n'", True),
        "no files of the machine": (f"SELECT pg_stat_file('{cluster.server.data_directory}', true) IS NULL", True),
        "an image that stays": (r"SELECT pg_read_file('/proc/mounts') ~ '(?n)^\S+ / \S+ ro,'", True),
    }
    record = cluster.drill(
        settings={
            "assert": [{"name": name, "query": query, "expect": expect} for name, (query, expect) in asked.items()]
        }
    )
    assert record.cause is None, record.checks


def test_wal_that_is_damaged_while_it_is_replayed_fails_the_drill(drilled: MakeDrilled, engine: Engine) -> None:
    """What the prefetcher says comes into the server's log, and the server is not promoted."""
    cluster = drilled(18, image=IMAGE, checks=["tables"])
    cluster.write_segments(30)

    def damage() -> None:
        for path in cluster.wal()[8:]:
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-100] + bytes(100))

    record = cluster.drill(AtPhase("recovering", damage), keep=True)
    (log,) = cluster.directory.glob("*/data.log")
    said = log.read_text()
    shutil.rmtree(cluster.directory)
    assert record.state == "failed"
    assert "could not restore file" in str(record.cause)
    assert "is damaged" in said, said
    assert containers(engine) == []


def test_the_official_image_is_taken_where_the_machine_has_no_server_of_that_version(
    drilled: MakeDrilled, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = drilled(18, checks=["tables"])
    monkeypatch.setattr(programs, "find_binaries", no_server)
    record = cluster.drill()
    assert record.cause is None, record
    assert "the drill runs in a container of image postgres:18" in " ".join(record.notes)


def test_an_image_that_was_not_asked_for_is_not_brought(
    drilled: MakeDrilled, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = drilled(17, checks=["tables"])
    monkeypatch.setattr(programs, "find_binaries", no_server)
    record = cluster.drill()
    assert record.cause == "no PostgreSQL 17 server was found"
    assert record.remedy == "install it; or let a container have it: podman pull postgres:17"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("bare", "image bare gives no PostgreSQL server: it has no program postgres on its path"),
        ("127.0.0.1:9/none:18", "there is no image 127.0.0.1:9/none:18: .*refused"),
    ],
)
def test_an_image_that_gives_no_server_is_named(drilled: MakeDrilled, engine: Engine, image: str, said: str) -> None:
    record = drilled(18, image=image, checks=["tables"]).drill()
    assert record.state == "failed"
    assert re.match(said, str(record.cause)), record.cause


def test_an_image_of_another_version_is_refused(drilled: MakeDrilled, engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"image postgres:18 has PostgreSQL 18.*the backup is of PostgreSQL 17"):
        drilled(17, image="postgres:18", checks=["tables"]).drill()


def test_an_engine_that_does_not_answer_is_named(
    drilled: MakeDrilled, engine: Engine, monkeypatch: pytest.MonkeyPatch, work_dir: Path
) -> None:
    silent = work_dir / "docker"
    silent.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    silent.chmod(0o755)
    cluster = drilled(18, image=IMAGE, checks=["tables"])
    monkeypatch.setenv(ENGINE_VARIABLE, str(silent))
    with pytest.raises(ConfigError, match=r"the container engine .*docker of PGKEEP_CONTAINER_ENGINE does not answer"):
        cluster.drill()
    monkeypatch.delenv(ENGINE_VARIABLE)
    (work_dir / "test").symlink_to(str(shutil.which("test")))
    monkeypatch.setenv("PATH", str(work_dir))
    record = cluster.drill()
    assert record.cause is not None
    assert "no container engine answers" in record.cause


def test_a_drill_that_is_killed_leaves_no_container_after_the_next_one(drilled: MakeDrilled, engine: Engine) -> None:
    cluster = drilled(18, image=IMAGE, checks=["tables"])
    kill_drill(cluster, "checking tables")
    left = containers(engine)
    record = cluster.drill()
    assert len(left) == 1
    assert record.cause is None, record
    assert "was killed" in " ".join(record.notes)
    assert (cluster.left_behind(), containers(engine)) == ([], [])
