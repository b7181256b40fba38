"""`pgkeep wal receive` on real servers: what it receives, in which order, and how it goes on after anything."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeep.errors import BusyError, DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import ReplicationConnection
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.postgres.timeline import parse_history
from pgkeep.postgres.wal import segment_name, segment_start
from pgkeep.repository.wal_objects import DifferentWalError
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.receiver_status import read_status, receiver_runs
from support.servers import TEST_SETTINGS, MakeServer, sql
from support.wal import (
    WAL_SETTINGS,
    ReceiverProgram,
    ReceiverThread,
    Setup,
    change_setting,
    current_lsn,
    expect_same_wal,
    make_setup,
    promote,
    reach_of,
    replayed,
    standby_of,
    system_identifier,
    until,
    write_wal,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.binaries import ServerBinaries

MIB = 1 << 20


@pytest.fixture(scope="module")
def primary(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server with small segments that keeps all of its WAL; tests leave it as it is, and drop their slots."""
    with ThrowawayServer(binaries_of(18), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        yield server


@pytest.fixture
def setup(primary: ThrowawayServer, work_dir: Path) -> Iterator[Setup]:
    """A configuration for the shared primary, and two repositories: one encrypted, one not."""
    yield make_setup(
        work_dir / "pgkeep", primary.dsn(), repositories={"main": True, "plain": False}, ship_every="300ms"
    )
    _drop_slots(primary)


def _drop_slots(server: ThrowawayServer) -> None:
    until(lambda: sql(server.dsn(), "SELECT count(*) FROM pg_replication_slots WHERE active") == [(0,)], "slots idle")
    sql(server.dsn(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def _started(setup: Setup, identifier: int, timeline: int = 1) -> LSN:
    """Where the WAL in a repository begins."""
    inventory = WalInventory.read(setup.repository().wal(identifier), MIB)
    return inventory.timelines[timeline].spans[0].start


@pytest.mark.parametrize("major", [15, 17, 18])
def test_every_repository_gets_the_bytes_of_the_server(make_server: MakeServer, work_dir: Path, major: int) -> None:
    """Whole segments as they end, the open one in pieces; encrypted or not; and a restart goes on at the very byte."""
    server = make_server(major, wal_segment_size=1, settings=WAL_SETTINGS)
    setup = make_setup(
        work_dir / "pgkeep", server.dsn(), repositories={"main": True, "plain": False}, ship_every="300ms"
    )
    identifier = system_identifier(server.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_shipped(write_wal(server.dsn(), 3))
    write_wal(server.dsn(), 1.5)

    with ReceiverThread(setup) as receiver:
        end = write_wal(server.dsn(), 2.5)
        receiver.wait_shipped(end)

    expect_same_wal(setup, server, identifier, _started(setup, identifier), end)
    names = [name for name, _ in setup.repository().wal(identifier).names(1)]
    assert sum(len(name) == 24 for name in names) >= 6
    assert any("-" in name for name in names)


def test_the_open_segment_reaches_the_repository_in_pieces(setup: Setup, primary: ThrowawayServer) -> None:
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        for _ in range(3):
            end = write_wal(primary.dsn(), 0.05)
            begun = time.monotonic()
            receiver.wait_shipped(end)
            assert time.monotonic() - begun < 0.3 + 2
            assert reach_of(setup, identifier, end - 1) >= end


def test_the_index_of_times_grows_with_the_wal(setup: Setup, primary: ThrowawayServer) -> None:
    """A group of segments is in every repository's index once the segment after it began."""
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_shipped(write_wal(primary.dsn(), 34))
        assert not receiver.said("times")

    for name in setup.repositories:
        assert list(setup.repository(name).store.list(f"clusters/{identifier}/times/"))


def test_only_what_is_durable_is_acknowledged(setup: Setup, primary: ThrowawayServer) -> None:
    """While fsync hangs, the server hears nothing of what was received since."""
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_durable(write_wal(primary.dsn(), 0.1))
        spool = receiver.receiver.spool
        assert spool is not None
        with spool.changed:  # appending and syncing need it
            before = spool.durable
            end = write_wal(primary.dsn(), 0.5)
            time.sleep(1.5)
            flushed = LSN.parse(sql(primary.dsn(), "SELECT flush_lsn::text FROM pg_stat_replication")[0][0])
            assert before is not None
            assert flushed <= before.lsn
        receiver.wait_durable(end)
        until(
            lambda: LSN.parse(sql(primary.dsn(), "SELECT flush_lsn::text FROM pg_stat_replication")[0][0]) >= end,
            "the acknowledgement",
        )


def test_a_commit_waits_for_a_synchronous_receiver_and_not_for_long(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(17, wal_segment_size=1, settings={**WAL_SETTINGS, "synchronous_standby_names": "pgkeep_auth"})
    setup = make_setup(work_dir / "pgkeep", server.dsn(), synchronous=True)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = local")
        connection.execute("CREATE TABLE heartbeat (beat int)")
        connection.execute("SET synchronous_commit = on; SET statement_timeout = '500ms'")
        # without a receiver nothing is acknowledged
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("BEGIN; INSERT INTO heartbeat VALUES (1); SELECT pg_sleep(10); COMMIT")
        connection.execute("ROLLBACK; SET statement_timeout = 0")
        with ReceiverThread(setup) as receiver:
            begun = time.monotonic()
            for beat in range(50):
                connection.execute("INSERT INTO heartbeat VALUES (%s)", [beat])
                end = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
                durable = receiver.receiver.spool.durable if receiver.receiver.spool else None
                assert durable is not None
                assert end is not None
                assert durable.lsn >= LSN.parse(end[0]), "a commit was acknowledged before it was durable here"
            assert time.monotonic() - begun < 10
            until(lambda: receiver.receiver.status()["sync_state"] == "sync", "sync_state")
        assert not receiver.said("synchronous")


def test_a_synchronous_receiver_that_no_commit_waits_for_says_what_to_do(
    primary: ThrowawayServer, work_dir: Path
) -> None:
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), synchronous=True)
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("synchronous", "warning")

    (event,) = [event for event in receiver.events if event.kind == "synchronous"]
    assert event.hint == "ALTER SYSTEM SET synchronous_standby_names = 'pgkeep_auth'; SELECT pg_reload_conf();"
    _drop_slots(primary)


def test_an_idle_server_is_not_taken_for_a_dead_one(make_server: MakeServer, work_dir: Path) -> None:
    """Many times wal_sender_timeout without a byte: the same stream stays, on both sides."""
    server = make_server(
        15, wal_segment_size=1, settings={**WAL_SETTINGS, "wal_sender_timeout": "1s", "checkpoint_timeout": "1h"}
    )
    setup = make_setup(work_dir / "pgkeep", server.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_durable(current_lsn(server.dsn()))
        (sender,) = sql(server.dsn(), "SELECT pid FROM pg_stat_replication")
        time.sleep(4)
        assert sql(server.dsn(), "SELECT pid FROM pg_stat_replication") == [sender]

    assert [event.kind for event in receiver.events if event.level != "info"] == []
    assert sum(event.kind == "streaming" for event in receiver.events) == 1


def test_a_server_that_is_silent_is_left_and_found_again(make_server: MakeServer, work_dir: Path) -> None:
    """A stopped walsender neither answers nor closes: after the timeout and a question a new stream begins."""
    server = make_server(17, wal_segment_size=1, settings={**WAL_SETTINGS, "wal_sender_timeout": "1s"})
    setup = make_setup(work_dir / "pgkeep", server.dsn())
    with pytest.MonkeyPatch.context() as patch, ReceiverThread(setup) as receiver:
        patch.setattr("pgkeep.wal.follow._ANSWER_WAIT", 1.0)
        receiver.wait_for("streaming")
        receiver.wait_durable(write_wal(server.dsn(), 0.1))
        ((sender,),) = sql(server.dsn(), "SELECT pid FROM pg_stat_replication")
        os.kill(sender, signal.SIGSTOP)
        try:
            receiver.wait_for("disconnected", "warning")
            assert any("silent" in event.message for event in receiver.events)
        finally:
            os.kill(sender, signal.SIGCONT)
        receiver.wait_durable(write_wal(server.dsn(), 0.1))


def test_a_restarted_server_is_found_again_and_nothing_is_missing(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(18, wal_segment_size=1, settings=WAL_SETTINGS)
    setup = make_setup(work_dir / "pgkeep", server.dsn(), ship_every="300ms")
    identifier = system_identifier(server.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        write_wal(server.dsn(), 1)
        server.stop("fast")
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        write_wal(server.dsn(), 1)
        server.kill()
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        end = write_wal(server.dsn(), 1)
        receiver.wait_shipped(end)
        until(lambda: receiver.receiver.status()["wal_status"] == "reserved", "the slot is watched again")

    expect_same_wal(setup, server, identifier, _started(setup, identifier), end)


def test_a_lost_spool_is_made_up_for_from_the_server(setup: Setup, primary: ThrowawayServer) -> None:
    """The machine of the receiver is gone: a new one goes on where the repositories end, without a gap."""
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_shipped(write_wal(primary.dsn(), 2.3))
    start = _started(setup, identifier)
    shutil.rmtree(setup.spool)
    write_wal(primary.dsn(), 2)

    with ReceiverThread(setup) as receiver:
        end = write_wal(primary.dsn(), 1)
        receiver.wait_shipped(end)

    expect_same_wal(setup, primary, identifier, start, end)
    assert not receiver.said("gap")


def test_a_second_receiver_on_the_same_spool_is_refused(setup: Setup, primary: ThrowawayServer) -> None:
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        program = ReceiverProgram(setup)

        assert program.process.wait(30) == BusyError.exit_code
        assert "another receiver works with the spool" in program.said()


def test_a_second_receiver_on_the_same_slot_is_refused(setup: Setup, primary: ThrowawayServer, work_dir: Path) -> None:
    other = make_setup(work_dir / "other", primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        second = ReceiverThread(other, slot_wait=0.5)
        with pytest.raises(BusyError, match="is active for PID"), second:
            second.join()

        receiver.wait_durable(write_wal(primary.dsn(), 0.1))


def test_a_receiver_waits_for_a_slot_that_its_dead_sender_still_holds(setup: Setup, primary: ThrowawayServer) -> None:
    """A connection that the network broke is still a receiver for the server, for wal_sender_timeout."""
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(write_wal(primary.dsn(), 0.2))
    ghost = ReplicationConnection.open(primary.dsn())
    ghost.stream(current_lsn(primary.dsn()), 1, "pgkeep_auth")
    with ReceiverThread(setup) as receiver:
        time.sleep(0.5)
        ghost.close()
        receiver.wait_shipped(write_wal(primary.dsn(), 0.2))


def test_a_promoted_standby_is_followed_onto_its_timeline(make_server: MakeServer, work_dir: Path) -> None:
    """Receiving from a standby that is promoted: the old timeline to its end, then the new one, its history before it."""
    server = make_server(17, wal_segment_size=1, settings=WAL_SETTINGS)
    identifier = system_identifier(server.dsn())
    with standby_of(server, work_dir / "standby") as standby:
        setup = make_setup(
            work_dir / "pgkeep", standby.dsn(), repositories={"main": True, "plain": False}, ship_every="300ms"
        )
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("streaming")
            end = write_wal(server.dsn(), 2.5)
            receiver.wait_durable(end)
            server.stop("fast")
            promote(standby)
            end = write_wal(standby.dsn(), 2.5)
            receiver.wait_shipped(end)
            status = receiver.receiver.status()
        archive = setup.repository().wal(identifier)
        history = parse_history(2, archive.get("00000002.history"))
        (switch,) = history.switches
        assert status["timeline"] == 2
        expect_same_wal(setup, standby, identifier, _started(setup, identifier), switch.lsn, timeline=1)
        expect_same_wal(setup, standby, identifier, segment_start(switch.lsn, MIB), end, timeline=2)
    inventory = WalInventory.read(archive, MIB)
    assert inventory.reach(history, _started(setup, identifier)) >= end


def test_history_is_stored_before_any_segment_of_its_timeline(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(15, wal_segment_size=1, settings=WAL_SETTINGS)
    with standby_of(server, work_dir / "standby") as standby:
        setup = make_setup(work_dir / "pgkeep", standby.dsn(), ship_every="100ms")
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("streaming")
            promote(standby)
            receiver.wait_shipped(write_wal(standby.dsn(), 1))
    folder = next((setup.place() / "clusters").iterdir()) / "wal" / "00000002"
    times = {path.name: path.stat().st_mtime_ns for path in folder.rglob("0*") if path.is_file()}

    assert len(times) > 1
    assert min(times, key=times.__getitem__) == "00000002.history"


def test_a_diverged_old_primary_keeps_its_wal_beside_the_new_timeline(make_server: MakeServer, work_dir: Path) -> None:
    """We received more from the old primary than the standby had when it was promoted: both branches are complete."""
    server = make_server(18, wal_segment_size=1, settings=WAL_SETTINGS)
    identifier = system_identifier(server.dsn())
    with standby_of(server, work_dir / "standby") as standby:
        setup = make_setup(work_dir / "pgkeep", server.dsn(), ship_every="300ms")
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("streaming")
            common = write_wal(server.dsn(), 1)
            until(lambda: replayed(standby) >= common, "the standby has it")
            change_setting(standby.dsn(), "primary_conninfo", "''")
            until(
                lambda: (
                    sql(server.dsn(), "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'standby'")
                    == [(0,)]
                ),
                "the standby let go",
            )
            only_here = write_wal(server.dsn(), 1.5)
            receiver.wait_shipped(only_here)
        promote(standby)
        setup.path.write_text(setup.path.read_text().replace(_host(server), _host(standby)))

        with ReceiverThread(setup) as receiver:
            receiver.wait_for("diverged", "warning")
            end = write_wal(standby.dsn(), 3)
            receiver.wait_shipped(end)
        history = parse_history(2, setup.repository().wal(identifier).get("00000002.history"))
        (switch,) = history.switches
        assert switch.lsn < only_here
        expect_same_wal(setup, server, identifier, _started(setup, identifier), only_here, timeline=1)
        expect_same_wal(setup, standby, identifier, segment_start(switch.lsn, MIB), end, timeline=2)

        # the old primary comes back at the old address: nothing of it is taken
        setup.path.write_text(setup.path.read_text().replace(_host(standby), _host(server)))
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("other-history", "alarm")
            write_wal(server.dsn(), 1)
            assert receiver.receiver.status()["timeline"] == 2
        expect_same_wal(setup, standby, identifier, segment_start(switch.lsn, MIB), end, timeline=2)


def _host(server: Server) -> str:
    return str(server.socket_directory)


def test_another_cluster_at_the_same_address_is_refused(
    setup: Setup, primary: ThrowawayServer, make_server: MakeServer
) -> None:
    other = make_server(18, wal_segment_size=1, settings=WAL_SETTINGS)
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(write_wal(primary.dsn(), 0.2))
    before = read_status(setup.spool)
    setup.path.write_text(setup.path.read_text().replace(_host(primary), _host(other)))

    with ReceiverThread(setup) as receiver:
        receiver.wait_for("other-history", "alarm")
        write_wal(other.dsn(), 1)
    after = read_status(setup.spool)

    assert before is not None
    assert after is not None
    assert after["durable_lsn"] == before["durable_lsn"]
    assert setup.repository().clusters() == [system_identifier(primary.dsn())]


def test_the_slot_gets_a_cap_where_nobody_chose_one(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(18, wal_segment_size=1, settings={"wal_level": "replica"})
    setup = make_setup(work_dir / "pgkeep", server.dsn(), slot_cap="3GB")
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("slot-cap", "info")
    until(lambda: sql(server.dsn(), "SHOW max_slot_wal_keep_size") == [("3GB",)], "the setting")

    change_setting(server.dsn(), "max_slot_wal_keep_size", "-1")
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("slot-cap", "warning")
    assert sql(server.dsn(), "SHOW max_slot_wal_keep_size") == [("-1",)]


def test_a_role_that_may_not_cap_the_slot_gets_the_statement(primary: ThrowawayServer, work_dir: Path) -> None:
    sql(primary.dsn(), "CREATE ROLE receiver_role LOGIN REPLICATION")
    setup = make_setup(work_dir / "pgkeep", primary.dsn(user="receiver_role"), slot_cap="32GB")
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("slot-cap", "warning")
        receiver.wait_shipped(write_wal(primary.dsn(), 0.2))

    (event,) = [event for event in receiver.events if event.kind == "slot-cap"]
    assert "ALTER SYSTEM SET max_slot_wal_keep_size = '32768MB'; SELECT pg_reload_conf();" in (event.hint or "")
    _drop_slots(primary)


class TestPushed:
    """What an archive_command hands to a receiver that runs."""

    def test_a_segment_that_came_by_the_stream_is_answered_for(self, setup: Setup, primary: ThrowawayServer) -> None:
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("streaming")
            name, path = _finished_segment(primary)
            with path.open("rb") as file:
                receiver.receiver.pushed(name, file)
            receiver.wait_shipped(write_wal(primary.dsn(), 2))
            with path.open("rb") as file:
                receiver.receiver.pushed(name, file)

    def test_other_bytes_than_the_stream_brought_are_refused(self, setup: Setup, primary: ThrowawayServer) -> None:
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("streaming")
            name, path = _finished_segment(primary)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            with pytest.raises(DifferentWalError):
                receiver.receiver.pushed(name, io.BytesIO(data))
            receiver.wait_shipped(write_wal(primary.dsn(), 2))
            with pytest.raises(DifferentWalError):
                receiver.receiver.pushed(name, io.BytesIO(data))

    def test_what_the_stream_does_not_bring_is_stored_in_every_repository(
        self, setup: Setup, primary: ThrowawayServer
    ) -> None:
        identifier = system_identifier(primary.dsn())
        with ReceiverThread(setup) as receiver:
            receiver.wait_durable(write_wal(primary.dsn(), 0.1))
            name = "000000010000000000000001.00000028.backup"
            receiver.receiver.pushed(name, io.BytesIO(b"START WAL LOCATION: 0/1000028\n"))

        for repository in setup.repositories:
            assert setup.repository(repository).wal(identifier).get(name) == b"START WAL LOCATION: 0/1000028\n"

    def test_a_segment_of_another_cluster_is_refused(
        self, setup: Setup, primary: ThrowawayServer, make_server: MakeServer
    ) -> None:
        other = make_server(18, wal_segment_size=1, settings=WAL_SETTINGS)
        with ReceiverThread(setup) as receiver:
            receiver.wait_durable(write_wal(primary.dsn(), 0.1))
            name, path = _finished_segment(other)
            with path.open("rb") as file, pytest.raises(DamageError, match="system identifier"):
                receiver.receiver.pushed(name, file)


def _finished_segment(server: ThrowawayServer) -> tuple[str, Path]:
    """Name and place of a segment that the server has just finished, as it would archive it."""
    name = segment_name(1, current_lsn(server.dsn()), MIB)
    write_wal(server.dsn(), 1.5)
    return name, server.data_directory / "pg_wal" / name


class TestProgram:
    """The command itself."""

    def test_it_ends_with_0_on_sigterm_and_ships_the_rest_first(self, setup: Setup, primary: ThrowawayServer) -> None:
        setup.path.write_text(setup.path.read_text().replace("300ms", "1h"))
        identifier = system_identifier(primary.dsn())
        with ReceiverProgram(setup) as program:
            until(lambda: "receiving from" in program.said(), "the stream")
            end = write_wal(primary.dsn(), 0.3)
            until(lambda: _lsn_of(setup, "durable_lsn") >= end, "durable")

            assert program.stop() == 0

        assert reach_of(setup, identifier, end - 1) >= end
        status = read_status(setup.spool)
        assert status is not None
        assert status["running"] is False
        assert not receiver_runs(setup.spool)

    def test_it_ends_by_itself_at_a_position_and_speaks_json(self, setup: Setup, primary: ThrowawayServer) -> None:
        with ReceiverThread(setup) as receiver:
            receiver.wait_for("streaming")
        end = write_wal(primary.dsn(), 1.2)

        with ReceiverProgram(setup, "--json", "--until-lsn", str(end)) as program:
            assert program.process.wait(30) == 0, program.said()

        events, _, document = program.said().partition('{\n  "cluster"')
        lines = [json.loads(line) for line in events.splitlines()]
        assert [line["event"] for line in lines] == ["info"]
        assert lines[0]["kind"] == "streaming"
        shipped = json.loads('{\n  "cluster"' + document)["repositories"]
        assert {entry["name"] for entry in shipped} == {"main", "plain"}
        assert all(LSN.parse(entry["shipped_lsn"]) >= end for entry in shipped)

    def test_its_status_says_how_far_it_is(self, setup: Setup, primary: ThrowawayServer) -> None:
        with ReceiverProgram(setup) as program, writing(primary.dsn(), pause=0.1) as positions:
            until(lambda: _lsn_of(setup, "durable_lsn") > positions[0], "progress in the status")
            status = read_status(setup.spool)
            assert status is not None
            assert status["pid"] == program.process.pid
            assert receiver_runs(setup.spool)
            assert status["alarms"] == []
            assert status["connected_since"] is not None


def _lsn_of(setup: Setup, key: str) -> LSN:
    status = read_status(setup.spool)
    return LSN.parse(str(status[key])) if status is not None and status[key] is not None else LSN(0)
