"""WAL in tests: a cluster's configuration, a receiver as a program or in a thread, writers, and comparisons byte by byte."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.config import load_config
from pgkeep.opening import open_repository
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import Server
from pgkeep.postgres.wal import segment_name, segment_start
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.wal.events import Event
from pgkeep.wal.inventory import WalInventory, load_segment
from pgkeep.wal.receive import WalReceiver
from support.jobs import server_place
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pgkeep.config import Cluster, Config

__all__ = [
    "WAL_SETTINGS",
    "ReceiverProgram",
    "ReceiverThread",
    "Setup",
    "change_setting",
    "current_lsn",
    "expect_same_wal",
    "kill_process",
    "make_setup",
    "promote",
    "reach_of",
    "replayed",
    "standby_of",
    "system_identifier",
    "until",
    "write_wal",
    "writing",
]

WAL_SETTINGS: dict[str, str | int | bool] = {
    "wal_keep_size": "1GB",
    "max_wal_size": "2GB",
    "wal_sender_timeout": "10s",
    "wal_level": "replica",
}
"""For a server whose pg_wal is compared with what was received: it keeps all of it."""


def until(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = 30) -> None:
    """Wait until something holds; AssertionError with ``what`` where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


@dataclass
class Setup:
    """A configuration file with one cluster, ``auth``, and its repositories."""

    directory: Path
    path: Path
    repositories: list[str] = field(default_factory=lambda: ["main"])

    @property
    def config(self) -> Config:
        """The settings."""
        return load_config(self.path)

    @property
    def cluster(self) -> Cluster:
        """The cluster's settings."""
        return self.config.cluster()

    @property
    def spool(self) -> Path:
        """Where WAL waits."""
        return self.directory / "spool"

    def repository(self, name: str = "main") -> Repository:
        """A repository, opened."""
        return open_repository(self.config.repository(name))

    def place(self, name: str = "main") -> Path:
        """A repository's directory."""
        return self.directory / name


def make_setup(
    directory: Path,
    dsn: str,
    *,
    repositories: Mapping[str, bool] | None = None,
    **wal: str | float | bool,
) -> Setup:
    """Make repositories (name -> encrypted), a key, and the file that names them; ``wal`` are settings of the cluster."""
    chosen = {"main": True} if repositories is None else dict(repositories)
    directory.mkdir(exist_ok=True)
    key_path = directory / "pgkeep.key"
    key = KeyFile.read(key_path) if key_path.exists() else KeyFile.generate(key_path)
    settings = {"spool": str(directory / "spool"), "ship_every": "1s", "slot_cap": "none", **wal}
    lines = []
    for name, encrypted in chosen.items():
        Repository.create(open_store(str(directory / name)), key if encrypted else None)
        secret = f"file:{key_path}" if encrypted else "none"
        lines += [f"[repository.{name}]", f'url = "file://{directory / name}"', f'key = "{secret}"']
    values = ", ".join(f"{name} = {_toml(value)}" for name, value in settings.items())
    names = ", ".join(f'"{name}"' for name in chosen)
    lines += ["[cluster.auth]", f"dsn = {_toml(dsn)}", f"repositories = [{names}]", f"wal = {{ {values} }}"]
    path = directory / "pgkeep.toml"
    path.write_text("\n".join(lines) + "\n")
    return Setup(directory, path, list(chosen))


def _toml(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class ReceiverThread:
    """A receiver in a thread of the test, with all that it said; use as a context manager: leaving it stops it in order."""

    def __init__(self, setup: Setup, *, on_gap: Callable[[str], None] | None = None, **options: object) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.receiver = WalReceiver(
            setup.config,
            setup.cluster,
            on_gap=on_gap,
            on_event=self.events.append,
            **options,  # type: ignore[arg-type]
        )
        self._thread = threading.Thread(target=self._run, name="receiver")

    def __enter__(self) -> ReceiverThread:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop()
        if kind is None and self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End it in order, and wait."""
        self.receiver.stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the receiver did not stop"

    def join(self, seconds: float = 30) -> None:
        """Wait for it to end by itself."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the receiver did not end by itself"

    def said(self, kind: str, level: str | None = None) -> bool:
        """Whether there was an event of this kind."""
        return any(event.kind == kind and level in {None, event.level} for event in self.events)

    def wait_for(self, kind: str, level: str | None = None, seconds: float = 30) -> None:
        """Wait for such an event."""

        def happened() -> bool:
            assert self.error is None or self.said(kind, level), self.error
            return self.said(kind, level)

        until(happened, lambda: f"{level or 'event'} {kind!r}; there were {self.events}", seconds)

    def wait_durable(self, lsn: LSN, seconds: float = 30) -> None:
        """Wait until WAL up to ``lsn`` is durable in the spool."""

        def durable() -> bool:
            assert self.error is None, self.error
            spool = self.receiver.spool
            return spool is not None and spool.durable is not None and spool.durable.lsn >= lsn

        until(durable, lambda: f"WAL up to {lsn} durable; {self.receiver.status()}; {self.events}", seconds)

    def wait_shipped(self, lsn: LSN, seconds: float = 30) -> None:
        """Wait until every repository has WAL up to ``lsn``."""
        until(
            lambda: self.receiver.has_shipped(lsn),
            lambda: f"shipped {lsn}; {self.receiver.status()}; {self.events}",
            seconds,
        )

    def _run(self) -> None:
        try:
            self.receiver.run()
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            self.error = error


class ReceiverProgram:
    """``pgkeep wal receive`` as a process of its own, its messages in a file."""

    def __init__(self, setup: Setup, *arguments: str) -> None:
        self.setup = setup
        self.log = setup.directory / "receiver.log"
        command = [sys.executable, "-m", "pgkeep", "--config", str(setup.path), "wal", "receive", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def __enter__(self) -> ReceiverProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it in order; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(40)

    def said(self) -> str:
        """All that receivers of this setup said."""
        return self.log.read_text(errors="replace")


def current_lsn(dsn: str) -> LSN:
    """Where the server's WAL is flushed to."""
    return LSN.parse(sql(dsn, "SELECT pg_current_wal_flush_lsn()::text")[0][0])


def system_identifier(dsn: str) -> int:
    """The cluster's identity."""
    found: int = sql(dsn, "SELECT system_identifier FROM pg_control_system()")[0][0]
    return found


def write_wal(dsn: str, megabytes: float) -> LSN:
    """Make the server write so much WAL; returns where it is flushed to then."""
    sql(
        dsn,
        "SELECT count(pg_logical_emit_message(false, 'test', repeat(md5(random()::text), 2048)))"
        f" FROM generate_series(1, {max(round(megabytes * 16), 1)})",
    )
    # the last messages are flushed with a commit
    sql(dsn, "SELECT pg_logical_emit_message(true, 'test', 'end')")
    return current_lsn(dsn)


def reach_of(setup: Setup, identifier: int, start: int, *, timeline: int = 1, segment_size: int = 1 << 20) -> LSN:
    """How far a repository's WAL goes without a gap from ``start`` on, in every repository of the setup: the least."""
    ends = []
    for name in setup.repositories:
        inventory = WalInventory.read(setup.repository(name).wal(identifier), segment_size)
        found = inventory.timelines.get(timeline)
        ends.append(found.reach(start) if found is not None else LSN(0))
    return min(ends)


def expect_same_wal(
    setup: Setup,
    server: Server,
    identifier: int,
    start: int,
    end: int,
    *,
    timeline: int = 1,
    segment_size: int = 1 << 20,
) -> None:
    """Every repository has the bytes ``[start, end)`` that stand in the server's pg_wal."""
    for name in setup.repositories:
        archive = setup.repository(name).wal(identifier)
        wal = WalInventory.read(archive, segment_size).timelines[timeline]
        assert wal.reach(start) >= end, f"{name}: WAL from {LSN(start)} ends at {wal.reach(start)}, short of {LSN(end)}"
        for first in range(segment_start(start, segment_size), end, segment_size):
            data, size = load_segment(archive, wal, first)
            stop = min(size, end - first)
            there = (server.data_directory / "pg_wal" / segment_name(timeline, first, segment_size)).read_bytes()
            assert data[:stop] == there[:stop], f"{name}: segment at {LSN(first)} differs from the server's"


@contextlib.contextmanager
def writing(dsn: str, *, megabytes: float = 0.2, pause: float = 0.02) -> Iterator[list[LSN]]:
    """Write WAL in a thread while the test goes on; gives the flushed positions, the newest last."""
    stop = threading.Event()
    positions = [current_lsn(dsn)]

    def write() -> None:
        while not stop.wait(pause):
            positions.append(write_wal(dsn, megabytes))

    thread = threading.Thread(target=write, name="writer")
    thread.start()
    try:
        yield positions
    finally:
        stop.set()
        thread.join()


def kill_process(pid: int) -> None:
    """SIGKILL, where it lives."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def standby_of(
    primary: Server, directory: Path, settings: Mapping[str, str | int | bool] | None = None
) -> Iterator[Server]:
    """A running standby of the server, in a directory that its account owns; it follows by streaming, without a slot."""
    data = server_place(directory) / "data"
    run_program(primary, "pg_basebackup", "-D", data, "-X", "stream", "-c", "fast", "-d", primary.dsn())
    standby = Server(data, primary.binaries)
    conninfo = primary.dsn(application_name="standby").replace("'", "''")
    with (data / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(f"primary_conninfo = '{conninfo}'\n")
    (data / "standby.signal").touch()
    with standby:
        standby.start({**TEST_SETTINGS, **WAL_SETTINGS, "wal_retrieve_retry_interval": "100ms", **(settings or {})})
        yield standby


def promote(standby: Server) -> None:
    """Make a standby a primary, on a new timeline."""
    assert sql(standby.dsn(), "SELECT pg_promote()") == [(True,)]


def replayed(standby: Server) -> LSN:
    """How far a standby's WAL reaches."""
    return LSN.parse(sql(standby.dsn(), "SELECT pg_last_wal_receive_lsn()::text")[0][0])


def change_setting(dsn: str, name: str, value: str) -> None:
    """Set a server's setting and let it be read; ``value`` as SQL."""
    sql(dsn, f"ALTER SYSTEM SET {name} = {value}")
    sql(dsn, "SELECT pg_reload_conf()")
