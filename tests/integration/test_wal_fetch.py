"""Servers that recover by ``restore_command``: from a prefetcher in this process, from one of their own, and from none."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.repository import KeyFile
from pgkeep.wal.fetch import restore_command
from pgkeep.wal.prefetch import Prefetcher
from support.fetch import SIZE, Copy, Origin
from support.jobs import KEY
from support.servers import MakeServer, sql
from support.wal import until

if TYPE_CHECKING:
    from collections.abc import Callable

WAL_SETTINGS: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "max_wal_size": "1GB"}


@pytest.fixture
def make_origin(make_server: MakeServer, work_dir: Path) -> Callable[[int], Origin]:
    """A server with small segments, a table and a backup."""

    def make(major: int) -> Origin:
        return Origin(make_server(major, wal_segment_size=1, settings=WAL_SETTINGS), work_dir / "repository")

    return make


def prefetching(origin: Origin, copy: Copy, **options: object) -> Prefetcher:
    chosen: dict[str, object] = {"depth": 8, "jobs": 2, **options}
    return Prefetcher(copy.data_directory / "pg_wal", [origin.source()], SIZE, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("major", [15, 17, 18])
def test_recovery_reaches_the_end_of_the_archive_and_of_its_pieces(
    major: int, make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(major)
    origin.insert(1, 3000)
    assert len(origin.store_finished()) > 5
    origin.insert(3001, 3010)
    origin.store_piece()
    origin.insert(3011, 3020)
    origin.store_piece()
    with Copy(origin, work_dir / "c" / "data", restore_command([])) as copy, prefetching(origin, copy) as prefetcher:
        copy.start()
        copy.wait_promoted()
        assert copy.rows() == list(range(1, 3021))
        assert prefetcher.fetched_segments > 5
        assert "selected new timeline ID: 2" in copy.log
        assert "restored log file" in copy.log


def test_recovery_stops_at_its_target(make_origin: Callable[[int], Origin], work_dir: Path) -> None:
    origin = make_origin(17)
    origin.insert(1, 1000)
    lsn = sql(origin.dsn, "SELECT pg_create_restore_point('here')")[0][0]
    origin.insert(1001, 3000)
    origin.store_finished()
    line = restore_command([])
    with (
        Copy(origin, work_dir / "c" / "data", line, recovery_target_name="here") as copy,
        prefetching(origin, copy, limit_lsn=_lsn(lsn)) as prefetcher,
    ):
        copy.start()
        copy.wait_promoted()
        assert copy.rows() == list(range(1, 1001))
        # what lies behind the target was not brought, but for the odd one that recovery reads ahead
        assert prefetcher.fetched_segments < len(list(origin.archive.names(1))) // 2 + 3


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_a_timeline_switch_is_followed_with_its_history(make_origin: Callable[[int], Origin], work_dir: Path) -> None:
    origin = make_origin(15)
    origin.insert(1, 1000)
    origin.store_finished()
    line = restore_command([])
    with ExitStack() as stack:
        # the standby waits at the end of timeline 1 when a copy is promoted onto timeline 2
        standby = stack.enter_context(Copy(origin, work_dir / "s" / "data", line, standby="on"))
        stack.enter_context(prefetching(origin, standby))
        standby.start()
        until(lambda: standby.rows() == list(range(1, 1001)), "all rows on the standby")
        promoted = stack.enter_context(Copy(origin, work_dir / "p" / "data", line))
        stack.enter_context(prefetching(origin, promoted))
        promoted.start()
        promoted.wait_promoted()
        origin.server, origin.dsn = promoted, promoted.dsn()  # type: ignore[assignment]  # what is stored comes from it now
        origin.insert(1001, 2000)
        assert "00000002.history" in origin.store_finished()
        until(lambda: standby.rows() == list(range(1, 2001)), f"the rows of timeline 2:\n{standby.log_tail()}")
        assert sql(standby.dsn(), "SELECT timeline_id FROM pg_control_checkpoint()")[0][0] in {1, 2}
        assert "new target timeline is 2" in standby.log


# A server on its own: the full program where no prefetcher answers, which starts one


@pytest.fixture
def make_program(work_dir: Path) -> Callable[[Origin], str]:
    """``restore_command`` for a server that nobody stands beside, with a configuration of two repositories' form."""
    place = work_dir / "etc"

    def make(origin: Origin) -> str:
        place.mkdir()
        (place / "pgkeep.key").write_text(KeyFile.text(KEY))
        (place / "pgkeep.key").chmod(0o600)
        (place / "pgkeep.toml").write_text(
            f'[repository.main]\nurl = "file://{origin.place}"\nkey = "file:{place}/pgkeep.key"\n'
            '[cluster.auth]\ndsn = "host=/nowhere"\nrepositories = ["main"]\nwal = { prefetch = 4 }\n'
        )
        origin.give_away(place)
        return restore_command(
            [sys.executable, "-P", "-m", "pgkeep", "wal", "fetch", "--config", str(place / "pgkeep.toml")]
        )

    return make


def prefetchers(copy: Copy) -> list[int]:
    """Processes that prefetch for a server."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and b"--serve" in (entry / "cmdline").read_bytes().split(b"\0")
                and (entry / "cwd").readlink() == copy.data_directory
            ):
                found.append(int(entry.name))
    return found


def is_serving(copy: Copy) -> bool:
    """Whether a prefetcher has come so far as to listen."""
    return (copy.data_directory / "pg_wal" / "pgkeep.prefetch" / "socket").exists()


@pytest.mark.parametrize("major", [15, 18])
def test_a_standby_on_its_own_follows_pieces_and_then_whole_segments(
    major: int, make_origin: Callable[[int], Origin], make_program: Callable[[Origin], str], work_dir: Path
) -> None:
    origin = make_origin(major)
    origin.insert(1, 500)
    origin.store_finished()
    line = make_program(origin)
    with Copy(origin, work_dir / "c" / "data", line, standby="on") as copy:
        copy.start()
        until(lambda: copy.rows() == list(range(1, 501)), f"the first rows:\n{copy.log_tail()}")
        reached = 500
        for whole in (False, False, True, False, True):
            origin.insert(reached + 1, reached + 60)
            reached += 60
            if whole:
                origin.store_finished()
            else:
                origin.store_piece()
            origin.give_away()
            until(lambda: copy.rows() == list(range(1, reached + 1)), f"rows up to {reached}:\n{copy.log_tail()}")  # noqa: B023
        (prefetcher,) = prefetchers(copy)
        session = int(Path(f"/proc/{prefetcher}/stat").read_text().rpartition(")")[2].split()[3])
        assert session == prefetcher
        copy.stop()
        until(lambda: not prefetchers(copy), "the prefetcher ended with its server")
        spool = copy.data_directory / "pg_wal" / "pgkeep.prefetch"
        assert sorted(path.name for path in spool.iterdir()) == ["lock", "log"]
        assert (spool / "log").read_text() == ""


def test_a_server_on_its_own_recovers_though_its_prefetcher_is_killed_again_and_again(
    make_origin: Callable[[int], Origin], make_program: Callable[[Origin], str], work_dir: Path
) -> None:
    origin = make_origin(17)
    origin.insert(1, 5000)
    origin.store_finished()
    line = make_program(origin)
    killed: set[int] = set()
    with Copy(origin, work_dir / "c" / "data", line) as copy:
        copy.start(wait=False)

        def kill_or_promoted() -> bool:
            if is_serving(copy) and len(killed) < 3:
                for process in set(prefetchers(copy)) - killed:
                    os.kill(process, signal.SIGKILL)
                    killed.add(process)
            return copy.status() == "ready" and sql(copy.dsn(), "SELECT pg_is_in_recovery()") == [(False,)]

        until(kill_or_promoted, f"recovered:\n{copy.log_tail()}", 60)
        assert copy.rows() == list(range(1, 5001))
    assert killed
