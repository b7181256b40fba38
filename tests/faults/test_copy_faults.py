"""Copies that are killed, or whose network fails: what is listed is whole, and the next run goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.copies import CopyRequest, run_copy
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.verify import VerifyRequest, run_verify
from support.fault_proxy import RandomFaults
from support.jobs import SMALL, backup, restore
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from support.fault_proxy import FaultProxy
    from support.seaweed import S3Bucket

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = int(os.environ.get("PGKEEP_COPY_KILLS", "3"))


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server of some 40 MB."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.start({**TEST_SETTINGS, "summarize_wal": True})
        sql(
            server.dsn(), "CREATE TABLE filler AS SELECT id, sha256(id::text::bytea) FROM generate_series(1, 150000) id"
        )
        yield server


@pytest.fixture(scope="module")
def source(service: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Three backups, and the keys of both sides beside it."""
    place = tmp_path_factory.mktemp("copies")
    key = KeyFile.generate(place / "source.key")
    KeyFile.generate(place / "other.key")
    repository = Repository.create(open_store(str(place / "source")), key, SMALL)
    for number in range(3):
        backup(service.dsn(), repository)
        sql(service.dsn(), "UPDATE filler SET id = -id WHERE mod(id, 50) = %s", [number])
    return repository


@pytest.mark.parametrize("keys", ["shared keys", "other keys"])
def test_whenever_a_copy_is_killed_every_listed_backup_is_whole(
    service: ThrowawayServer, source: Repository, work_dir: Path, keys: str
) -> None:
    """``kill -9`` at random moments; in the end nothing is there twice, and the last backup restores."""
    keys_at = Path(source.store.url.removeprefix("file://")).parent
    key_path = keys_at / ("source.key" if keys == "shared keys" else "other.key")
    shared = source.keys if keys == "shared keys" else None
    store = open_store(str(work_dir / "copy"))
    Repository.create(store, KeyFile.read(key_path), SMALL, keys_of=shared)
    arguments = ["--from", str(keys_at / "source"), "--from-key-file", str(keys_at / "source.key")]
    arguments += ["--to", str(work_dir / "copy"), "--to-key-file", str(key_path), "--all", "--wal"]
    chance = random.Random(_SEED)
    began = time.monotonic()
    assert _copy([*arguments, "--dry-run"], None) == 0
    starting = time.monotonic() - began

    codes = []
    for _ in range(_KILLS):
        moment = starting * chance.uniform(0.6, 1) + chance.expovariate(2)
        codes.append(_copy([*arguments, "--rate", "8MB"], moment))
        destination = Repository.open(store, KeyFile.read(key_path))
        for name in destination.catalog.names():
            _expect_whole(destination, name.id)
    assert -9 in codes
    assert _copy(arguments, None) == 0

    destination = Repository.open(store, KeyFile.read(key_path))
    assert destination.catalog.names() == source.catalog.names()
    assert run_verify(VerifyRequest(max_age_seconds=0), store, destination).damage == []
    contents = [content for pack in destination.index.known_packs() for content in _contents_of(destination, pack)]
    assert len(contents) == len(set(contents))
    assert not list(store.list("leases/"))
    restore(destination, work_dir / "restored")
    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")


def test_a_copy_over_a_network_that_fails_is_whole(
    source: Repository, s3_bucket: S3Bucket, fault_proxy: FaultProxy, service: ThrowawayServer, work_dir: Path
) -> None:
    """Resets, half answers, errors and flipped bits, on every fifth request; and back from there."""
    fault_proxy.plan = RandomFaults(_SEED, rate=0.2)
    store = open_store(s3_bucket.url_at(fault_proxy.endpoint))
    key = KeyFile(bytes(range(32)))
    bucket = Repository.create(store, key, Parameters(cell_size=256 << 10, pack_size=8 << 20))
    request = CopyRequest(everything=True, wal=True)

    assert run_copy(request, source, bucket).ok
    back = Repository.create(open_store(str(work_dir / "back")), key, SMALL, keys_of=bucket.keys)
    assert run_copy(request, bucket, back).ok

    assert fault_proxy.count() > 10
    fault_proxy.plan = None
    assert back.catalog.names() == bucket.catalog.names() == source.catalog.names()
    restore(back, work_dir / "restored")
    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")


def _copy(arguments: list[str], seconds: float | None) -> int:
    """The program's exit code; killed after so many seconds, where it is not done by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgkeep", "copy", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -9
    assert process.returncode == 0, errors
    return process.returncode


def _expect_whole(repository: Repository, backup_id: str) -> None:
    report = run_verify(VerifyRequest(backup=backup_id, scrub=False, max_age_seconds=0), repository.store, repository)
    assert report.damage == []


def _contents_of(repository: Repository, pack: str) -> list[bytes]:
    return [content for segment in repository.index.segments for content in segment.contents_of({pack})]
