"""The comparison under load: exact at its moment, and no writer waits for it longer than it may."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeep.drill.compare import ComparisonRequest, begin_comparison, compare
from pgkeep.drill.fingerprint import decode_fingerprints, encode_fingerprints
from pgkeep.drill.fingerprint_moment import LockRules
from pgkeep.postgres.account import process_identity
from support.servers import run_program, sql
from support.standby import SteppingStandby

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.server import Server
    from support.servers import MakeServer

RUNS = int(os.environ.get("PGKEEP_COMPARISONS", "2"))
"""Comparisons on each version; PGKEEP_COMPARISONS=200 is the long run."""

LOCK_TIMEOUT = 0.5
_SHORTENED = 10
"""After so many comparisons the table that only grows is emptied."""

_LONGEST_WAIT = """
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float8
      FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE NOT l.granted AND l.locktype = 'relation' AND a.application_name = 'pgbench'
"""


@pytest.mark.timeout(300 + 20 * RUNS)
def test_under_pgbench_nothing_differs_and_no_writer_waits_longer_than_the_lock_timeout(
    make_server: MakeServer,
    postgres_major: int,
    work_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = make_server(postgres_major, settings={"max_wal_senders": 5, "shared_buffers": "64MB"})
    run_program(source, "pgbench", "--initialize", "--scale=2", "--quiet", source.dsn())
    with SteppingStandby(source, work_dir / "standby") as standby, _pgbench(source, work_dir), _Waits(source) as waits:
        held, attempts, written = [], [], []
        for number in range(RUNS):
            request = ComparisonRequest(rules=LockRules(timeout=LOCK_TIMEOUT))
            found = decode_fingerprints(encode_fingerprints(begin_comparison(source.dsn(), request)))
            restored = standby.go_to(name=found.restore_point)
            comparison = compare(found, restored, source=source.dsn())
            (history,) = (table for table in comparison.tables if table.name.endswith("history"))
            assert history.rows > 0, "pgbench wrote nothing"
            assert (comparison.mode, comparison.equal) == ("exact", True), comparison
            assert {table.name for table in comparison.tables} == {
                f"postgres.public.pgbench_{name}" for name in ("accounts", "branches", "history", "tellers")
            }
            held.append(found.held)
            attempts.append(found.attempts)
            written.append(found.lsn)
            if number % _SHORTENED == _SHORTENED - 1:
                sql(source.dsn(), "TRUNCATE pgbench_history")
    assert len(set(written)) == RUNS
    with capsys.disabled():
        sys.stdout.write(
            f"\n{RUNS} comparisons on {postgres_major}: longest wait of a writer {waits.longest * 1000:.0f} ms in {waits.looked} looks;"
            f" locked for {max(held) * 1000:.1f} ms at the most, after {max(attempts)} attempts at the most\n"
        )
    assert waits.looked > 20
    assert waits.longest < LOCK_TIMEOUT


class _Waits(threading.Thread):
    """Looks every few milliseconds how long pgbench has been waiting for a table."""

    def __init__(self, source: Server) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._stop_it = threading.Event()
        self.longest = 0.0
        self.looked = 0

    def __enter__(self) -> _Waits:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join()

    def run(self) -> None:
        """Look."""
        with psycopg.connect(self._source.dsn(), autocommit=True) as connection:
            while not self._stop_it.wait(0.015):
                ((longest,),) = connection.execute(_LONGEST_WAIT).fetchall()
                self.longest = max(self.longest, longest)
                self.looked += 1


@contextmanager
def _pgbench(source: Server, directory: Path) -> Iterator[None]:
    """Four clients that write; none of their transactions may fail."""
    command: list[str | Path] = [
        source.binaries.path("pgbench"), "--client=4", "--time=36000", "--no-vacuum", "--progress=3600", source.dsn()
    ]  # fmt: skip
    log = directory / "pgbench.log"
    with log.open("wb") as output:
        load = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True,
            **process_identity(source.account),
        )  # fmt: skip
    try:
        while sql(source.dsn(), "SELECT count(*) > 20 FROM pgbench_history") == [(False,)]:
            assert load.poll() is None, log.read_text()
            time.sleep(0.05)
        yield
        assert load.poll() is None, log.read_text()
    finally:
        load.kill()
        load.wait()
    assert "ERROR" not in log.read_text()
