"""What a collector remembers of listings and maps: it saves reading them, and is never relied on where it is damaged."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from pgkeep.collection import CollectReport, CollectRequest, run_collect
from pgkeep.collection.references import ReferenceMemory, References
from pgkeep.errors import DamageError
from pgkeep.repository import Repository, open_store
from pgkeep.repository.parameters import Parameters
from support.jobs import KEY, new_repository
from support.tiny_backups import expect_whole, make_backup, page, remove_backup, store_tree

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.repository.maps import FileEntry


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path / "repository", Parameters(pack_size=40_000))


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "collect" / "memory.sqlite"


def look(repository: Repository, memory: Path | None) -> CollectReport:
    """A run that deletes nothing."""
    request = CollectRequest(grace=timedelta(days=1), memory=memory)
    return run_collect(request, Repository.open(open_store(repository.store.url), KEY))


def files(count: int) -> dict[bytes, bytes]:
    return {f"file {number}".encode(): page(str(number)) for number in range(count)}


def entries_of(repository: Repository, manifest_files: dict[bytes, bytes]) -> list[FileEntry]:
    with repository.writer() as writer:
        return store_tree(writer, manifest_files)[1]


def test_a_run_reads_what_came_since_the_last_one(repository: Repository, memory: Path) -> None:
    common = files(20)
    kept = entries_of(repository, common)
    make_backup(repository, 1, {}, kept)
    first, again = look(repository, memory), look(repository, memory)
    make_backup(repository, 1, {b"new": page("new")}, kept)
    later = look(repository, memory)

    assert first.read == 21, "a listing and the map of each file"
    assert again.read == 0
    assert later.read == 2, "the new listing, and the map of the new file"
    assert replace(later, read=0) == replace(look(repository, None), read=0)


def test_what_no_backup_leads_to_any_more_is_forgotten(repository: Repository, memory: Path) -> None:
    gone = make_backup(repository, 1, files(20))
    make_backup(repository, 1, files(3))
    look(repository, memory)
    large = memory.stat().st_size
    remove_backup(repository, gone)
    look(repository, memory)

    with ReferenceMemory(memory) as remembered:
        listing = gone.directories[0].listings[0]
        assert remembered.get(listing) is None
    assert large > 0
    assert look(repository, memory).read == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_memory_that_is_damaged_changes_no_answer(repository: Repository, memory: Path, seed: int) -> None:
    for _ in range(3):
        make_backup(repository, 1, files(12))
    look(repository, memory)
    truth = look(repository, None)
    chance = random.Random(seed)
    data = bytearray(memory.read_bytes())
    for _ in range(1 << seed):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    memory.write_bytes(data[: len(data) - seed * 100])

    assert replace(look(repository, memory), read=0) == replace(truth, read=0)
    assert look(repository, memory).live == truth.live > 0


@pytest.mark.parametrize("what", ["no database", "a directory", "below a file"])
def test_where_nothing_can_be_remembered_it_works_all_the_same(repository: Repository, memory: Path, what: str) -> None:
    make_backup(repository, 1, files(3))
    if what == "below a file":
        memory.parent.parent.mkdir()
        memory.parent.write_text("in the way")
    elif what == "a directory":
        memory.mkdir(parents=True)
    else:
        memory.parent.mkdir(parents=True)
        memory.write_bytes(b"no database at all" * 1000)

    assert look(repository, memory).read == 4
    assert look(repository, memory).live > 0
    assert expect_whole(repository) == 1


def test_a_map_that_cannot_be_read_ends_the_run(repository: Repository) -> None:
    manifest = make_backup(repository, 1, files(3))
    (pack,) = repository.store.list("packs/meta/")
    repository.store.delete(pack.name)
    references = References(Repository.open(open_store(repository.store.url), KEY))

    with pytest.raises(DamageError, match="is gone"):
        list(references.of_listings(manifest.directories[0].listings))
