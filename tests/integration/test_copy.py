"""Copies of backups in other repositories: each alone brings the cluster back, and nothing is moved that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeep.copies import CopyReport, CopyRequest, plan_copy, run_copy
from pgkeep.demo.workload import load
from pgkeep.errors import BusyError, RepositoryError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import KEY, SMALL, backup, restore
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository.manifests import Manifest
    from support.seaweed import S3Bucket

OTHER_KEY = KeyFile(bytes(range(100, 132)))


@pytest.fixture(scope="module")
def history(
    binaries_of: Callable[[int], ServerBinaries], work_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ThrowawayServer, Repository, list[Manifest]]]:
    """A server, and a repository with three backups of it: a full one, and two of what changed since."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.start({**TEST_SETTINGS, "summarize_wal": True})
        load(server.dsn(), users=400)
        repository = Repository.create(open_store(str(tmp_path_factory.mktemp("source") / "repository")), KEY, SMALL)
        manifests = [backup(server.dsn(), repository)]
        for number in range(2):
            sql(server.dsn(), f"UPDATE users SET email = email || '{number}' WHERE ctid <= '(1,99)'")
            manifests.append(backup(server.dsn(), repository))
        assert [each.kind for each in manifests] == ["full", "incremental", "incremental"]
        yield server, repository, manifests


def sharing_keys(source: Repository, place: Path) -> Repository:
    """An empty repository with the keys of another."""
    return Repository.create(open_store(str(place)), KEY, SMALL, keys_of=source.keys)


def with_other_keys(place: Path | str) -> Repository:
    """An empty repository with a key, and sizes, of its own."""
    return Repository.create(open_store(str(place)), OTHER_KEY, Parameters(cell_size=128 << 10, pack_size=1 << 20))


def copy_all(source: Repository, destination: Repository, **options: object) -> CopyReport:
    """Copy every backup, without damage."""
    report = run_copy(CopyRequest(everything=True, **options), source, destination)  # type: ignore[arg-type]
    assert report.ok
    return report


def expect_whole(server: ThrowawayServer, repository: Repository, manifests: list[Manifest], place: Path) -> None:
    """The repository alone lists the backups, finds them whole, and restores what pg_verifybackup accepts."""
    repository = Repository.open(repository.store, KEY if repository.keys.root_key == b"" else _key_of(repository))
    assert [name.id for name in repository.catalog.names()] == [each.id for each in manifests]
    assert run_verify(VerifyRequest(max_age_seconds=0), repository.store, repository).damage == []
    for manifest in manifests:
        restore(repository, place / manifest.id, backup=manifest.id)
        run_program(server, "pg_verifybackup", "--exit-on-error", place / manifest.id)


def _key_of(repository: Repository) -> KeyFile:
    for key in (KEY, OTHER_KEY):
        try:
            Repository.open(repository.store, key)
        except Exception:
            continue
        return key
    raise AssertionError


@pytest.mark.parametrize("kind", ["shared", "other"])
def test_a_copy_alone_restores_what_pg_verifybackup_accepts(
    history: tuple[ThrowawayServer, Repository, list[Manifest]], work_dir: Path, kind: str
) -> None:
    server, source, manifests = history
    make = {
        "shared": lambda: sharing_keys(source, work_dir / "copy"),
        "other": lambda: with_other_keys(work_dir / "copy"),
    }
    destination = make[kind]()

    report = copy_all(source, destination)

    assert report.same_keys == (kind == "shared")
    expect_whole(server, destination, manifests, work_dir)
