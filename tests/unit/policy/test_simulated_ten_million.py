"""Ten million WAL objects and ten thousand backups in a simulated listing: what one may wait for takes seconds and little memory.

A twentieth of that here; all of it where ``PGKEEP_WHOLE_SIMULATION`` is set, which also holds the clock against it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.cli.main import execute
from pgkeep.policy import ExpireRequest, Rules, plan_expiry
from pgkeep.postgres.lsn import LSN
from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.manifests import BackupName, WalRange
from pgkeep.units import utc_now
from pgkeep.wal.inventory import WalInventory
from support.hand_wal import HandWal
from support.jobs import KEY
from support.manifests import plain_manifest
from support.simulated_listing import SEGMENT, SimulatedListing

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHOLE = bool(os.environ.get("PGKEEP_WHOLE_SIMULATION"))
_SCALE = 1 if _WHOLE else 20
_SYSTEM = 7123
_DAY = timedelta(days=1)
_AGE = 2500 * _DAY / _SCALE
"""Four backups a day."""


@dataclass
class Archive:
    """The simulated repository, and a configuration for it."""

    store: SimulatedListing
    repository: Repository
    config: Path

    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
        """The document of a command."""
        capsys.readouterr()
        execute(["--config", str(self.config), *words, "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Years of backups and WAL, with nothing expired yet."""
    # the last group of the index of times has a single segment: the one that is really there
    segments = 10_000_000 // _SCALE // 16 * 16
    now = utc_now().replace(microsecond=0)
    store = SimulatedListing(_SYSTEM, 0, now - _AGE, now)
    repository = Repository.create(store, KEY)
    store.segments = segments - 1
    for number in range(10_000 // _SCALE):
        started = store.put_at = now - _DAY / 8 - number * _DAY / 4
        start = store.lsn_at(started)
        manifest = plain_manifest(
            id=f"{started:%Y%m%dT%H%M%S}.000Z-00000000",
            cluster="auth",
            system_identifier=_SYSTEM,
            started=started,
            finished=started,
            start_lsn=start,
            stop_lsn=start + 1,
            wal=WalRange(1, start, start + 1, SEGMENT, [], 0),
        )
        repository.catalog.commit(manifest)
    store.put_at = now
    newest = HandWal(segment_size=SEGMENT, start=segments * SEGMENT)
    newest.commit(now, 4711)
    archive = repository.wal(_SYSTEM)
    archive.put(f"{1:08X}{segments // 256:08X}{segments % 256:08X}", newest.segments()[0][1])
    directory = tmp_path_factory.mktemp("setup")
    (directory / "pgkeep.key").write_text(KeyFile(KEY.secret).text() + "\n")
    config = directory / "pgkeep.toml"
    config.write_text(
        f'[retention]\nwindow = "14d"\ndaily = 30\nweekly = 8\nmonthly = 12\nyearly = 7\n'
        f'[repository.main]\nurl = "{store.url}"\nkey = "file:{directory}/pgkeep.key"\n'
        f'[cluster.auth]\ndsn = "host={directory}"\nwal = {{ spool = "{directory}/spool" }}\n'
    )
    return Archive(store, repository, config)


@pytest.fixture(autouse=True)
def simulated(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured address means the simulated store."""
    monkeypatch.setattr("pgkeep.opening.open_store", lambda _url: archive.store)


def _most_resident() -> int:
    """The most bytes of memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def bounded(archive: Archive, *, requests: int, memory: int) -> Iterator[None]:
    """Ask the store no more often than that, besides once for each backup, and hold no more bytes at any time."""
    before, size = archive.store.requests, _most_resident()
    begun = time.monotonic()
    if not _WHOLE:
        # what slows everything down by half is no measure of time
        tracemalloc.start()
    try:
        yield
        seconds = time.monotonic() - begun
        peak = tracemalloc.get_traced_memory()[1] if not _WHOLE else _most_resident() - size
    finally:
        tracemalloc.stop()
    asked = archive.store.requests - before - 10_000 // _SCALE
    sys.stdout.write(f"{seconds:.1f} s, {asked} requests besides manifests, {peak >> 10} KiB\n")
    assert asked <= requests
    assert peak < memory
    assert seconds < (10 if _WHOLE else 60)


def test_a_plan_asks_for_folders_and_not_for_all_that_is_in_them(archive: Archive) -> None:
    rules = Rules(window=14 * _DAY, daily=30, weekly=8, monthly=12, yearly=7)
    with bounded(archive, requests=250, memory=40 << 20):
        (plan,) = plan_expiry(ExpireRequest(rules=rules), archive.repository)
        preview = plan.preview(archive.repository)

    assert len(plan.ids) == 10_000 // _SCALE
    assert 56 <= len(plan.ids) - len(plan.going) <= 56 + 30 + 8 + 12 + 7 + 3
    assert (preview.objects, preview.complete) == (10_000, False)


def test_expire_draws_it_list_lists_it_and_status_looks_at_its_end(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    with bounded(archive, requests=300, memory=80 << 20):
        expiry = archive.run(capsys, "expire", "--dry-run")
    with bounded(archive, requests=30, memory=80 << 20):
        listed = archive.run(capsys, "list")
    with bounded(archive, requests=80, memory=80 << 20):
        status = archive.run(capsys, "status")

    assert len(expiry["repositories"][0]["clusters"][0]["backups"]) == len(listed["backups"]) == 10_000 // _SCALE
    (main,) = status["repositories"]
    assert main["error"] is None
    assert main["backups"] == 10_000 // _SCALE
    assert LSN.parse(main["newest_wal"]["lsn"]) == (archive.store.segments + 2) * SEGMENT
    assert main["newest_wal"]["current_at"] == archive.store.now.isoformat().replace("+00:00", "Z")


def test_the_end_alone_is_that_of_the_whole(archive: Archive) -> None:
    """Of a listing that is short enough to look at all of it."""
    part = SimulatedListing(_SYSTEM, 0, archive.store.begin, archive.store.now)
    wal = Repository.create(part, KEY).wal(_SYSTEM)
    part.segments = 5000
    end, whole = WalInventory.read_end(wal, SEGMENT), WalInventory.read(wal, SEGMENT)

    assert end.timelines[1].spans[-1].end == whole.timelines[1].spans[-1].end
    assert len(end.timelines[1].whole) < 2 * 256


def test_pins_of_ten_thousand_backups_are_read_once(archive: Archive) -> None:
    name = archive.repository.catalog.names()[0]
    archive.repository.pins.add(BackupName(name.id, _SYSTEM), "case 4711", None)
    with bounded(archive, requests=250, memory=40 << 20):
        (plan,) = plan_expiry(ExpireRequest(rules=Rules(window=14 * _DAY)), archive.repository)
    archive.repository.pins.remove(BackupName(name.id, _SYSTEM))

    assert name.id not in plan.going
