"""`pgkeep wal push` as the `archive_command` of real servers: what it stores, what it refuses, and when it says that all is well."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import BusyError, DamageError, RepositoryError, StoreError, UsageError
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.postgres.wal import WalFileKind, segment_name
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.wal_objects import DifferentWalError
from pgkeep.restore.target import RecoveryTarget
from pgkeep.wal.push import Pusher
from pgkeep.wal.push_settings import push_state, settings_of_program
from pgkeep.wal.thin_push import UNANSWERED
from support.fetch import give_tree, make_segment
from support.jobs import restore, server_place
from support.push import (
    ARCHIVING,
    AccountReceiver,
    archive_by,
    direct_command,
    done,
    expect_stored,
    finish_segments,
    make_push_setup,
    markers,
    program_words,
    push,
    ready,
    run_pgkeep,
    stored,
    thin_command,
    wait_archived,
)
from support.servers import TEST_SETTINGS, MakeServer, run_program, sql
from support.wal import Setup, promote, replayed, standby_of, system_identifier, until, write_wal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

MIB = 1 << 20
_HAND_HEADER = 24
"""Where the system identifier stands in a segment's header."""


@pytest.fixture(scope="module")
def keeper(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server with small segments that wait for an archive_command, which it has not; tests push them by hand."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **ARCHIVING})
        finish_segments(server, 8)
        yield server


@pytest.fixture
def setup(keeper: ThrowawayServer, work_dir: Path) -> Setup:
    """A configuration for it, with one repository."""
    return make_push_setup(work_dir / "pgkeep", keeper.dsn())


def pusher(setup: Setup, server: Server) -> Pusher:
    """Pushes in this process."""
    state = push_state(setup.spool)
    return Pusher(settings_of_program(setup.path, "auth", state), state, server.data_directory)


def segment(server: Server, name: str) -> Path:
    """A file in pg_wal."""
    return server.data_directory / "pg_wal" / name


@contextlib.contextmanager
def command_for(way: str, setup: Setup, server: Server) -> Iterator[str]:
    """The `archive_command` without a receiver, or one that a running receiver answers."""
    if way == "alone":
        yield direct_command(setup)
        return
    with AccountReceiver(setup) as receiver:
        until(lambda: "receiving from" in receiver.said(), receiver.said)
        yield thin_command(setup)
        assert receiver.stop() == 0, receiver.said()
    idle = "SELECT count(*) FROM pg_replication_slots WHERE active"
    until(lambda: sql(server.dsn(), idle) == [(0,)], "the slot is idle")
    sql(server.dsn(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


@contextlib.contextmanager
def away(setup: Setup, name: str, *, unmounted: bool = False) -> Iterator[None]:
    """A repository whose place is no directory any more, or is an empty one."""
    place = setup.place(name)
    hidden = place.with_name(f"{name}-hidden")
    place.rename(hidden)
    if unmounted:
        place.mkdir(0o755)
    else:
        place.write_text("no directory")
    yield
    if unmounted:
        place.rmdir()
    else:
        place.unlink()
    hidden.rename(place)


@pytest.mark.parametrize("major", [15, 17, 18])
def test_everything_that_servers_archive_is_stored_and_the_latest_moment_comes_back_from_it(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """Segments, backup labels, and across a promotion the history and what was partial; no receiver ever ran."""
    primary = make_server(major, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", primary.dsn(), repositories={"main": True, "plain": False})
    identifier = system_identifier(primary.dsn())
    archive_by(primary.dsn(), f'{" ".join(program_words(setup))} wal push "%p"')
    run_pgkeep(setup, "backup")
    sql(primary.dsn(), "CREATE TABLE words (word text); INSERT INTO words VALUES ('first')")
    write_wal(primary.dsn(), 1.5)
    wait_archived(primary)
    with standby_of(primary, work_dir / "standby", {"archive_mode": True}) as standby:
        sql(primary.dsn(), "INSERT INTO words VALUES ('second')")
        end = write_wal(primary.dsn(), 0.3)
        until(lambda: replayed(standby) >= end, "the standby has all")
        promote(standby)
        sql(standby.dsn(), "INSERT INTO words VALUES ('third')")
        write_wal(standby.dsn(), 1.5)
        wait_archived(standby)

        expect_stored(setup, standby, identifier, {WalFileKind.SEGMENT, WalFileKind.HISTORY, WalFileKind.PARTIAL})
        archive_by(standby.dsn(), "")
    archive_by(primary.dsn(), "")
    expect_stored(setup, primary, identifier, {WalFileKind.SEGMENT, WalFileKind.BACKUP})
    target = server_place(work_dir / "restored") / "data"
    copy = Server(target, primary.binaries)
    try:
        outcome = restore(
            setup.repository("plain"),
            target,
            recovery=RecoveryTarget(kind="latest"),
            start=True,
            settings={"fsync": "off"},
        )
        assert outcome.dsn is not None
        copy.socket_directory = Path(outcome.dsn.split("host=")[1].split()[0])
        assert sql(outcome.dsn, "SELECT word FROM words") == [("first",), ("second",), ("third",)]
    finally:
        copy.stop("immediate")


def test_the_printed_command_asks_the_receiver_and_works_alone_where_none_runs(
    make_server: MakeServer, work_dir: Path
) -> None:
    """The state of pushes that work alone is a witness: a receiver's client leaves none."""
    server = make_server(17, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", server.dsn(), ship_every="200ms")
    identifier = system_identifier(server.dsn())
    command = thin_command(setup)
    assert " -I -S " in command
    with AccountReceiver(setup) as receiver:
        until(lambda: "receiving from" in receiver.said(), receiver.said)
        archive_by(server.dsn(), command)
        write_wal(server.dsn(), 3)
        run_pgkeep(setup, "backup")
        wait_archived(server)
        assert not push_state(setup.spool).exists()
        assert receiver.stop() == 0, receiver.said()
    expect_stored(setup, server, identifier, {WalFileKind.SEGMENT, WalFileKind.BACKUP})

    write_wal(server.dsn(), 2)
    wait_archived(server)

    assert push_state(setup.spool).exists()
    expect_stored(setup, server, identifier, {WalFileKind.SEGMENT})


@pytest.mark.parametrize("way", ["alone", "receiver"])
def test_the_same_again_is_no_error_and_other_content_is_one(
    keeper: ThrowawayServer, setup: Setup, work_dir: Path, way: str
) -> None:
    """And what was stored stays. The second file is a good segment but for one byte at its end."""
    identifier = system_identifier(keeper.dsn())
    with command_for(way, setup, keeper) as command:
        name = ready(keeper)[0]
        assert push(keeper, command, name) == (0, "")
        # a receiver answers once it is durable in the spool, and ships it then
        until(lambda: name in stored(setup, identifier), "the segment in the repository")
        before = stored(setup, identifier)[name]
        assert push(keeper, command, name) == (0, "")

        other = work_dir / name
        other.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        other.chmod(0o644)
        code, said = push(keeper, command, other)

    assert code == StoreError.exit_code
    assert "other content" in said or "other bytes" in said
    assert stored(setup, identifier)[name] == before == segment(keeper, name).read_bytes()


def test_a_clone_that_archives_is_refused_until_it_claims_the_timeline(make_server: MakeServer, work_dir: Path) -> None:
    """It has the same identity and the same WAL so far. Once it has claimed it, the server that it was made from is refused."""
    server = make_server(17, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", server.dsn())
    identifier = system_identifier(server.dsn())
    command = direct_command(setup)
    archive_by(server.dsn(), command)
    write_wal(server.dsn(), 2)
    data = server_place(work_dir / "clone") / "data"
    run_program(server, "pg_basebackup", "-D", data, "-X", "stream", "-c", "fast", "-d", server.dsn())
    wait_archived(server)
    archived = set(stored(setup, identifier))
    archive_by(server.dsn(), "false")
    with Server(data, server.binaries) as clone:
        clone.start({**TEST_SETTINGS, **ARCHIVING})
        # the server that it was made from goes on, too: nothing of the clone's has a name that is taken already
        for _ in range(3):
            sql(clone.dsn(), "SELECT pg_switch_wal()")
            write_wal(clone.dsn(), 0.1)
        until(
            lambda: sql(clone.dsn(), "SELECT failed_count FROM pg_stat_archiver")[0][0] > 0,
            lambda: f"the clone is refused:\n{clone.log_tail()}",
        )
        waiting = [name for name in ready(clone) if name not in archived]
        assert waiting
        code, said = push(clone, command, waiting[0])
        assert code == BusyError.exit_code
        assert f"archived by the server in {server.data_directory}" in said
        assert "pgkeep wal claim" in said
        assert set(stored(setup, identifier)) == archived

        said = run_pgkeep(setup, "wal", "claim", "--data-directory", data)

        assert str(server.data_directory) in said
        wait_archived(clone)
        expect_stored(setup, clone, identifier, {WalFileKind.SEGMENT})
        assert set(waiting) <= set(stored(setup, identifier))
        code, said = push(server, command, finish_segments(server, 1)[-1])
        assert code == BusyError.exit_code
        assert f"archived by the server in {data}" in said


@pytest.mark.parametrize("unmounted", [False, True], ids=["broken", "unmounted"])
@pytest.mark.parametrize("missing", ["main", "plain"])
class TestOneRepositoryIsAway:
    """The first one of the configuration, or the second."""

    def test_policy_all_fails_until_it_is_back_and_the_other_has_the_file(
        self, keeper: ThrowawayServer, work_dir: Path, missing: str, unmounted: bool
    ) -> None:
        setup = make_push_setup(work_dir / "pgkeep", keeper.dsn(), repositories={"main": True, "plain": False})
        identifier = system_identifier(keeper.dsn())
        (other,) = set(setup.repositories) - {missing}
        name = ready(keeper)[0]
        with away(setup, missing, unmounted=unmounted):
            with pytest.raises(RepositoryError if unmounted else StoreError):
                pusher(setup, keeper).push(segment(keeper, name))
            assert name in stored(setup, identifier, other)

        pusher(setup, keeper).push(segment(keeper, name))

        assert stored(setup, identifier, missing)[name] == segment(keeper, name).read_bytes()

    def test_policy_first_succeeds_and_later_pushes_bring_it_up_to_date(
        self, keeper: ThrowawayServer, work_dir: Path, missing: str, unmounted: bool
    ) -> None:
        """From the other repository: the server may have recycled its file by then."""
        setup = make_push_setup(
            work_dir / "pgkeep", keeper.dsn(), repositories={"main": True, "plain": False}, policy="first", push_ahead=2
        )
        identifier = system_identifier(keeper.dsn())
        (other,) = set(setup.repositories) - {missing}
        first, second, third, fourth = ready(keeper)[:4]
        with away(setup, missing, unmounted=unmounted):
            lagging = pusher(setup, keeper)
            lagging.push(segment(keeper, first))
            assert any(missing in warning for warning in lagging.warnings)
            assert {first, second, third} <= set(stored(setup, identifier, other))

        pusher(setup, keeper).push(segment(keeper, fourth))

        found = stored(setup, identifier, missing)
        assert {name: found[name] for name in (first, second, third, fourth)} == {
            name: segment(keeper, name).read_bytes() for name in (first, second, third, fourth)
        }
        again = pusher(setup, keeper)
        again.push(segment(keeper, second))
        assert again.warnings == []


def test_policy_first_does_not_hide_other_content(keeper: ThrowawayServer, work_dir: Path) -> None:
    setup = make_push_setup(
        work_dir / "pgkeep", keeper.dsn(), repositories={"main": True, "plain": False}, policy="first"
    )
    identifier = system_identifier(keeper.dsn())
    name = ready(keeper)[0]
    setup.repository("plain").wal(identifier).put(name, b"not these")

    with pytest.raises(DifferentWalError):
        pusher(setup, keeper).push(segment(keeper, name))

    assert stored(setup, identifier, "plain")[name] == b"not these"


def test_what_is_ready_is_pushed_ahead_in_parallel(
    keeper: ThrowawayServer, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No segment is stored before two are being stored; the push that asks for one of them later touches no repository."""
    identifier = system_identifier(keeper.dsn())
    together = threading.Barrier(2)
    put = PosixStore.put
    met = threading.Event()

    def wait_for_another(store: PosixStore, name: str, parts: list[bytes]) -> None:
        if "/wal/" in name and not met.is_set():
            together.wait(30)
            met.set()
        put(store, name, parts)

    monkeypatch.setattr(PosixStore, "put", wait_for_another)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    names = ready(keeper)

    pusher(setup, keeper).push(segment(keeper, names[0]))

    assert sorted(stored(setup, identifier)) == names[:5]
    assert markers(setup) == names[1:5]
    with away(setup, "main"):
        pusher(setup, keeper).push(segment(keeper, names[1]))
        with pytest.raises(StoreError):
            pusher(setup, keeper).push(segment(keeper, names[0]))


def test_the_thin_client_knows_what_was_pushed_ahead(keeper: ThrowawayServer, setup: Setup, work_dir: Path) -> None:
    """Its fallback would fail here. A file that is another one by now, or another configuration, is left to the fallback."""
    names = ready(keeper)
    pusher(setup, keeper).push(segment(keeper, names[0]))
    give_tree(push_state(setup.spool))
    command = thin_command(setup).replace(" -P -m pgkeep.wal.push_program ", " -c 0/0 ")
    assert push(keeper, command, names[1]) == (0, "")
    assert push(keeper, command, names[0])[0] == 1
    copy = work_dir / names[1]
    shutil.copyfile(segment(keeper, names[1]), copy)
    assert push(keeper, command, copy)[0] == 1

    setup.path.write_text(setup.path.read_text() + "# changed\n")

    assert push(keeper, command, names[1])[0] == 1


def test_a_file_that_was_pushed_ahead_to_another_repository_is_pushed_again(
    keeper: ThrowawayServer, setup: Setup
) -> None:
    """The configuration names another one since."""
    names = ready(keeper)
    pusher(setup, keeper).push(segment(keeper, names[0]))
    assert names[1] in markers(setup)
    setup.place().rename(setup.directory / "old")
    shutil.copytree(setup.directory / "old", setup.directory / "new", ignore=shutil.ignore_patterns("clusters"))
    setup.path.write_text(setup.path.read_text().replace(f"file://{setup.place()}", f"file://{setup.directory}/new"))

    pusher(setup, keeper).push(segment(keeper, names[1]))

    assert names[1] in stored(setup, system_identifier(keeper.dsn()))


def test_markers_go_once_the_server_is_done_with_their_files(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(17, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", server.dsn())
    finish_segments(server, 6)
    archive_by(server.dsn(), direct_command(setup))
    wait_archived(server)
    last = done(server)[-1]
    assert push(server, direct_command(setup), last) == (0, "")

    assert list((push_state(setup.spool) / "pushed").iterdir()) == []


def _other_magic(data: bytearray) -> None:
    data[0:2] = b"\x12\x34"


def _other_cluster(data: bytearray) -> None:
    data[_HAND_HEADER] ^= 1


def _truncated(data: bytearray) -> None:
    del data[-4096:]


def _too_long(data: bytearray) -> None:
    data += bytes(8192)


def _zeroed(data: bytearray) -> None:
    data[:] = bytes(len(data))


def _another_address(data: bytearray) -> None:
    data[8:16] = (int.from_bytes(data[8:16], "little") + MIB).to_bytes(8, "little")


@pytest.mark.parametrize("way", ["alone", "receiver"])
def test_what_is_not_the_segment_of_its_name_is_refused(
    keeper: ThrowawayServer, setup: Setup, work_dir: Path, way: str
) -> None:
    """By its magic number, its system identifier, its address, its length: each with a code that has the server try again."""
    identifier = system_identifier(keeper.dsn())
    name = ready(keeper)[0]
    good = segment(keeper, name).read_bytes()
    with command_for(way, setup, keeper) as command:
        for spoil, words in (
            (_other_magic, "magic"),
            (_other_cluster, "system identifier"),
            (_another_address, "start LSN"),
            (_truncated, "bytes"),
            (_too_long, "bytes"),
            (_zeroed, "magic"),
        ):
            data = bytearray(good)
            spoil(data)
            bad = work_dir / name
            bad.write_bytes(data)
            bad.chmod(0o644)

            code, said = push(keeper, command, bad)

            assert code == DamageError.exit_code, (spoil.__name__, said)
            assert words in said
    # a receiver may have had the good one by its stream
    assert stored(setup, identifier).get(name, good) == good


def test_other_files_are_held_to_what_they_say(keeper: ThrowawayServer, setup: Setup, work_dir: Path) -> None:
    """A partial segment is checked as a whole one is; a history must be one; no other name is stored."""
    work = pusher(setup, keeper)
    for name, content, error in (
        (f"{segment_name(1, 5 * MIB, MIB)}.partial", make_segment(5), DamageError),
        ("00000002.history", b"no history", DamageError),
        ("00000002.history.bak", b"", UsageError),
        (segment_name(1, 5 * MIB, MIB), None, UsageError),
    ):
        path = work_dir / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error):
            work.push(path)
    assert stored(setup, system_identifier(keeper.dsn())) == {}


def test_a_standby_that_archives_always_pushes_what_the_primary_has_pushed(
    make_server: MakeServer, work_dir: Path
) -> None:
    """The timeline is the primary's, and the very same bytes are there: 0. What is not there yet waits for the primary."""
    primary = make_server(17, wal_segment_size=1, settings=ARCHIVING)
    setup = make_push_setup(work_dir / "pgkeep", primary.dsn())
    command = direct_command(setup)
    with standby_of(primary, work_dir / "standby", {"archive_mode": "always", "archive_command": ""}) as standby:
        names = finish_segments(primary, 2)
        end = write_wal(primary.dsn(), 0.1)
        until(lambda: replayed(standby) >= end, "the standby has all")
        until(lambda: set(names[-2:]) <= set(ready(standby)), "the standby's own segments")
        assert push(primary, command, names[-2])[0] == 0
        shutil.rmtree(push_state(setup.spool))
        for name in set(names) - set(stored(setup, system_identifier(primary.dsn()))):
            assert push(primary, command, name)[0] == 0

        assert push(standby, command, names[-1]) == (0, "")
        wait_for = finish_segments(primary, 1)[-1]
        until(lambda: wait_for in ready(standby), "the next segment")
        assert push(standby, command, wait_for)[0] == BusyError.exit_code


def test_a_receiver_that_dies_before_its_answer_is_a_failed_push(
    keeper: ThrowawayServer, setup: Setup, work_dir: Path
) -> None:
    """The connection ends, nothing was said: the server must keep the segment."""
    place = work_dir / "dying.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        place.chmod(0o666)
        listener.listen()

        def die() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.close()

        thread = threading.Thread(target=die)
        thread.start()
        command = thin_command(setup).replace(str(setup.cluster.push_socket), str(place))
        code, said = push(keeper, command, ready(keeper)[0])
        thread.join()

    assert code == UNANSWERED
    assert "ended before it answered" in said


NOT_FOR_A_PUSH = {
    *("argon2", "boto3", "botocore", "click", "msgspec", "numpy", "obstore", "psycopg", "pydantic", "rich", "segno"),
    *("asyncio", "concurrent.futures", "email", "logging", "multiprocessing", "pickle", "socket", "ssl", "subprocess"),
    *("shutil", "tempfile", "tomllib", "uuid"),
}
OF_A_PUSH = {
    *("errors", "units"),
    *("postgres", "postgres.control_file", "postgres.lsn", "postgres.wal"),
    *("repository", "repository.codec", "repository.crypto", "repository.parameters", "repository.posix"),
    *("repository.records", "repository.repository", "repository.sealed", "repository.store"),
    *("repository.wal_objects", "repository.keys", "repository.keys.generations", "repository.keys.local_secrets"),
    *("repository.keys.secret", "repository.keys.slots"),
    *("wal", "wal.claims", "wal.push", "wal.push_settings", "wal.small_files"),
}


def test_a_push_loads_no_more_than_it_needs(keeper: ThrowawayServer, setup: Setup) -> None:
    """Every segment starts a program. Other kinds of keys, other stores, backups and the face of the program cost it nothing."""
    first, second, *_ = ready(keeper)
    assert push(keeper, direct_command(setup), first)[0] == 0, "the first one reads the configuration"
    code, said = push(keeper, direct_command(setup).replace(" -P ", " -P -X importtime ", 1), second)

    loaded = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert code == 0
    assert "cryptography.hazmat.primitives.ciphers.aead" in loaded
    assert not NOT_FOR_A_PUSH & loaded
    assert {name.removeprefix("pgkeep.") for name in loaded if name.startswith("pgkeep.")} - OF_A_PUSH == set()
