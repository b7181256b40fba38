"""The rows of incremental backups: what a backup after 1 % of random page updates takes and stores, and what restores of a long row of them cost.

One server, one repository for each contender. Each round changes the same pages for everybody, then each takes an incremental backup that
rests on its last one. After the last round the first and the last backup are restored, and the last one over a copy in which 1 % of the
pages differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from bench.changes import Changed, PageChanger, scribble
from bench.contenders.base import IncrementalContender
from bench.contenders.pgkeep import Pgkeep
from bench.dataset import data_size
from bench.full import prove, warm
from bench.measure import Measurement
from bench.report import Entry, Row
from pgkeep.errors import PgkeepError
from pgkeep.postgres.server import Server
from pgkeep.units import format_size

SHARE = 0.01
PACE = 300 << 20
"""Bytes a second: a disk that is slower than two cores."""

CONDITIONS = (
    "Rows at random pages of all tables are updated until about 1 % of the cluster's pages differ, indexes included; then everybody takes an "
    "incremental backup that rests on its last one, and so on. Stored is what a backup adds to the repository, without archived WAL. A delta "
    "restore goes over a restored copy in which 1 % of the pages have been overwritten. Restores of a round to warm up were started and their rows "
    "counted."
)


@dataclass
class _Results:
    first: str = ""
    backups: list[Measurement] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    of_first: list[Measurement] = field(default_factory=list)
    of_last: list[Measurement] = field(default_factory=list)
    delta: list[Measurement] = field(default_factory=list)
    first_at_pace: list[Measurement] = field(default_factory=list)
    last_at_pace: list[Measurement] = field(default_factory=list)
    wrong: str = ""
    """What a restored server gets wrong."""


def run(
    server: Server, contenders: Iterable[IncrementalContender], runs: int, *, incrementals: int, seed: int
) -> Iterator[Row]:
    """``incrementals`` rounds of changes, the first of them to warm up; then restores, ``runs`` and one to warm up."""
    results = {contender: _Results() for contender in contenders}
    sizes = [data_size(server)]
    try:
        for contender, result in results.items():
            contender.prepare()
            full = contender.backup()
            contender.between()
            result.first = contender.newest()
            print(f"full backup, {contender.name}: {full.wall:.2f} s", flush=True)
        changes = list(_take_incrementals(server, results, incrementals, seed))
        sizes.append(data_size(server))
        yield _backup_row(results, changes, sizes[-1])
        for number in range(runs + 1):
            for contender, result in results.items():
                _restore_round(contender, result, number, seed)
        yield from _restore_rows(results, sizes, incrementals)
    finally:
        for contender in results:
            contender.clean()


def _take_incrementals(
    server: Server, results: dict[IncrementalContender, _Results], incrementals: int, seed: int
) -> Iterator[Changed]:
    changer = PageChanger(server, seed)
    for number in range(incrementals):
        changed = changer.change(SHARE)
        yield changed
        warm(server.data_directory)
        told = []
        for contender, result in results.items():
            before = contender.backup_bytes()
            measurement = contender.backup_changes()
            contender.between()
            stored = contender.backup_bytes() - before
            told.append(f"{contender.name} {measurement.wall:.2f} s {format_size(stored)}")
            if number > 0:
                result.backups.append(measurement)
                result.stored.append(stored)
        pages = f"{changed.pages} pages ({changed.share:.2%}, {format_size(changed.compressed)} compressed)"
        print(f"incremental {number + 1}, {pages}: {', '.join(told)}", flush=True)


def _restore_round(contender: IncrementalContender, result: _Results, number: int, seed: int) -> None:
    """Restore the first and the last backup, and the last one again over what has been damaged since."""
    last, target = contender.newest(), contender.directory.with_name("restored")
    try:
        warm(contender.repository)
        of_first = contender.restore_backup(result.first, target)
        shutil.rmtree(target)
        of_last = contender.restore_backup(last, target)
        told = f"{of_first.wall:.2f} s the first, {of_last.wall:.2f} s the last"
        delta = None
        if contender.can_restore_delta:
            scribble(target, SHARE, seed + number)
            warm(target)
            delta = contender.restore_delta(last, target)
            told += f", {delta.wall:.2f} s over a copy"
        print(f"restore {number}, {contender.name}: {told}", flush=True)
        if number == 0:
            try:
                prove(contender.server, target)
            except PgkeepError as error:
                if isinstance(contender, Pgkeep):
                    raise
                # it goes on in the race, and the report says so
                result.wrong = str(error)
                print(f"{contender.name}: {error}", flush=True)
            return
        result.of_first.append(of_first)
        result.of_last.append(of_last)
        if type(contender) is Pgkeep:
            for backup, measurements in ((result.first, result.first_at_pace), (last, result.last_at_pace)):
                shutil.rmtree(target, ignore_errors=True)
                measurements.append(contender.restore_at_pace(backup, target, PACE))
        if delta is not None:
            result.delta.append(delta)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _backup_row(results: dict[IncrementalContender, _Results], changes: list[Changed], size: int) -> Row:
    entries = [Entry(c.name, c.facts(), r.backups, round(median(r.stored))) for c, r in results.items()]
    counted = changes[1:]
    compressed = sum(changed.compressed for changed in counted)
    against = "; ".join(f"{c.name} {sum(r.stored) / compressed:.2f} times" for c, r in results.items())
    remark = (
        f"Each backup found {median(changed.pages for changed in counted):.0f} changed pages ({median(changed.share for changed in counted):.2%}). "
        f"Alone and in order, they compress to {format_size(compressed / len(counted))} a backup; what all the backups stored, against that: {against}."
    )
    more = {
        "changed_pages": [changed.pages for changed in counted],
        "changed_pages_compressed_bytes": [changed.compressed for changed in counted],
        "stored_bytes_each": {contender.name: result.stored for contender, result in results.items()},
    }
    return Row("incremental after 1 % random page updates", size, entries, [remark], more)


def _restore_rows(results: dict[IncrementalContender, _Results], sizes: list[int], incrementals: int) -> Iterator[Row]:
    yield Row("restore of the first backup, a full one", sizes[0], [_entry(c, r.of_first) for c, r in results.items()])
    growth = sizes[1] / sizes[0]
    slower = "; ".join(
        f"{c.name} {_wall(r.of_last) / _wall(r.of_first) / growth:.2f} times" for c, r in results.items()
    )
    remark = f"Time for a byte, against the first backup's: {slower}."
    wrong = [f"**Wrong**: {c.name} {r.wrong}." for c, r in results.items() if r.wrong]
    last = [_entry(c, r.of_last) for c, r in results.items()]
    yield Row(f"restore of the last backup, {incrementals} incrementals later", sizes[1], last, [remark, *wrong])
    delta = [_entry(c, r.delta) for c, r in results.items() if r.delta]
    yield Row("delta restore of the last backup", sizes[1], delta)
    for contender, result in results.items():
        if result.first_at_pace:
            first, last_one = result.first_at_pace, result.last_at_pace
            remark = (
                f"Simulated: pgkeep writes no more than {format_size(PACE)} a second (`--rate`), as a disk does that is slower than its cores. "
                f"Time for a byte, against the first backup's: {_wall(last_one) / _wall(first) / growth:.2f} times."
            )
            entries = [Entry("first", contender.facts(), first), Entry("last", contender.facts(), last_one)]
            yield Row("restore at the pace of a slower disk (simulated)", sizes[1], entries, [remark])


def _entry(contender: IncrementalContender, runs: list[Measurement]) -> Entry:
    return Entry(contender.name, contender.facts(), runs)


def _wall(runs: list[Measurement]) -> float:
    return median(run.wall for run in runs)
