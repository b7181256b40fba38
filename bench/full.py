"""The rows "full backup" and "restore": everybody takes a full backup of the same server and brings it back."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.contenders.base import Contender
from bench.dataset import DATABASE, data_size
from bench.measure import Measurement
from bench.report import Entry, Row
from pgkeep.demo.schema import TABLE_NAMES
from pgkeep.errors import PgkeepError
from pgkeep.postgres.server import Server

CONDITIONS = (
    "One round to warm up, whose restores were started and their rows counted, then the rounds that count. Every backup is a full one "
    "into an empty repository."
)


@dataclass
class _Results:
    backups: list[Measurement] = field(default_factory=list)
    restores: list[Measurement] = field(default_factory=list)
    stored: int = 0


def run(server: Server, contenders: Iterable[Contender], runs: int) -> Iterator[Row]:
    """One round to warm up, whose restores are proven by starting them, then ``runs`` rounds; each round asks everybody once."""
    size = data_size(server)
    results = {contender: _Results() for contender in contenders}
    for number in range(runs + 1):
        for contender, result in results.items():
            backup, restore, result.stored = _round(contender, is_proven=number == 0)
            print(f"round {number}, {contender.name}: {backup.wall:.2f} s, {restore.wall:.2f} s", flush=True)
            if number > 0:
                result.backups.append(backup)
                result.restores.append(restore)
    yield Row("full backup", size, [Entry(c.name, c.facts(), r.backups, r.stored) for c, r in results.items()])
    yield Row("restore", size, [Entry(c.name, c.facts(), r.restores) for c, r in results.items()])


def _round(contender: Contender, *, is_proven: bool) -> tuple[Measurement, Measurement, int]:
    target = contender.directory.with_name("restored")
    try:
        contender.prepare()
        warm(contender.server.data_directory)
        backup = contender.backup()
        warm(contender.repository)
        restore = contender.restore(target)
        if is_proven:
            prove(contender.server, target)
        return backup, restore, contender.repository_bytes()
    finally:
        shutil.rmtree(target, ignore_errors=True)
        contender.clean()


def warm(directory: Path) -> None:
    """Read every file once, so that all find the same page cache."""
    buffer = memoryview(bytearray(1 << 20))
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def prove(source: Server, target: Path) -> None:
    """Start what was restored and count its rows; a quick restore of less would be no restore."""
    with Server(target, source.binaries) as restored:
        restored.start({"archive_mode": False}, timeout=300)
        expected, found = row_counts(source), row_counts(restored)
    if found != expected:
        raise PgkeepError(f"restored {found} rows of {expected}")


def row_counts(server: Server) -> dict[str, int]:
    with psycopg.connect(server.dsn(DATABASE)) as connection:
        counts = {}
        for table in TABLE_NAMES:
            row = connection.execute(
                psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(table))
            ).fetchone()
            counts[str(table)] = row[0] if row else 0
        return counts
