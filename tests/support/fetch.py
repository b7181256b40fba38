"""Fetching WAL in tests: segments with a header of their own, and stores that fail, hang or lie empty on demand."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.errors import StoreError
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.control_file import CONTROL_FILE, parse_control_file
from pgkeep.postgres.recovery_settings import rewrite_settings
from pgkeep.postgres.server import Server
from pgkeep.postgres.wal import WalFileKind, classify, parse_segment_name, segment_name
from pgkeep.repository import Repository
from pgkeep.repository.store import open_store
from pgkeep.repository.wal_objects import piece_name
from pgkeep.wal.fetch_source import WalSource
from support.jobs import KEY, backup, new_repository, restore, server_place
from support.servers import sql
from support.wal import current_lsn, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeep.postgres.server import ThrowawayServer
    from pgkeep.repository.wal_objects import WalArchive

__all__ = ["CLUSTER", "SIZE", "Copy", "Origin", "TroubledStore", "give_tree", "make_segment", "name_of", "source_at"]

SIZE = 1 << 20
CLUSTER = 7123456789012345678
_VERBS_TO_READ = ("get", "info", "list", "folders")


def name_of(number: int, timeline: int = 1) -> str:
    """The name of a segment by its number, of 1 MiB each."""
    return segment_name(timeline, number * SIZE, SIZE)


def make_segment(number: int, timeline: int = 1, *, cluster: int = CLUSTER) -> bytes:
    """Bytes that begin as a segment of PostgreSQL 15 does; the rest tells which one it is."""
    header = struct.pack("<HHIQI4xQII", 0xD110, 2, timeline, number * SIZE, 0, cluster, SIZE, 8192)
    return header + bytes([timeline, number % 256]) * ((SIZE - len(header)) // 2)


class TroubledStore:
    """A store that works until told otherwise: ``fail`` and ``hang`` hold for everything that reads."""

    def __init__(self, place: Path) -> None:
        self._store = open_store(str(place))
        self.failing = False
        self.healthy = threading.Event()
        self.healthy.set()
        self.asked: list[tuple[str, str]] = []
        self._when: tuple[str, Callable[[], None]] | None = None

    def when_asked(self, name: str, action: Callable[[], None]) -> None:
        """Do this once, when a file of this name is read; then answer."""
        self._when = name, action

    def fail(self) -> None:
        """From now on nothing can be read."""
        self.failing = True

    def hang(self) -> None:
        """From now on nothing is answered, until ``healthy`` is set."""
        self.healthy.clear()

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._store, verb)
        if verb not in _VERBS_TO_READ:
            return found

        def call(name: str, *arguments: Any) -> Any:
            self.asked.append((verb, name))
            if self._when is not None and verb == "get" and name.endswith("/" + self._when[0]):
                action, self._when = self._when[1], None
                action()
            self.healthy.wait()
            if self.failing:
                raise StoreError(f"cannot read {name}: connection reset by peer")
            return found(name, *arguments)

        return call


def source_at(place: Path, name: str = "main") -> tuple[WalSource, TroubledStore, Repository]:
    """A repository as `restore_command` sees it, made where there is none."""
    if not place.exists():
        Repository.create(open_store(str(place)), KEY)
    store = TroubledStore(place)
    repository = Repository.open(store, KEY)
    return WalSource.of(name, repository, CLUSTER), store, repository


class Origin:
    """A running server with a backup in a repository, and a hand that stores its WAL there."""

    def __init__(self, server: ThrowawayServer, place: Path) -> None:
        self.server = server
        self.place = place
        self.repository = new_repository(place)
        self.dsn = server.dsn()
        sql(self.dsn, "CREATE TABLE rows (number int PRIMARY KEY, filler text)")
        backup(self.dsn, self.repository)
        self.system_identifier = int(sql(self.dsn, "SELECT system_identifier FROM pg_control_system()")[0][0])
        self._stored: set[str] = set()
        self._pieces: dict[str, int] = {}

    @property
    def archive(self) -> WalArchive:
        """The WAL in the repository."""
        return self.repository.wal(self.system_identifier)

    def middle(self) -> str:
        """The name of a segment in the middle of what recovery needs."""
        names = [name for name, _ in self.archive.names(1)]
        return names[len(names) // 2 + 1]

    def source(self) -> WalSource:
        """The repository, for a prefetcher."""
        return WalSource.of("main", self.repository, self.system_identifier)

    def insert(self, first: int, last: int) -> None:
        """Rows of these numbers, of some 2 kB each."""
        sql(
            self.dsn,
            "INSERT INTO rows SELECT n, (SELECT string_agg(md5((g + n * 1000)::text), '') FROM generate_series(1, 60) g)"
            f" FROM generate_series({first}, {last}) n",
        )

    def store_finished(self, *, switch: bool = True) -> list[str]:
        """Store all finished segments, and what else lies beside them; the names of those that are new."""
        if switch:
            sql(self.dsn, "SELECT pg_switch_wal()")
        written = current_lsn(self.dsn)
        new = []
        for path in sorted((self.server.data_directory / "pg_wal").iterdir()):
            kind = classify(path.name)
            finished = kind is WalFileKind.SEGMENT and parse_segment_name(path.name, SIZE)[1] + SIZE <= written
            if path.name not in self._stored and (finished or kind in {WalFileKind.HISTORY, WalFileKind.PARTIAL}):
                self.archive.put(path.name, path.read_bytes())
                self._stored.add(path.name)
                new.append(path.name)
        return new

    def store_piece(self) -> str:
        """Store what is new of the open segment; its name."""
        name, offset = sql(self.dsn, "SELECT (pg_walfile_name_offset(pg_current_wal_flush_lsn())).*")[0]
        before = self._pieces.get(name, 0)
        if offset > before:
            data = (self.server.data_directory / "pg_wal" / name).read_bytes()
            self.archive.put(piece_name(name, before, offset), data[before:offset])
            self._pieces[name] = offset
        return str(name)

    def give_away(self, *paths: Path) -> None:
        """Let the servers' account read the repository, for what they run themselves."""
        give_tree(self.place, *paths)


def give_tree(*places: Path) -> None:
    """Everything below these belongs to the servers' account."""
    account = server_account()
    for place in places:
        give_to(account, place, *place.rglob("*"))


class Copy(Server):
    """A restored data directory without WAL, whose recovery is steered by ``restore_command`` alone."""

    def __init__(self, origin: Origin, target: Path, restore_command: str, **settings: str) -> None:
        """``standby="on"`` makes it a standby; the other settings go into its ``postgresql.auto.conf``."""
        restore(origin.repository, server_place(target.parent) / target.name, backup="latest")
        super().__init__(target, origin.server.binaries)
        signal_file = "standby.signal" if settings.pop("standby", None) else "recovery.signal"
        for old in ("recovery.signal", "standby.signal"):
            (target / old).unlink(missing_ok=True)
        (target / signal_file).touch()
        for path in (target / "pg_wal").iterdir():
            if path.is_file():
                path.unlink()
        chosen = {
            "restore_command": restore_command,
            "recovery_target": "",
            "recovery_target_timeline": "latest",
            "recovery_target_action": "promote",
            "wal_retrieve_retry_interval": "200ms",
            "fsync": "off",
            **settings,
        }
        auto_conf = target / "postgresql.auto.conf"
        auto_conf.write_text(
            rewrite_settings(auto_conf.read_text(), remove=[], add=chosen, comment="a test's own recovery")
        )
        give_to(self.account, target / signal_file, auto_conf)

    @property
    def log(self) -> str:
        """All that the server logged."""
        return self.log_file.read_text(errors="replace")

    def rows(self) -> list[int]:
        """The numbers of the rows."""
        return [number for (number,) in sql(self.dsn(), "SELECT number FROM rows ORDER BY number")]

    def wait_promoted(self) -> None:
        """Until it accepts writes."""
        until(lambda: sql(self.dsn(), "SELECT pg_is_in_recovery()") == [(False,)], f"promoted:\n{self.log_tail()}", 60)

    def wait_stopped(self) -> None:
        """Until the server has ended by itself."""
        until(lambda: not self.is_running, f"stopped:\n{self.log_tail()}", 60)

    def expect_no_promotion(self) -> None:
        """It ended in recovery: no new timeline was chosen."""
        control = parse_control_file((self.data_directory / CONTROL_FILE).read_bytes())
        assert control.timeline == 1
        assert "selected new timeline ID" not in self.log
        assert "archive recovery complete" not in self.log
        assert not list((self.data_directory / "pg_wal").glob("*.history"))
