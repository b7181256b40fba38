"""What can happen to a push: it is killed, its repository goes away or fills up. No file is ever taken for stored that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import StoreError
from pgkeep.postgres.account import process_identity
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.wal.push_settings import push_state
from support.disks import small_disk
from support.fetch import give_tree
from support.push import (
    ARCHIVING,
    archive_by,
    direct_command,
    direct_words,
    done,
    expect_stored,
    finish_segments,
    make_push_setup,
    markers,
    push,
    ready,
    stored,
    wait_archived,
)
from support.servers import TEST_SETTINGS, MakeServer, sql
from support.wal import Setup, kill_process, make_setup, system_identifier, until, write_wal, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = int(os.environ.get("PGKEEP_PUSH_KILLS", "20"))
_SERVER_KILLS = max(_KILLS // 4, 1)


@pytest.fixture(scope="module")
def keeper(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server with small segments that wait for an archive_command, which it has not; tests push them by hand."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **ARCHIVING})
        finish_segments(server, 8)
        yield server


def _expect_no_false_word(setup: Setup, server: ThrowawayServer, identifier: int) -> None:
    """Whatever is said to be stored, by the server or by a marker, is there, whole."""
    said = {*markers(setup), *done(server)}
    # read after the word was given: what is said from now on is looked at next time
    archive = setup.repository().wal(identifier)
    for name in said:
        path = server.data_directory / "pg_wal" / name
        assert archive.get(name) == path.read_bytes(), f"{name}; seed {_SEED}"


@pytest.mark.timeout(60 + 10 * _KILLS)
def test_a_push_that_is_killed_at_a_random_moment_has_said_nothing_that_is_not_so(
    keeper: ThrowawayServer, work_dir: Path
) -> None:
    """Markers of what was pushed ahead are the only word that outlives it. After all kills, a push finds all well."""
    chance = random.Random(_SEED)
    setup = make_push_setup(work_dir / "pgkeep", keeper.dsn())
    identifier = system_identifier(keeper.dsn())
    names = ready(keeper)
    identity = {**process_identity(keeper.account), "cwd": str(keeper.data_directory)}
    begun = time.monotonic()
    assert push(keeper, direct_command(setup), names[0])[0] == 0
    usual = time.monotonic() - begun
    killed = 0
    for number in range(_KILLS):
        name = names[number % (len(names) - 1)]
        with subprocess.Popen([*direct_words(setup), f"pg_wal/{name}"], **identity) as process:  # type: ignore[call-overload]
            time.sleep(chance.uniform(0, usual))
            kill_process(process.pid)
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            assert name in stored(setup, identifier)
        _expect_no_false_word(setup, keeper, identifier)
    assert killed > 0

    for name in names:
        assert push(keeper, direct_command(setup), name) == (0, "")

    found = stored(setup, identifier)
    assert {name: found[name] for name in names} == {
        name: (keeper.data_directory / "pg_wal" / name).read_bytes() for name in names
    }
    assert [path for path in (push_state(setup.spool) / "pushed").iterdir() if path.suffix != ".mark"] == []


@pytest.mark.timeout(60 + 10 * _KILLS)
def test_a_server_whose_pushes_are_killed_archives_everything_all_the_same(
    make_server: MakeServer, work_dir: Path
) -> None:
    """The shell says 1 for a client that was killed: told of a signal, the archiver would end, and rest for ten seconds."""
    chance = random.Random(_SEED + 1)
    server = make_server(17, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", server.dsn())
    identifier = system_identifier(server.dsn())
    archive_by(server.dsn(), f"{direct_command(setup)} || exit 1")
    with writing(server.dsn(), megabytes=0.3, pause=0.05):
        for _ in range(_SERVER_KILLS):
            until(lambda: _pushing(setup), "a push")
            time.sleep(chance.uniform(0, 0.3))
            for process in _pushing(setup):
                kill_process(process)
            _expect_no_false_word(setup, server, identifier)
    write_wal(server.dsn(), 1)
    wait_archived(server)

    assert sql(server.dsn(), "SELECT failed_count > 0 FROM pg_stat_archiver") == [(True,)]
    expect_stored(setup, server, identifier, set())


def _pushing(setup: Setup) -> list[int]:
    """The processes that push for this setup now, but for the shell between them and the server."""
    wanted = os.fsencode(setup.path)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in words and b"pgkeep.wal.push_program" in words:
                found.append(int(entry.name))
    return found


def test_a_repository_that_is_away_stops_archiving_and_not_the_server_and_all_is_archived_once_it_is_back(
    make_server: MakeServer, work_dir: Path
) -> None:
    server = make_server(17, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", server.dsn())
    identifier = system_identifier(server.dsn())
    archive_by(server.dsn(), direct_command(setup))
    write_wal(server.dsn(), 2)
    wait_archived(server)
    hidden = setup.place().with_name("hidden")
    setup.place().rename(hidden)
    waiting = finish_segments(server, 4)
    until(lambda: sql(server.dsn(), "SELECT failed_count > 0 FROM pg_stat_archiver") == [(True,)], "a failure")
    assert "is not a pgkeep repository" in server.log_tail(200)
    sql(server.dsn(), "CREATE TABLE meanwhile (number int); INSERT INTO meanwhile VALUES (1)")
    assert set(waiting) <= set(ready(server))
    assert markers(setup) == []

    hidden.rename(setup.place())
    # the archiver rests for up to a minute after three failures, unless there is something new
    finish_segments(server, 1)
    wait_archived(server)

    assert set(waiting) <= set(done(server))
    expect_stored(setup, server, identifier, set())


def test_a_full_repository_is_one_clear_error_with_nothing_half_and_room_mends_it(
    keeper: ThrowawayServer, work_dir: Path
) -> None:
    """Two of the segments of random bytes fit, and no third; what was pushed ahead in vain has no marker."""
    identifier = system_identifier(keeper.dsn())
    with small_disk(work_dir / "disk", "16M"):
        setup = make_setup(work_dir / "disk" / "pgkeep", keeper.dsn(), spool=str(work_dir / "state" / "spool"))
        (work_dir / "state").mkdir()
        give_tree(work_dir / "disk", work_dir / "state")
        sql(keeper.dsn(), "SELECT pg_switch_wal()")
        names = _fill_with_noise(keeper)
        ballast = work_dir / "disk" / "ballast"
        free = os.statvfs(work_dir / "disk").f_bavail * os.statvfs(work_dir / "disk").f_frsize
        ballast.write_bytes(bytes(free - (5 << 19)))
        command = direct_command(setup)

        results = [push(keeper, command, name) for name in names]

        failures = [said for code, said in results if code != 0]
        assert {code for code, _ in results} == {0, StoreError.exit_code}
        for said in failures:
            error, hint = said.splitlines()
            assert "No space left" in error
            assert hint.startswith("hint: free room")
        found = stored(setup, identifier)
        stored_now = [name for name in names if name in found]
        assert {name for name, (code, _) in zip(names, results, strict=True) if code == 0} <= set(stored_now)
        assert set(markers(setup)) <= set(found)
        assert list((setup.place() / "tmp").glob("*")) == []
        ballast.unlink()

        for name in names:
            assert push(keeper, command, name) == (0, "")
        found = stored(setup, identifier)
        for name in names:
            assert found[name] == (keeper.data_directory / "pg_wal" / name).read_bytes()


def _fill_with_noise(server: ThrowawayServer) -> list[str]:
    """Segments that do not compress; their names."""
    before = set(ready(server))
    while len(set(ready(server)) - before) < 5:
        sql(
            server.dsn(),
            "SELECT count(pg_logical_emit_message(false, 'noise', (SELECT string_agg(sha512(random()::text::bytea), '')"
            " FROM generate_series(1, 512 + n - n)))) FROM generate_series(1, 40) n",
        )
    return sorted(set(ready(server)) - before)


def test_a_push_goes_on_without_a_place_for_its_own_notes(keeper: ThrowawayServer, work_dir: Path) -> None:
    """Markers and the stamp of the settings only save time. With the policy "first", a note of what is missing is a must."""
    identifier = system_identifier(keeper.dsn())
    setup = make_push_setup(work_dir / "pgkeep", keeper.dsn(), repositories={"main": True, "plain": False})
    state = push_state(setup.spool)
    state.write_text("no directory")
    name = ready(keeper)[0]
    assert push(keeper, direct_command(setup), name) == (0, "")
    assert name in stored(setup, identifier)

    setup.path.write_text(setup.path.read_text().replace("wal = {", 'wal = { policy = "first",'))
    setup.place("plain").rename(setup.directory / "hidden")
    code, said = push(keeper, direct_command(setup), ready(keeper)[1])

    assert code == StoreError.exit_code
    assert "what plain misses" in said
