"""Branches: a server that was promoted, one that diverged, and recoveries across and onto each of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.postgres.control_file import parse_control_file
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import Server
from pgkeep.postgres.wal import WalFileKind, classify, parse_segment_name, read_segment_header
from pgkeep.repository import Repository
from pgkeep.restore.target import RecoveryTarget
from support.jobs import backup, new_repository, restore, server_place
from support.servers import MakeServer, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.restore import RestoreOutcome


def store_wal(server: Server, repository: Repository) -> None:
    """Bring all finished segments and histories of a server into the repository, as its archiver would."""
    sql(server.dsn(), "SELECT pg_switch_wal()")
    control = parse_control_file((server.data_directory / "global" / "pg_control").read_bytes())
    archive = repository.wal(control.system_identifier)
    current = LSN.parse(str(sql(server.dsn(), "SELECT pg_current_wal_flush_lsn()")[0][0]))
    for path in sorted((server.data_directory / "pg_wal").iterdir()):
        kind = classify(path.name)
        if kind is WalFileKind.HISTORY:
            archive.put(path.name, path.read_bytes())
        elif kind is WalFileKind.SEGMENT:
            _, start = parse_segment_name(path.name, control.wal_segment_size)
            data = path.read_bytes()
            if start + control.wal_segment_size <= current and read_segment_header(data[:40]).page_address == start:
                archive.put(path.name, data)


@dataclass
class Moment:
    """A moment of a server: the rows that it had, and how to name it."""

    rows: set[str]
    time: str
    lsn: str


class Branch:
    """A server that writes rows, and notes moments between them."""

    def __init__(self, server: Server, outcome: RestoreOutcome | None = None) -> None:
        self.server = server
        self.outcome = outcome
        self.rows: set[str] = {str(row[0]) for row in sql(server.dsn(), "SELECT word FROM words")}

    @property
    def timeline(self) -> int:
        """The timeline that recovery ended on."""
        assert self.outcome is not None
        assert self.outcome.recovery is not None
        return self.outcome.recovery.timeline

    @property
    def backup(self) -> str:
        """The id of the backup that it came from."""
        assert self.outcome is not None
        return self.outcome.plan.manifest.id

    def write(self, *words: str) -> Moment:
        for word in words:
            sql(self.server.dsn(), "INSERT INTO words VALUES (%s)", [word])
        self.rows |= set(words)
        time, lsn = sql(self.server.dsn(), "SELECT clock_timestamp()::text, pg_current_wal_insert_lsn()::text")[0]
        sql(self.server.dsn(), "SELECT pg_sleep(0.01)")
        return Moment(set(self.rows), str(time), str(lsn))


@pytest.fixture
def make_copy(work_dir: Path, binaries_of: Callable[[int], ServerBinaries]) -> Iterator[Callable[..., Branch]]:
    """Restore to a target, beside whatever else runs; gives the recovered server, which is stopped after the test."""
    started: list[Server] = []

    def make(repository: Repository, major: int, recovery: RecoveryTarget, **options: object) -> Branch:
        target = server_place(work_dir / f"copy{len(started)}") / "data"
        server = Server(target, binaries_of(major))
        started.append(server)
        outcome = restore(repository, target, recovery=recovery, start=True, settings={"fsync": "off"}, **options)
        assert outcome.dsn is not None
        server.socket_directory = Path(outcome.dsn.split("host=")[1].split()[0])
        return Branch(server, outcome)

    yield make
    for server in started:
        server.stop("immediate")


def latest(timeline: int | None = None) -> RecoveryTarget:
    return RecoveryTarget(kind="latest", timeline=timeline)


@pytest.mark.parametrize("major", [15, 18])
def test_every_branch_can_be_reached_and_every_moment_of_it(
    major: int, make_server: MakeServer, work_dir: Path, make_copy: Callable[..., Branch]
) -> None:
    server = make_server(major, wal_segment_size=1)
    sql(server.dsn(), "CREATE TABLE words (word text)")
    repository = new_repository(work_dir / "repository")
    first_backup = backup(server.dsn(), repository)
    main = Branch(server)
    a = main.write("a1", "a2")
    fork = main.write("fork")
    b = main.write("b1", "b2")
    store_wal(server, repository)

    # a copy that ended recovery at the fork is a branch of its own, and writes on
    side = make_copy(repository, major, RecoveryTarget(kind="time", value=fork.time))
    assert (side.rows, side.timeline) == (fork.rows, 2)
    c = side.write("c1", "c2")
    store_wal(side.server, repository)
    d = main.write("d1")
    store_wal(server, repository)

    assert make_copy(repository, major, latest(1)).rows == d.rows
    onto = make_copy(repository, major, latest(2))
    assert (onto.rows, onto.timeline) == (c.rows, 3)
    assert make_copy(repository, major, latest()).rows == c.rows
    # the moment lies on both branches' past, and only the first has it in its future
    assert make_copy(repository, major, RecoveryTarget(kind="time", value=a.time)).rows == a.rows
    assert make_copy(repository, major, RecoveryTarget(kind="time", value=b.time, timeline=1)).rows == b.rows

    # a backup of the new branch begins there, and the old branch is still reached from the old backup
    second_backup = backup(side.server.dsn(), repository)
    e = side.write("e1")
    store_wal(side.server, repository)
    from_second = make_copy(repository, major, latest())
    assert (from_second.rows, from_second.backup) == (e.rows, second_backup.id)
    old = make_copy(repository, major, RecoveryTarget(kind="lsn", value=b.lsn, timeline=1))
    assert (old.rows, old.backup) == (b.rows, first_backup.id)
    across = make_copy(repository, major, RecoveryTarget(kind="time", value=c.time), backup=first_backup.id)
    assert across.rows == c.rows
