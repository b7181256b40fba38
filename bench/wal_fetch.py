"""``python -m bench.wal_fetch``: how fast WAL comes back, and how fast a server replays it, beside pgBackRest's archive-get.

A server writes WAL; the same segments go into pgkeep's repository (zstd, encrypted), into pgBackRest's (zstd, not encrypted) and
into a plain directory. Then each brings them back: by its ``restore_command`` for one segment after the other, as a server calls
it but without one (the fetch rate), and to a server that recovers from the same base backup (the replay rate).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psycopg

from bench import machine, setup
from bench.contenders.pgbackrest import PROGRAM
from bench.dataset import BYTES_PER_USER, DATABASE, open_server
from bench.machine import CORES
from bench.report import RESULTS
from pgkeep.demo.workload import load
from pgkeep.errors import PgkeepError
from pgkeep.postgres.account import give_to, process_identity, run_as
from pgkeep.postgres.server import Server
from pgkeep.postgres.wal import parse_segment_name
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.units import format_size, parse_size, utc_now
from pgkeep.wal.fetch import restore_command
from pgkeep.wal.fetch_source import WalSource
from pgkeep.wal.prefetch import Prefetcher

SEGMENT_SIZE = 16 << 20
WAL_BYTES_PER_USER = 4 * BYTES_PER_USER // 3
DEPTH, JOBS = 16, 4

SERVER_SETTINGS: dict[str, str | int | bool] = {
    "wal_level": "replica",
    "archive_mode": False,
    "wal_keep_size": "64GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "256MB",
    "autovacuum": False,
    "fsync": False,
}
RECOVERY_SETTINGS: dict[str, str | int | bool] = {
    **SERVER_SETTINGS,
    "fsync": True,
    "recovery_init_sync_method": "syncfs",
    "recovery_target_timeline": "latest",
}

PGBACKREST = """
[global]
repo1-path={directory}/repo
process-max={processes}
compress-type=zst
compress-level=1
archive-async=y
archive-get-queue-max=1GiB
lock-path={directory}/lock
spool-path={directory}/spool
log-level-file=off
log-level-console=warn

[bench]
pg1-path={data}
pg1-socket-path={sockets}
pg1-user=postgres
"""


class Contender(ABC):
    """Keeps the segments, and gives the ``restore_command`` that brings them back."""

    name: ClassVar[str]

    def __init__(self, source: Server, directory: Path) -> None:
        self.source = source
        self.directory = directory / type(self).__name__.lower()
        self.directory.mkdir()
        give_to(source.account, self.directory)

    @abstractmethod
    def store(self, segments: Sequence[Path]) -> None:
        """Keep these segments."""

    @abstractmethod
    @contextmanager
    def serving(self, data: Path) -> Iterator[str]:
        """What stands beside a server on this data directory, and the server's ``restore_command``."""


class Pgkeep(Contender):
    name = "pgkeep"

    def store(self, segments: Sequence[Path]) -> None:
        key = KeyFile(bytes(range(32)))
        self._repository = Repository.create(open_store(str(self.directory / "repository")), key)
        identifier = _query(self.source, "SELECT system_identifier::text FROM pg_control_system()")
        self._identifier = int(identifier)
        for segment in segments:
            self._repository.wal(self._identifier).put(segment.name, segment.read_bytes())

    @contextmanager
    def serving(self, data: Path) -> Iterator[str]:
        source = WalSource.of("main", self._repository, self._identifier)
        with Prefetcher(
            data / "pg_wal", [source], SEGMENT_SIZE, depth=DEPTH, jobs=JOBS, system_identifier=self._identifier
        ):
            yield restore_command([])


class PgBackRest(Contender):
    name = "pgBackRest, async"

    def store(self, segments: Sequence[Path]) -> None:
        for name in ("repo", "lock", "spool"):
            (self.directory / name).mkdir()
            give_to(self.source.account, self.directory / name)
        self._configuration = self.directory / "pgbackrest.conf"
        self._configuration.write_text(
            PGBACKREST.format(
                directory=self.directory,
                processes=CORES,
                data=self.source.data_directory,
                sockets=self.source.socket_directory,
            )
        )
        self._run("stanza-create", "--no-online")
        for segment in segments:
            self._run("archive-push", "--no-archive-async", str(segment))

    @contextmanager
    def serving(self, data: Path) -> Iterator[str]:
        shutil.rmtree(self.directory / "spool")
        (self.directory / "spool").mkdir()
        give_to(self.source.account, self.directory / "spool")
        yield f'{PROGRAM} --config={self._configuration} --stanza=bench --pg1-path={data} archive-get %f "%p"'
        # the process that fetches ahead ends by itself; nobody's measurement starts before that
        while (self.directory / "lock" / "bench-archive-1.lock").exists() and self._is_working():
            time.sleep(0.1)

    def _is_working(self) -> bool:
        place = os.fsencode(str(self._configuration))
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and place in (entry / "cmdline").read_bytes():
                    return True
            except OSError:
                continue
        return False

    def _run(self, command: str, *words: str) -> None:
        answer = run_as(
            self.source.account, [PROGRAM, f"--config={self._configuration}", "--stanza=bench", command, *words]
        )
        if answer.returncode != 0:
            raise PgkeepError(f"pgbackrest {command} failed: {answer.stderr.strip() or answer.stdout.strip()}")


class Copying(Contender):
    """The floor: files as they are, brought by cp."""

    name = "cp"

    def store(self, segments: Sequence[Path]) -> None:
        for segment in segments:
            place = self.directory / segment.name
            shutil.copyfile(segment, place)
            give_to(self.source.account, place)

    @contextmanager
    def serving(self, data: Path) -> Iterator[str]:  # noqa: ARG002  (files need nothing beside them)
        yield f'test -f {self.directory}/%f && cp {self.directory}/%f "%p"'


CONTENDERS: tuple[type[Contender], ...] = (Pgkeep, PgBackRest, Copying)


def main() -> None:
    options = _parser().parse_args()
    setup.install_missing()
    with tempfile.TemporaryDirectory(prefix="pgkeep-bench-", dir=options.directory) as made:
        directory = Path(made)
        directory.chmod(0o755)
        with open_server(directory / "origin") as source:
            base, segments = make_wal(source, directory, options.size)
            contenders = [kind(source, directory) for kind in CONTENDERS]
            for contender in contenders:
                print(f"{contender.name} stores {len(segments)} segments", flush=True)
                contender.store(segments)
        fetches: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        replays: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for number in range(options.runs + 1):
            for contender in contenders:
                fetched = measure_fetch(contender, base, [segment.name for segment in segments])
                replayed = measure_replay(contender, base, source, options.users_expected(options.size))
                print(f"round {number}, {contender.name}: fetch {fetched:.2f} s, recovery {replayed:.2f} s", flush=True)
                if number > 0:
                    fetches[contender.name].append(fetched)
                    replays[contender.name].append(replayed)
        facts = {**machine.facts(), "postgresql": source.binaries.version_text, "pgbackrest": _pgbackrest_version()}
        text = report(len(segments), fetches, replays, facts)
        if options.save:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "wal_fetch.md").write_text(text)
            document = {
                "machine": facts,
                "segments": len(segments),
                "fetch_seconds": fetches,
                "recovery_seconds": replays,
            }
            (RESULTS / "wal_fetch.json").write_text(json.dumps(document, indent=2) + "\n")
        print(f"\n{text}")


def make_wal(source: Server, directory: Path, size: int) -> tuple[Path, list[Path]]:
    """A base backup without WAL, and all segments from its beginning on; the rows come after it."""
    source.initdb()
    source.start(SERVER_SETTINGS)
    _query(source, f"CREATE DATABASE {DATABASE}")
    base = directory / "base"
    run = run_as(
        source.account,
        [
            source.binaries.path("pg_basebackup"),
            f"--dbname={source.dsn()}",
            f"--pgdata={source.data_directory.parent / 'base'}",
            "--wal-method=none",
            "--checkpoint=fast",
            "--no-sync",
        ],
    )
    if run.returncode != 0:
        raise PgkeepError(f"pg_basebackup failed: {run.stderr}")
    (source.data_directory.parent / "base").rename(base)
    print(f"writing {format_size(size)} of WAL", flush=True)
    load(source.dsn(DATABASE), users=max(1, size // WAL_BYTES_PER_USER), seed=1, jobs=CORES)
    end = int(_query(source, "SELECT (pg_switch_wal() - '0/0'::pg_lsn)::text"))
    begin = _begin_of(base)
    segments = [
        path
        for path in sorted((source.data_directory / "pg_wal").iterdir())
        if len(path.name) == 24 and begin <= path.name and parse_segment_name(path.name, SEGMENT_SIZE)[1] < end
    ]
    return base, segments


def _begin_of(base: Path) -> str:
    """``START WAL LOCATION: 0/2000028 (file 000000010000000000000002)``."""
    return (base / "backup_label").read_text().partition("(file ")[2][:24]


def measure_fetch(contender: Contender, base: Path, names: Sequence[str]) -> float:
    """Seconds for all segments, one after the other, each removed as soon as it is there."""
    data = base.with_name("fetched")
    try:
        _clone(base, data)
        with contender.serving(data) as command:
            os.sync()
            script = "".join(
                f"{command.replace('%f', name).replace('%p', 'pg_wal/RECOVERYXLOG').removeprefix('exec ')}"
                " || exit 1\nrm pg_wal/RECOVERYXLOG\n"
                for name in names
            )
            started = time.monotonic()
            identity = {**process_identity(contender.source.account), "cwd": str(data)}
            subprocess.run(["/bin/sh", "-c", script], check=True, **identity)  # type: ignore[call-overload]
            return time.monotonic() - started
    finally:
        shutil.rmtree(data, ignore_errors=True)


def measure_replay(contender: Contender, base: Path, source: Server, rows: int) -> float:
    """Seconds from the server's start until it has promoted at the end of the archive; its rows are counted then."""
    data = base.with_name("recovered")
    try:
        _clone(base, data)
        (data / "recovery.signal").touch()
        give_to(source.account, data / "recovery.signal")
        with contender.serving(data) as command, Server(data, source.binaries) as server:
            os.sync()
            started = time.monotonic()
            server.start({**RECOVERY_SETTINGS, "restore_command": command}, timeout=600)
            while _query(server, "SELECT pg_is_in_recovery()::text") == "true":
                time.sleep(0.02)
            seconds = time.monotonic() - started
            found = int(_query(server, "SELECT count(*)::text FROM users", DATABASE))
            if found != rows:
                raise PgkeepError(f"{contender.name} recovered {found} users of {rows}")
            server.stop("immediate")
            return seconds
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _clone(base: Path, data: Path) -> None:
    subprocess.run(["cp", "-a", base, data], check=True)


def _query(server: Server, query: str, database: str = "postgres") -> str:
    with psycopg.connect(server.dsn(database), autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""


def _pgbackrest_version() -> str:
    return subprocess.run([PROGRAM, "version"], capture_output=True, text=True, check=True).stdout.split()[-1]


def report(
    segments: int, fetches: dict[str, list[float]], replays: dict[str, list[float]], facts: Mapping[str, object]
) -> str:
    """The results as Markdown."""
    size = segments * SEGMENT_SIZE
    runs = len(fetches[Pgkeep.name])
    conditions = (
        f"{segments} segments, {format_size(size)}. Each time is the median of {runs} runs after one to warm up; everybody takes turns, "
        "with the repositories in the page cache. Fetch: `restore_command` for one segment after the other, without a server. Recovery: "
        "a server from its start until it has promoted at the end of the archive, its checkpoint included; its rows are counted."
    )
    circumstances = (
        f"{facts['postgresql']}, pgBackRest {facts['pgbackrest']} (archive-async=y, archive-get-queue-max=1GiB, process-max={CORES}, "
        f"zst level 1, not encrypted), pgkeep (zstd, encrypted; {DEPTH} segments ahead, {JOBS} threads). {facts['cores']} cores "
        f"({facts['processor']}), Linux {facts['kernel']}. {utc_now():%Y-%m-%d}."
    )
    lines = ["# WAL coming back: fetch and replay", "", conditions, "", circumstances, ""]
    for title, results in (("Fetch", fetches), ("Recovery", replays)):
        lines += [
            f"## {title}",
            "",
            "| | seconds | min–max | segments a second | a second | pgkeep's speed |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        ours = statistics.median(results[Pgkeep.name])
        for name, seconds in results.items():
            wall = statistics.median(seconds)
            ratio = "" if name == Pgkeep.name else f"{wall / ours:.2f} x"
            lines.append(
                f"| {name} | {wall:.2f} | {min(seconds):.2f}–{max(seconds):.2f} | {segments / wall:.1f} "
                f"| {format_size(size / wall)} | {ratio} |"
            )
        lines.append("")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.wal_fetch", description=__doc__)
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the WAL, about (default 1GiB)")
    parser.add_argument("--runs", type=int, default=3, help="measured rounds, after one to warm up (default 3)")
    parser.add_argument("--directory", type=Path, default=Path("/tmp"), help="where to work (default /tmp)")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    parser.set_defaults(users_expected=lambda size: max(1, size // WAL_BYTES_PER_USER))
    return parser


if __name__ == "__main__":
    main()
