"""The restored side of a comparison: its tables against the fingerprints of the source, down to the rows that differ.

A range of blocks whose sum differs is looked into on both sides, row by row. The source has gone on meanwhile; but a row that its
fingerprint's snapshot already saw, and that is still there, is what it was. What was changed since can only be said to differ.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass

from pgkeep.drill.compare_rows import Finder, RowDifferences
from pgkeep.drill.compare_source import ComparisonRequest, begin_comparison
from pgkeep.drill.fingerprint import RangeSum, SourceFingerprints, TableFingerprint
from pgkeep.drill.fingerprint_ranges import Readers, Unreadable, read_ranges
from pgkeep.drill.fingerprint_tables import Connection, connect_to, sequence_values
from pgkeep.drill.record import ComparedTable, Comparison
from pgkeep.errors import TargetError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.progress import Progress, Silent

__all__ = ["ComparisonRequest", "begin_comparison", "compare"]

_RESTORED = """
    SELECT (pg_control_system()).system_identifier::text, current_setting('server_version_num')::int / 10000,
           pg_postmaster_start_time(), pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn(), '0/0') >= %s::pg_lsn
"""


def compare(
    fingerprints: SourceFingerprints,
    dsn: str,
    *,
    source: str | None = None,
    examples: int = 5,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Hold the server at ``dsn``, recovered to the fingerprints' moment, against them.

    ``source`` is the source's DSN: with it the rows that differ are shown, at most ``examples`` of a table. Raises TargetError for a
    server that is none of the source's, ServerError where one cannot be asked.
    """
    progress, began = progress or Silent(), time.monotonic()
    with connect_sql(dsn) as connection:
        _check_is_copy(connection, dsn, fingerprints)
    readers = Readers(functools.partial(connect_to, dsn), jobs or min(os.cpu_count() or 1, 8))
    progress.phase("comparing the restored tables")
    try:
        found = read_ranges(readers, fingerprints.tables)
        tables = [_judge(table, sums) for table, sums in zip(fingerprints.tables, found, strict=True)]
        differing = [each for each in tables if each.ranges]
        if differing and source is not None:
            finder = Finder(source, readers, fingerprints, examples)
            try:
                for each in differing:
                    each.rows = finder.find(each.table, each.ranges)
            finally:
                finder.close()
    finally:
        readers.close()
    compared = [each.compared() for each in tables] + _sequences(fingerprints, dsn)
    return Comparison(
        mode=fingerprints.mode,
        lsn=fingerprints.lsn,
        equal=bool(compared) and all(table.equal for table in compared),
        tables=compared,
        detail=_detail(fingerprints),
        seconds=fingerprints.seconds + time.monotonic() - began,
    )


def _check_is_copy(connection: Connection, dsn: str, fingerprints: SourceFingerprints) -> None:
    row = connection.execute(_RESTORED, (fingerprints.lsn,)).fetchone()
    assert row is not None
    system, major, started, in_recovery, arrived = row
    where = endpoint_of(dsn)
    if (int(system), major) != (fingerprints.system_identifier, fingerprints.server_major):
        raise TargetError(
            f"{where} is of another cluster: its system identifier is {system} (PostgreSQL {major}), and the source's "
            f"{fingerprints.system_identifier} (PostgreSQL {fingerprints.server_major})",
            hint="restore a backup of this cluster; pgkeep list shows them",
        )
    if started == fingerprints.server_started:
        raise TargetError(
            f"{where} is the source itself, which proves nothing",
            hint="name the restored server's socket directory and port",
        )
    if in_recovery and not arrived:
        raise TargetError(
            f"{where} is still in recovery, and has not come to {fingerprints.lsn}, the moment of the comparison",
            hint="wait until it has, or see its log",
        )


@dataclass
class _Judged:
    """A table, and the ranges of it that differ; ``reason`` where it could not be read at all."""

    table: TableFingerprint
    ranges: list[RangeSum]
    restored: int
    judged: float
    reason: str = ""
    rows: RowDifferences | None = None

    def compared(self) -> ComparedTable:
        table, details = self.table, []
        if self.ranges and table.range_blocks:
            count = len(self.ranges)
            details.append(
                f"{count} of {len(table.ranges)} range{'s' * (len(table.ranges) > 1)} of blocks differ{'s' * (count == 1)}: {self._places()}"
            )
        elif self.ranges:
            details.append("it differs")
        if self.rows is not None:
            details += self.rows.details
        if self.judged < 1:
            details.append("what changed around the moment was left out")
        return ComparedTable(
            name=f"{table.database}.{table.schema}.{table.name}",
            rows=self.restored,
            equal=not self.ranges and not self.reason,
            live_rows=table.rows,
            sampled=table.sampled * self.judged,
            detail=self.reason or "; ".join(details),
            differences=[] if self.rows is None else self.rows.differences,
        )

    def _places(self) -> str:
        shown = [
            f"{each.start} to {'the end' if (end := self.table.end_of(each.start)) is None else end - 1}"
            for each in self.ranges[:_SHOWN]
        ]
        return ", ".join(shown) + (" and more" if len(self.ranges) > _SHOWN else "")


_SHOWN = 3


def _judge(table: TableFingerprint, sums: list[RangeSum] | Unreadable) -> _Judged:
    if isinstance(sums, Unreadable):
        return _Judged(table, [], 0, 1.0, f"it cannot be read in the restored cluster: {sums}")
    judged = [each for each in table.ranges if each.quiet]
    here = {each.start: each for each in sums}
    differing = [each for each in judged if (here[each.start].rows, here[each.start].total) != (each.rows, each.total)]
    share = len(judged) / len(table.ranges) if table.ranges else 1.0
    return _Judged(table, differing, sum(each.rows for each in sums), share)


def _sequences(fingerprints: SourceFingerprints, dsn: str) -> list[ComparedTable]:
    """Those that would hand out a value again; nothing for the others."""
    found = []
    for database in sorted({floor.database for floor in fingerprints.sequences}):
        with connect_to(dsn, database) as session:
            restored = sequence_values(session)
        for floor in fingerprints.sequences:
            if floor.database != database:
                continue
            value = restored.get((floor.schema, floor.name), (floor.increment, None))[1]
            if value is None or (value < floor.value if floor.increment > 0 else value > floor.value):
                stands = "was never used" if value is None else f"stands at {value}"
                found.append(
                    ComparedTable(
                        name=f"{database}.{floor.schema}.{floor.name}",
                        rows=1,
                        live_rows=1,
                        equal=False,
                        detail=f"the restored sequence {stands}, and the source had handed out {floor.value}",
                    )
                )
    return found


def _detail(fingerprints: SourceFingerprints) -> str:
    parts = []
    if fingerprints.mode == "tolerance":
        parts.append(
            "with tolerance: what was written around the moment is not compared, since not every table was locked against writers"
        )
    if fingerprints.sequences:
        parts.append(f"{len(fingerprints.sequences)} sequences held against what they had handed out")
    return "; ".join([*parts, *fingerprints.notes])
