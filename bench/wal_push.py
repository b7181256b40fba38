"""``python -m bench.wal_push``: how quickly WAL gets into the repository by ``archive_command``, beside pgBackRest's archive-push.

A server writes WAL and keeps it, waiting to be archived. Each contender's ``archive_command`` is then run as the server runs it,
for one segment after the other, and what is archived is marked as the server marks it; so those who push ahead can. pgkeep's
receiver is measured while the server writes: a segment comes by the stream, and its ``archive_command`` is run once it is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import psycopg

from bench import machine, setup
from bench.contenders.pgbackrest import PROGRAM
from bench.dataset import BYTES_PER_USER, DATABASE, open_server
from bench.machine import CORES
from bench.report import RESULTS
from pgkeep.config import load_config
from pgkeep.demo.workload import load
from pgkeep.errors import PgkeepError
from pgkeep.postgres.account import give_to, process_identity, run_as
from pgkeep.postgres.server import Server
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.units import format_size, parse_size, utc_now
from pgkeep.wal import thin_push
from pgkeep.wal.push import push_line
from pgkeep.wal.push_settings import push_state

SEGMENT_SIZE = 16 << 20
WAL_BYTES_PER_USER = 4 * BYTES_PER_USER // 3
PATIENCE = 60.0
POLL = 0.005

NOISE = """SELECT count(pg_logical_emit_message(false, 'bench', repeat(md5(random()::text), 2048))) FROM generate_series(1, 240)"""
"""Some 15 MiB of WAL."""

SERVER_SETTINGS: dict[str, str | int | bool] = {
    "wal_level": "replica",
    "archive_mode": True,
    "archive_command": "",
    "wal_keep_size": "64GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "256MB",
    "autovacuum": False,
    "fsync": False,
}

PGKEEP = """
[repository.main]
url = "file://{directory}/repository"
key = "file:{directory}/key"
[cluster.auth]
dsn = "{dsn}"
repositories = ["main"]
wal = {{ spool = "{directory}/spool", push_ahead = {ahead} }}
"""

PGBACKREST = """
[global]
repo1-path={directory}/repo
process-max={processes}
compress-type=zst
compress-level=1
archive-async={asynchronous}
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
    """An ``archive_command``, and a repository that is empty whenever a round begins."""

    name: ClassVar[str]

    def __init__(self, source: Server, directory: Path) -> None:
        self.source = source
        self.directory = directory / type(self).__name__.lower()

    @contextmanager
    def ready(self) -> Iterator[str]:
        """The ``archive_command``, while it can be used."""
        self.directory.mkdir()
        give_to(self.source.account, self.directory)
        try:
            yield self.prepare()
            self.finish()
        finally:
            shutil.rmtree(self.directory)

    @abstractmethod
    def prepare(self) -> str:
        """Make the repository; returns the ``archive_command``."""

    def finish(self) -> None:
        """Wait until nothing of it runs any more, and nothing is left to write."""
        os.sync()


class Alone(Contender):
    name = "pgkeep"
    ahead = 4

    def prepare(self) -> str:
        key = KeyFile.generate(self.directory / "key")
        self.repository = Repository.create(open_store(str(self.directory / "repository")), key)
        config = self.directory / "pgkeep.toml"
        config.write_text(PGKEEP.format(directory=self.directory, dsn=self.source.dsn(), ahead=self.ahead))
        give_to(self.source.account, *self.directory.rglob("*"))
        cluster = load_config(config).cluster("auth")
        state = push_state(cluster.spool)
        return push_line(
            sys.executable, Path(thin_push.__file__), cluster.push_socket, cluster.name, config, state
        ).replace("%%", "%")


class OneByOne(Alone):
    name = "pgkeep, nothing ahead"
    ahead = 0


class WithReceiver(Alone):
    name = "pgkeep, its receiver runs"

    def prepare(self) -> str:
        command = super().prepare()
        log = self.directory / "receiver.log"
        words = [
            sys.executable,
            "-P",
            "-m",
            "pgkeep",
            "--config",
            str(self.directory / "pgkeep.toml"),
            "wal",
            "receive",
        ]
        with log.open("wb") as output:
            self._receiver = subprocess.Popen(
                words, stdout=output, stderr=output, start_new_session=True, **process_identity(self.source.account)
            )
        _until(lambda: "receiving from" in log.read_text(), f"the receiver streams: {log.read_text()}")
        return command

    def finish(self) -> None:
        self._receiver.send_signal(signal.SIGTERM)
        self._receiver.wait(PATIENCE)
        _until(lambda: _query(self.source, "SELECT count(*) FROM pg_replication_slots WHERE active") == "0", "idle")
        _query(self.source, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        super().finish()


class PgBackRest(Contender):
    name = "pgBackRest"
    asynchronous = "n"

    def prepare(self) -> str:
        for name in ("repo", "lock", "spool"):
            (self.directory / name).mkdir()
            give_to(self.source.account, self.directory / name)
        self._configuration = self.directory / "pgbackrest.conf"
        self._configuration.write_text(
            PGBACKREST.format(
                directory=self.directory,
                processes=CORES,
                asynchronous=self.asynchronous,
                data=self.source.data_directory,
                sockets=self.source.socket_directory,
            )
        )
        words = [PROGRAM, f"--config={self._configuration}", "--stanza=bench"]
        answer = run_as(self.source.account, [*words, "stanza-create", "--no-online"])
        if answer.returncode != 0:
            raise PgkeepError(f"pgbackrest stanza-create failed: {answer.stderr.strip() or answer.stdout.strip()}")
        return f"{shlex.join(words)} archive-push %p"


class PgBackRestAsync(PgBackRest):
    name = "pgBackRest, async"
    asynchronous = "y"

    def finish(self) -> None:
        # the process that pushes ahead ends by itself; nobody's measurement starts before that
        place = os.fsencode(self._configuration)
        _until(lambda: not any(place in words for words in _command_lines()), "pgBackRest's background process ends")
        super().finish()


class Copying(Contender):
    """The floor: the file as it is, made durable, without its directory."""

    name = "dd, fsync"

    def prepare(self) -> str:
        return f"dd if=%p of={self.directory}/copy bs=1M conv=fsync status=none"


CONTENDERS: tuple[type[Contender], ...] = (Alone, OneByOne, PgBackRest, PgBackRestAsync, Copying)


def main() -> None:
    options = _parser().parse_args()
    setup.install_missing()
    kinds: tuple[type[Contender], ...] = (*CONTENDERS, WithReceiver)
    calls: dict[str, list[list[float]]] = {kind.name: [] for kind in kinds}
    stored: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="pgkeep-bench-", dir=options.directory) as made:
        directory = Path(made)
        directory.chmod(0o755)
        with open_server(directory / "origin") as source:
            segments = make_wal(source, options.size)
            contenders: list[Contender] = [kind(source, directory) for kind in CONTENDERS]
            receiver = WithReceiver(source, directory)
            for number in range(options.runs + 1):
                results = {contender.name: push_all(contender, segments) for contender in contenders}
                results[receiver.name] = push_streamed(receiver, options.streamed)
                copies = store_all(source, directory, segments)
                for name, seconds in results.items():
                    print(f"round {number}, {name}: {statistics.median(seconds) * 1000:.0f} ms a call", flush=True)
                    if number > 0:
                        calls[name].append(seconds)
                if number > 0:
                    stored.append(copies)
            facts = {**machine.facts(), "postgresql": source.binaries.version_text, "pgbackrest": _pgbackrest_version()}
    text = report(calls, stored, facts)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "wal_push.md").write_text(text)
        document = {"machine": facts, "segments": len(segments), "call_seconds": calls, "store_seconds": stored}
        (RESULTS / "wal_push.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{text}")


def make_wal(source: Server, size: int) -> list[str]:
    """Names of the segments that the server has finished and that nobody has archived."""
    source.initdb()
    source.start(SERVER_SETTINGS)
    _query(source, f"CREATE DATABASE {DATABASE}")
    print(f"writing {format_size(size)} of WAL", flush=True)
    load(source.dsn(DATABASE), users=max(1, size // WAL_BYTES_PER_USER), seed=1, jobs=CORES)
    _query(source, "SELECT pg_switch_wal()")
    return _ready(source)


def push_all(contender: Contender, segments: Sequence[str]) -> list[float]:
    """Seconds of each call, for one segment after the other; the server's marks are set back afterwards."""
    status = contender.source.data_directory / "pg_wal" / "archive_status"
    with contender.ready() as command:
        os.sync()
        try:
            seconds = []
            for name in segments:
                seconds.append(call(contender.source, command, name))
                (status / f"{name}.ready").rename(status / f"{name}.done")
            return seconds
        finally:
            for name in segments:
                if (status / f"{name}.done").exists():
                    (status / f"{name}.done").rename(status / f"{name}.ready")


def push_streamed(contender: WithReceiver, count: int) -> list[float]:
    """Seconds of each call for segments that the server finishes while a receiver streams, each once it has come by the stream."""
    source = contender.source
    status = source.data_directory / "pg_wal" / "archive_status"
    seconds = []
    with contender.ready() as command:
        for _ in range(count):
            before = set(_ready(source))
            _query(source, NOISE)
            end = _query(source, "SELECT pg_switch_wal()::text")
            acknowledged = (
                f"SELECT flush_lsn >= '{end}' FROM pg_stat_replication WHERE application_name = 'pgkeep_auth'"
            )
            _until(lambda: _query(source, acknowledged) == "True", f"the receiver has {end}")  # noqa: B023
            for name in sorted(set(_ready(source)) - before):
                seconds.append(call(source, command, name))
                (status / f"{name}.ready").rename(status / f"{name}.done")
    return seconds


def store_all(source: Server, directory: Path, segments: Sequence[str]) -> list[float]:
    """Seconds for each segment that are the copy itself: read, compressed, sealed, written and durable, in a program that runs."""
    place = directory / "warm"
    wal = Repository.create(open_store(str(place)), KeyFile(bytes(range(32)))).wal(1)
    os.sync()
    seconds = []
    for name in segments:
        started = time.monotonic()
        wal.put(name, (source.data_directory / "pg_wal" / name).read_bytes())
        seconds.append(time.monotonic() - started)
    shutil.rmtree(place)
    return seconds


def call(source: Server, command: str, name: str) -> float:
    """Seconds that the server would wait for its ``archive_command``."""
    line = command.replace("%p", f"pg_wal/{name}")
    identity = {**process_identity(source.account), "cwd": str(source.data_directory)}
    started = time.monotonic()
    answer = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, **identity)  # type: ignore[call-overload]
    seconds = time.monotonic() - started
    if answer.returncode != 0:
        raise PgkeepError(f"{line} ended with {answer.returncode}: {answer.stderr.strip()}")
    return seconds


def report(calls: Mapping[str, list[list[float]]], stored: list[list[float]], facts: Mapping[str, object]) -> str:
    """The results as Markdown."""
    count = len(stored[0])
    size = count * SEGMENT_SIZE
    copy = statistics.median(statistics.median(seconds) for seconds in stored)
    conditions = (
        f"{count} segments that wait to be archived, {format_size(size)}; `archive_command` is run for one after the other, as the server "
        f"runs it. Each figure is the median of {len(stored)} rounds after one to warm up; everybody takes turns, with an empty "
        f"repository. In a call that returns 0 the segment is durable. A call: the median of a round's calls. The copy itself, in a "
        f"program that runs already (read, compress, encrypt, write, fsync), takes pgkeep {copy * 1000:.0f} ms a segment."
    )
    circumstances = (
        f"{facts['postgresql']}, pgBackRest {facts['pgbackrest']} (process-max={CORES}, zst level 1, not encrypted), pgkeep (zstd, "
        f"encrypted; 4 segments ahead unless it says otherwise). {facts['cores']} cores ({facts['processor']}), Linux "
        f"{facts['kernel']}. {utc_now():%Y-%m-%d}."
    )
    lines = [
        "# WAL on its way in: archive_command",
        "",
        conditions,
        "",
        circumstances,
        "",
        "| | all segments, seconds | min–max | segments a second | a second | a call, ms | pgkeep's speed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    ours = statistics.median(sum(seconds) for seconds in calls[Alone.name])
    for name, rounds in calls.items():
        if name == WithReceiver.name:
            continue
        totals = [sum(seconds) for seconds in rounds]
        wall = statistics.median(totals)
        ratio = "" if name == Alone.name else f"{wall / ours:.2f} x"
        lines.append(
            f"| {name} | {wall:.2f} | {min(totals):.2f}–{max(totals):.2f} | {count / wall:.1f} | {format_size(size / wall)} "
            f"| {_call(rounds):.0f} | {ratio} |"
        )
    alone = _call(calls[OneByOne.name])
    receiver = [second * 1000 for seconds in calls[WithReceiver.name] for second in seconds]
    lines += [
        "",
        "## What a call costs over the copy itself",
        "",
        "| | a call, ms | over the copy, ms |",
        "|---|---:|---:|",
        f"| pgkeep, nothing ahead | {alone:.0f} | {alone - copy * 1000:.0f} |",
        f"| pgkeep, its receiver runs | {_call(calls[WithReceiver.name]):.1f} | {_call(calls[WithReceiver.name]):.1f} |",
        "",
    ]
    note = (
        "With a receiver the segment came by the stream while it was written; the call compares it "
        f"({min(receiver):.1f}–{max(receiver):.1f} ms in {len(receiver)} calls)."
    )
    return "\n".join([*lines, note]) + "\n"


def _call(rounds: Sequence[Sequence[float]]) -> float:
    """Milliseconds."""
    return statistics.median(statistics.median(seconds) for seconds in rounds) * 1000


def _ready(source: Server) -> list[str]:
    """Segments that the server has finished and not archived."""
    return sorted(path.stem for path in (source.data_directory / "pg_wal" / "archive_status").glob("*.ready"))


def _query(server: Server, query: str, database: str = "postgres") -> str:
    with psycopg.connect(server.dsn(database), autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise PgkeepError(f"waited in vain: {what}")
        time.sleep(POLL)


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield (entry / "cmdline").read_bytes()


def _pgbackrest_version() -> str:
    return subprocess.run([PROGRAM, "version"], capture_output=True, text=True, check=True).stdout.split()[-1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.wal_push", description=__doc__)
    parser.add_argument("--size", type=parse_size, default="256MiB", help="of the WAL, about (default 256MiB)")
    parser.add_argument("--streamed", type=int, default=8, help="segments a round that come by the stream (default 8)")
    parser.add_argument("--runs", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--directory", type=Path, default=Path("/tmp"), help="where to work (default /tmp)")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    return parser


if __name__ == "__main__":
    main()
