"""Two writers, an expirer and a collector at once, interleaved by chance and killed: every listed backup is whole, at any time.

``PGKEEP_INTERLEAVINGS=SECONDS`` runs for so long; without it a few rounds. A seed that failed is printed with the failure.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pytest

from pgkeep.collection import CollectRequest, run_collect
from pgkeep.errors import BusyError, DamageError, PgkeepError, UsageError
from pgkeep.policy import ExpireRequest, run_expire
from pgkeep.repository import Repository, leases, open_store
from pgkeep.repository.parameters import Parameters
from pgkeep.repository.store import ObjectMissing
from support.interleaving import Gate, GatedStore, Killed
from support.jobs import KEY, new_repository
from support.tiny_backups import PAGE, contents_of, make_backup

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.repository.manifests import BackupName, Manifest
    from pgkeep.repository.store import Store

SECONDS = float(os.environ.get("PGKEEP_INTERLEAVINGS", "0"))
SEED = int(os.environ.get("PGKEEP_INTERLEAVING_SEED", "20261123"))
ROUNDS = 4
CALLS = 4000
"""Calls of the store in a round."""


class Round:
    """One repository, and all who work on it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.chance = random.Random(seed)
        self.gate = Gate(random.Random(seed))
        self.dead: set[str] = set()
        self.failures: list[str] = []
        self.done: dict[str, int] = {}
        new_repository(directory, Parameters(pack_size=20_000))

    def run(self) -> None:
        actors = [self.writer(1), self.writer(2), self.collector, self.expirer]
        threads = [threading.Thread(target=self.work, args=(actor, self.chance.random())) for actor in actors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work(self, job: Callable[[Repository, random.Random], str], seed: float) -> None:
        chance = random.Random(seed)
        while self.gate.passed < CALLS and not self.failures:
            dies_after = chance.randrange(150) if chance.random() < 0.15 else None
            store = GatedStore(self.directory, self.gate, self.dead, dies_after)
            try:
                done = job(Repository.open(cast("Store", store), KEY), chance)
            except Killed:
                done = "killed"
            except BusyError:
                done = "busy"
                time.sleep(0.01)
            except PgkeepError as error:
                if not store.is_dead:
                    self.failures.append("".join(traceback.format_exception(error)))
                done = "killed"
            self.done[done] = self.done.get(done, 0) + 1

    def writer(self, system: int) -> Callable[[Repository, random.Random], str]:
        def back_up(repository: Repository, chance: random.Random) -> str:
            with repository.lease(f"backup of cluster {system}") as lease:
                if lease.took_over:
                    repository.adopt_orphans()
                watch = repository.doom_watch()
                names = [name for name in repository.catalog.names() if name.system_identifier == system]
                kept = []
                parent = self.parent(repository, names)
                if parent is not None and chance.random() < 0.8:
                    kept = [file.entry for file in repository.tree(parent).files() if chance.random() < 0.7]
                # few contents, so that what one has expired another stores again
                files = {
                    f"f{chance.randrange(12)}".encode(): f"{chance.randrange(14)}".encode().ljust(PAGE, b".")
                    for _ in range(chance.randrange(6))
                }
                make_backup(repository, system, files, kept, watch)
                return "backup"

        return back_up

    @staticmethod
    def parent(repository: Repository, names: list[BackupName]) -> Manifest | None:
        """As the real job chooses it: the newest that has not expired since the listing."""
        for name in reversed(names):
            with contextlib.suppress(ObjectMissing):
                return repository.catalog.read(name)
        return None

    def collector(self, repository: Repository, chance: random.Random) -> str:
        report = run_collect(CollectRequest(grace=timedelta(0), live_share=chance.random()), repository)
        self.done["deleted"] = self.done.get("deleted", 0) + report.deleted
        self.done["repacked"] = self.done.get("repacked", 0) + report.repacked
        return "collection"

    def expirer(self, repository: Repository, chance: random.Random) -> str:
        names = repository.catalog.names()
        if len(names) > 2:
            # the last backup of a cluster stays
            with contextlib.suppress(UsageError):
                run_expire(ExpireRequest(rules=None, remove=[chance.choice(names[:-1]).id]), repository)
                return "expiry"
        return "nothing to expire"

    def expect_whole(self) -> int:
        repository = Repository.open(open_store(str(self.directory)), KEY)
        names = repository.catalog.names()
        for name in names:
            contents_of(repository, repository.catalog.read(name))
        return len(names)


@pytest.fixture
def killed_are_dead(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], None]:
    """Jobs are threads here: whose lease is dead, the round knows."""
    is_alive = leases._is_alive

    def of(dead: set[str]) -> None:
        monkeypatch.setattr(leases, "_is_alive", lambda fields: fields["writer"] not in dead and is_alive(fields))

    return of


def run_round(directory: Path, seed: int, killed_are_dead: Callable[[set[str]], None]) -> Round:
    found = Round(directory, seed)
    killed_are_dead(found.dead)
    found.run()
    if found.failures:
        pytest.fail(f"seed {seed}: {found.failures[0]}", pytrace=False)
    try:
        found.expect_whole()
    except DamageError as error:
        pytest.fail(f"seed {seed}: {error}")
    return found


def test_whatever_comes_between_every_listed_backup_is_whole(
    work_dir: Path, killed_are_dead: Callable[[set[str]], None]
) -> None:
    until = time.monotonic() + SECONDS
    done: dict[str, int] = {}
    number = 0
    while number < ROUNDS or time.monotonic() < until:
        found = run_round(work_dir / f"round-{number}", SEED + number, killed_are_dead)
        for what, times in found.done.items():
            done[what] = done.get(what, 0) + times
        number += 1
    sys.stdout.write(f"{number} rounds: {done}\n")
    assert min(done.get(what, 0) for what in ("backup", "collection", "expiry", "killed", "deleted", "repacked")) > 0
