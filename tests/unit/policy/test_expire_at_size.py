"""Ten years of a busy cluster in a simulated store: what is planned and listed takes seconds, and memory that does not grow with the WAL.

``PGKEEP_SIMULATED_WAL=10000000`` makes it ten million segments and 10,000 backups, and prints what they took (``pytest -s``).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from pgkeep import opening
from pgkeep.cli import main
from pgkeep.policy import ExpireRequest, Rules, plan_expiry
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import segment_name, segments_between
from pgkeep.postgres.wal_events import to_microseconds
from pgkeep.repository import Repository
from pgkeep.repository.manifests import WalRange
from pgkeep.units import utc_now
from pgkeep.wal.segment_times import SegmentTimes
from pgkeep.wal.times_groups import GROUP_SEGMENTS, TimesGroups
from support.hand_wal import HandWal
from support.jobs import KEY
from support.manifests import plain_manifest
from support.simulated_store import SimulatedStore, SimulatedWal

_SEGMENTS = int(os.environ.get("PGKEEP_SIMULATED_WAL", "200_000"))
_WHOLE = "PGKEEP_SIMULATED_WAL" in os.environ
_BACKUPS = max(500, _SEGMENTS // 1000)
_SIZE = 16 << 20
_SYSTEM = 7123
_MIB = 1 << 20
_TEN_YEARS = timedelta(days=3650)
_WINDOW = timedelta(days=30)
_LAST = segment_name(1, _SEGMENTS * _SIZE - _SIZE, _SIZE)
_PREVIEW = 50_000
_FIRST = 10_000
_EACH_BACKUP = 16 << 10
_EACH_FOLDER = 256
"""Bytes that may be in memory for each backup, and for each folder of WAL."""


@pytest.fixture(scope="module")
def store() -> SimulatedStore:
    """Backups and WAL, evenly over ten years. Of the WAL only the last segment is real, and of the index its last groups."""
    now = utc_now().replace(microsecond=0)
    birth = now - _TEN_YEARS
    store = SimulatedStore(now=birth)
    repository = Repository.create(store, KEY)
    indexed = _SEGMENTS - 8 * GROUP_SEGMENTS
    store.wal = SimulatedWal(_SYSTEM, _SIZE, 1, _SEGMENTS - 1, indexed, birth, now)
    for number in range(_BACKUPS):
        start = (1 + _SEGMENTS * number // _BACKUPS) * _SIZE + 0x28
        started = birth + _TEN_YEARS * (number / _BACKUPS)
        store.now = finished = started + timedelta(minutes=10)
        manifest = plain_manifest(
            id=f"{started:%Y%m%dT%H%M%S}.000Z-{number:08x}",
            cluster="auth",
            system_identifier=_SYSTEM,
            started=started,
            finished=finished,
            start_lsn=start,
            stop_lsn=start + 0x1000,
            wal=WalRange(1, start, start + 0x1000, _SIZE, segments_between(1, start, start + 0x1000, _SIZE), 0),
        )
        repository.catalog.commit(manifest)
    store.now = now
    _write_last_wal(repository, indexed, now)
    return store


def _write_last_wal(repository: Repository, indexed: int, now: datetime) -> None:
    start = (_SEGMENTS - 1) * _SIZE
    wal = HandWal(_SIZE, start)
    event = wal.commit(now, 5)
    repository.wal(_SYSTEM).put(_LAST, wal.segments()[0][1])
    time_ = to_microseconds(now)
    groups = TimesGroups(repository, _SYSTEM, _SIZE)
    for first in range(indexed, _SEGMENTS, GROUP_SEGMENTS):
        starts = [number * _SIZE for number in range(first, first + GROUP_SEGMENTS)]
        summaries = [SegmentTimes(segment=segment_name(1, each, _SIZE), start=each) for each in starts]
        if starts[-1] == start:
            lsn = int(event.lsn)
            ended = structs.replace(summaries[-1], events=1, commits=1, first_lsn=lsn, last_lsn=lsn)
            summaries[-1] = structs.replace(ended, min_time=time_, max_time=time_)
        groups.write(1, first * _SIZE, summaries)


@dataclass
class Measured:
    """What a run took: ``peak`` in bytes of Python's objects, ``seconds`` with the time that counting them takes where it is counted."""

    what: str
    seconds: float = 0.0
    peak: int = 0
    listed: int = 0

    def show(self) -> None:
        """Where the whole was asked for."""
        if _WHOLE:
            size = f"{_SEGMENTS:,} segments, {_BACKUPS:,} backups"
            memory = f"{self.peak / _MIB:.1f} MiB" if self.peak else "memory not counted"
            sys.stderr.write(f"\n{self.what}: {size}: {self.seconds:.1f} s, {memory}, {self.listed:,} objects listed\n")


@contextmanager
def measured(store: SimulatedStore, what: str, *, traced: bool = True) -> Iterator[Measured]:
    found = Measured(what)
    store.listed = 0
    gc.collect()
    if traced:
        tracemalloc.start()
    begun = time.monotonic()
    try:
        yield found
        found.seconds, found.listed = time.monotonic() - begun, store.listed
        found.peak = tracemalloc.get_traced_memory()[1] if traced else 0
    finally:
        tracemalloc.stop()


Run = Callable[..., tuple[Any, Measured]]


@pytest.fixture
def pgkeep(
    store: SimulatedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command line; gives its document, and what it took."""
    monkeypatch.setattr(opening, "open_store", lambda url: store)
    key = tmp_path / "pgkeep.key"
    key.write_text(KEY.text())
    key.chmod(0o600)
    config = tmp_path / "pgkeep.toml"
    config.write_text(
        f'[repository.main]\nurl = "/simulated"\nkey = "file:{key}"\n'
        f'[repository.main.retention]\nwindow = "{_WINDOW.days}d"\nmonthly = 12\nyearly = 7\n'
        f'[cluster.auth]\ndsn = "host={tmp_path}"\nwal = {{ spool = "{tmp_path}/spool" }}\n'
    )

    def run(*arguments: str, traced: bool = True) -> tuple[Any, Measured]:
        # whatever is imported and cached once is not counted
        main.execute(["--help"])
        for each in (False, True) if _WHOLE else (traced,):
            capsys.readouterr()
            with measured(store, f"pgkeep {' '.join(arguments)}", traced=each) as took:
                code = main.execute([*arguments, "--json", "--config", str(config)])
            document = capsys.readouterr().out
            assert code == 0, document
            with capsys.disabled():
                took.show()
        return json.loads(document), took

    return run


def test_the_simulated_plan_of_an_expiry_counts_a_part_of_the_wal_and_ends(pgkeep: Run) -> None:
    document, took = pgkeep("expire", "--dry-run", traced=_WHOLE)

    (cluster,) = document["repositories"][0]["clusters"]
    assert (cluster["wal"]["objects"], cluster["wal"]["complete"]) == (_PREVIEW, False)
    assert len(cluster["backups"]) == _BACKUPS
    kept = sum(not backup["goes"] for backup in cluster["backups"])
    assert _BACKUPS * _WINDOW / _TEN_YEARS < kept < _BACKUPS * _WINDOW / _TEN_YEARS + 12 + 7 + 4
    # a folder's worth more than it shows, and each manifest
    assert took.listed < _PREVIEW + 1000 + 3 * _BACKUPS


def test_all_that_goes_in_the_simulated_store_passes_by_one_at_a_time(store: SimulatedStore) -> None:
    repository = Repository.open(store, KEY)
    request = ExpireRequest(rules=Rules(window=_WINDOW, grace=timedelta(0)))
    with measured(store, "plan, and the first WAL that goes") as begun:
        (plan,) = plan_expiry(request, repository)
        going = plan.superfluous(repository)
        first = sum(1 for _ in islice(going, _FIRST))
    with measured(store, "all WAL that goes", traced=False) as took:
        gone = first + sum(1 for _ in going)
    begun.show()
    took.show()

    assert plan.needed is not None
    assert store.wal is not None
    ((begin, end),) = plan.needed.spans()[1]
    needed = begin // _SIZE
    groups = (needed - store.wal.first_group) // GROUP_SEGMENTS
    assert (gone, end) == (needed - store.wal.first + groups, None)
    assert begun.listed < _FIRST + 1000 + _BACKUPS
    assert begun.listed + took.listed < gone + 1000 + _BACKUPS
    assert begun.peak < 2 * _MIB + _BACKUPS * _EACH_BACKUP + _SEGMENTS // 256 * _EACH_FOLDER


def test_the_simulated_list_reads_the_manifests_and_no_wal(pgkeep: Run) -> None:
    document, took = pgkeep("list")

    assert len(document["backups"]) == _BACKUPS
    assert took.listed < 2 * _BACKUPS
    assert took.peak < 8 * _MIB + _BACKUPS * _EACH_BACKUP


def test_the_simulated_status_looks_at_the_end_of_the_wal_only(pgkeep: Run, store: SimulatedStore) -> None:
    document, took = pgkeep("status")

    (repository,) = document["repositories"]
    assert repository["backups"] == _BACKUPS
    assert repository["newest_wal"]["lsn"] == str(LSN(_SEGMENTS * _SIZE))
    assert datetime.fromisoformat(repository["newest_wal"]["current_at"]) == store.now
    assert took.listed < 1000 + 2 * _BACKUPS
    # a segment, whole, is among it
    assert took.peak < 64 * _MIB + _BACKUPS * _EACH_BACKUP
