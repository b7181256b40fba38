"""WAL of every sort, from a real server, and what ``pg_waldump`` says of it."""

from __future__ import annotations

import re
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from pgkeep.postgres.account import run_as
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import segment_name
from support.servers import run_program, sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.server import Server

__all__ = ["BUSY_SETTINGS", "DumpedRecord", "dump_wal", "make_busy_wal", "segments_of", "wal_of"]

BUSY_SETTINGS: dict[str, str | int | bool] = {
    "max_prepared_transactions": 20,
    "wal_keep_size": "2GB",
    "max_wal_size": "4GB",
    "wal_level": "logical",
    "track_commit_timestamp": True,
}

_OPERATIONS = {
    "COMMIT": "commit",
    "COMMIT_PREPARED": "commit",
    "ABORT": "abort",
    "ABORT_PREPARED": "abort",
    "RESTORE_POINT": "restore_point",
    "CHECKPOINT_SHUTDOWN": "checkpoint",
    "CHECKPOINT_ONLINE": "checkpoint",
    "END_OF_RECOVERY": "end_of_recovery",
    "SWITCH": "switch",
}
_LINE = re.compile(
    r"rmgr: (\S+) +len \(rec/tot\): +\d+/ *\d+, tx: +(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), prev \S+, desc: (\S+)(.*)"
)
_TIME = re.compile(r"(?: (\d+):)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC")


@dataclass(frozen=True)
class DumpedRecord:
    """A record as ``pg_waldump`` prints it; ``kind`` None for one that no time hangs on.

    ``xid`` is that of a transaction's end, ``time`` too; other records' times are not printed.
    """

    kind: str | None
    lsn: LSN
    xid: int | None
    time: datetime | None
    name: str | None


def dump_wal(server: Server, start: int, size: int, timeline: int = 1) -> list[DumpedRecord]:
    """All records from the segment at ``start`` on, up to the end of the WAL in the server's pg_wal."""
    # pg_waldump looks at any one file of a directory first, and that may be one that is not used yet
    with tempfile.TemporaryDirectory(dir=server.data_directory) as directory:
        Path(directory).chmod(0o755)
        for lsn, path in segments_of(server, size, timeline):
            if lsn >= start and int.from_bytes(path.read_bytes()[8:16], "little") == lsn:
                (Path(directory) / path.name).symlink_to(path)
        program = server.binaries.path("pg_waldump")
        place = ["-p", directory, "-t", str(timeline), "-s", str(LSN(start))]
        answer = run_as(server.account, ["env", "TZ=UTC", program, *place], timeout=250)
    records = [_record(match) for match in map(_LINE.match, answer.stdout.splitlines()) if match]
    assert records, answer.stderr
    return records


def _record(match: re.Match[str]) -> DumpedRecord:
    manager, xid, lsn, operation, rest = match.groups()
    kind = _OPERATIONS.get(operation) if manager in {"Transaction", "XLOG"} else None
    number, moment = None, None
    if manager == "Transaction" and kind is not None:
        found = _TIME.match(rest)
        assert found is not None, rest
        moment = datetime.fromisoformat(found[2]).replace(tzinfo=UTC)
        number = int(found[1] or xid)
    name = rest.strip() if kind == "restore_point" else None
    return DumpedRecord(kind, LSN.parse(lsn), number, moment, name)


def make_busy_wal(server: Server, seconds: int = 2) -> None:
    """A load of everything that ends transactions, in every way; every record of it is in pg_wal afterwards."""
    dsn = server.dsn()
    run_program(server, "pgbench", "-i", "-q", "-s", "1", "-d", dsn)
    sql(dsn, "CREATE TABLE IF NOT EXISTS t (n int, text text)")
    threads = [threading.Thread(target=work, args=(dsn,)) for work in (_mixed, _prepared, _ddl, _origins)]
    for thread in threads:
        thread.start()
    run_program(server, "pgbench", "-n", "-c", "4", "-T", str(seconds), "-d", dsn)
    for thread in threads:
        thread.join()
    sql(dsn, "SELECT pg_create_restore_point('the end')")
    sql(dsn, "CHECKPOINT")


def segments_of(server: Server, size: int, timeline: int = 1) -> Iterator[tuple[LSN, Path]]:
    """The segments of a timeline in pg_wal, in order, with their start."""
    for path in sorted((server.data_directory / "pg_wal").glob(f"{timeline:08X}????????????????")):
        log, segment = int(path.name[8:16], 16), int(path.name[16:], 16)
        start = LSN((log << 32) + segment * size)
        assert segment_name(timeline, start, size) == path.name
        yield start, path


def wal_of(server: Server, size: int, timeline: int = 1) -> tuple[LSN, bytes]:
    """All of it, from the first segment's start; behind the end of the WAL may be leftovers of files used again."""
    segments = list(segments_of(server, size, timeline))
    assert [start for start, _ in segments] == [segments[0][0] + number * size for number in range(len(segments))]
    return segments[0][0], b"".join(path.read_bytes() for _, path in segments)


def _mixed(dsn: str) -> None:
    """Subtransactions, aborts, big commits, restore points, switches, checkpoints."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(25):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (1, 'a')")
            for savepoint in range(40):
                connection.execute("SAVEPOINT s")
                connection.execute("INSERT INTO t VALUES (%s, 'a')", (savepoint,))
                connection.execute("ROLLBACK TO s" if savepoint % 5 == 0 else "RELEASE s")
            connection.execute("ROLLBACK" if number % 3 == 0 else "COMMIT")
            connection.execute(f"SELECT pg_create_restore_point('point {number}')")
            # of every length, so that records end everywhere on a page
            connection.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', %s))", (number * 997,))
            if number % 6 == 5:
                connection.execute("SELECT pg_switch_wal()")
            if number % 10 == 9:
                connection.execute("CHECKPOINT")
        # a commit record of several pages
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..6000 LOOP BEGIN INSERT INTO t VALUES (i, 'sub'); EXCEPTION WHEN OTHERS THEN NULL; END;"
            " END LOOP; END $$"
        )


def _prepared(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(40):
            connection.execute(f"CREATE TABLE doomed_{number} (n int PRIMARY KEY, text text)")
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (1, 'prepared')")
            if number % 2:
                connection.execute("SAVEPOINT a")
                connection.execute("INSERT INTO t VALUES (2, 'sub')")
            if number % 3:
                # dropped and created relations, statistics and invalidations stand before the xid
                connection.execute(f"DROP TABLE doomed_{number}")
                connection.execute(f"CREATE TABLE made_{number} (n int PRIMARY KEY, text text)")
            connection.execute(f"PREPARE TRANSACTION 'prepared {number}'")
            connection.execute(f"{'ROLLBACK' if number % 4 == 0 else 'COMMIT'} PREPARED 'prepared {number}'")


def _ddl(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(20):
            connection.execute(f"CREATE TABLE d_{number} (a int PRIMARY KEY, b text, c jsonb)")
            connection.execute(f"CREATE INDEX ON d_{number} (b)")
            connection.execute(f"INSERT INTO d_{number} SELECT i, md5(i::text) FROM generate_series(1, 300) i")
            connection.execute(f"{'TRUNCATE' if number % 2 else 'DROP TABLE'} d_{number}")
            connection.execute(f"BEGIN; CREATE TABLE gone_{number} (a int PRIMARY KEY); ROLLBACK")


def _origins(dsn: str) -> None:
    """Commits that name a replication origin, as those of a subscription's apply worker do."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_replication_origin_create('test')")
        connection.execute("SELECT pg_replication_origin_session_setup('test')")
        for number in range(30):
            connection.execute("BEGIN")
            connection.execute("SELECT pg_replication_origin_xact_setup('0/1000', now())")
            connection.execute("INSERT INTO t VALUES (3, 'origin')")
            connection.execute("ROLLBACK" if number % 5 == 0 else "COMMIT")
