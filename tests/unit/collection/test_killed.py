"""A collector that is killed at any of its calls of the store leaves every backup whole, and the next ones end its work."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pytest

from pgkeep.collection import CollectRequest, run_collect
from pgkeep.repository import Repository, leases, open_store
from pgkeep.repository.doomed import read_tombstones
from pgkeep.repository.parameters import Parameters
from support.interleaving import Gate, GatedStore, Killed
from support.jobs import KEY, new_repository
from support.tiny_backups import contents_of, make_backup, page, remove_backup

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.repository.store import Store

REQUEST = CollectRequest(grace=timedelta(0), live_share=0.9)
FILES = {f"f{number}".encode(): page(f"{number}") * 4 for number in range(8)}


def prepare(place: Path, runs: int) -> None:
    """A backup that needs a part of a pack, another that has a pack for itself, and garbage; and so many runs of the collector."""
    repository = new_repository(place, Parameters(pack_size=40_000))
    first = make_backup(repository, 1, FILES)
    entries = [file.entry for file in repository.tree(first).files()]
    make_backup(repository, 1, {b"new": page("new")}, entries[:2])
    remove_backup(repository, first)
    for _ in range(runs):
        run_collect(REQUEST, Repository.open(open_store(str(place)), KEY))


def expect_kept(place: Path) -> None:
    repository = Repository.open(open_store(str(place)), KEY)
    (name,) = repository.catalog.names()
    kept = contents_of(repository, repository.catalog.read(name))
    assert {path: kept[path] for path in (b"f0", b"f1")} == {path: FILES[path] for path in (b"f0", b"f1")}
    assert kept.keys() == {b"f0", b"f1", b"new"}


@pytest.mark.parametrize("runs", [0, 1], ids=["marking", "deleting"])
def test_a_collector_that_is_killed_anywhere_loses_nothing(
    runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead: set[str] = set()
    is_alive = cast("Callable[[dict[str, object]], bool]", leases._is_alive)
    monkeypatch.setattr(leases, "_is_alive", lambda fields: fields["writer"] not in dead and is_alive(fields))
    prepare(tmp_path / "prepared", runs)
    calls, died = 0, True
    while died:
        place = tmp_path / f"{calls}"
        shutil.copytree(tmp_path / "prepared", place)
        store = GatedStore(place, Gate(random.Random(1)), dead, dies_after=calls)
        try:
            run_collect(REQUEST, Repository.open(cast("Store", store), KEY))
            died = False
        except Killed:
            pass

        expect_kept(place)
        for _ in range(3):
            run_collect(REQUEST, Repository.open(open_store(str(place)), KEY))
        expect_kept(place)
        done = Repository.open(open_store(str(place)), KEY)
        assert read_tombstones(done.store) == [], calls
        size = sum(info.size for info in done.store.list("packs/data/"))
        assert size < 3 * sum(len(content) for content in FILES.values()) / 8, "garbage is left"
        shutil.rmtree(place)
        # each second one: the other half are reads, mostly
        calls += 2
    assert calls > 20
