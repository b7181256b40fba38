"""What can happen to a receiver: it is killed, its store goes away, its slot is lost, its disk fills up or lies."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.opening import read_secret
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.postgres.wal import segment_name
from pgkeep.wal import receive, ship
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.receiver_status import read_status
from pgkeep.wal.spool import Spool
from pgkeep.wal.spool_keys import lock_spool, open_spool_keys
from support.disks import small_disk
from support.jobs import restore, running_copy
from support.servers import TEST_SETTINGS, MakeServer, sql
from support.wal import (
    WAL_SETTINGS,
    ReceiverProgram,
    ReceiverThread,
    Setup,
    current_lsn,
    expect_same_wal,
    make_setup,
    reach_of,
    system_identifier,
    until,
    write_wal,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

MIB = 1 << 20
_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_KILLS = int(os.environ.get("PGKEEP_RECEIVER_KILLS", "20"))

FORGETFUL: dict[str, str | int | bool] = {
    "wal_keep_size": 0,
    "min_wal_size": "2MB",
    "max_wal_size": "2MB",
    "max_slot_wal_keep_size": "3MB",
    "wal_sender_timeout": "5s",
}
"""A server that soon removes WAL which nobody fetched, slot or not."""


@pytest.fixture(scope="module")
def primary(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A server with small segments that keeps all of its WAL."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        yield server


@pytest.fixture
def drop_slots(primary: ThrowawayServer) -> Iterator[None]:
    """Leave the shared primary without slots."""
    yield
    until(lambda: sql(primary.dsn(), "SELECT count(*) FROM pg_replication_slots WHERE active") == [(0,)], "slots idle")
    sql(primary.dsn(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def _acknowledged(server: ThrowawayServer) -> LSN:
    """What the server believes to be durable with the receiver: physical slots keep the last acknowledged position."""
    return LSN.parse(sql(server.dsn(), "SELECT restart_lsn::text FROM pg_replication_slots")[0][0])


def _spool_end(setup: Setup) -> LSN:
    """Up to where a receiver's spool holds WAL, having been opened as its next run would open it."""
    with lock_spool(setup.spool):
        found = open_spool_keys(setup.spool, {"main": read_secret(setup.config.repository("main").key)}, {})
        assert found is not None
        spool = Spool(setup.spool, *found)
        assert spool.damage == []
        assert spool.position is not None
        spool.close()
        return spool.position.lsn


def _start_of_wal(setup: Setup, identifier: int) -> LSN:
    return WalInventory.read(setup.repository().wal(identifier), MIB).timelines[1].spans[0].start


@pytest.mark.timeout(60 + 10 * _KILLS)
@pytest.mark.parametrize("synchronous", [False, True])
def test_kills_at_random_moments_lose_no_acknowledged_byte_and_leave_no_gap(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path, synchronous: bool
) -> None:
    """``kill -9`` under load, between receiving, writing, fsync and acknowledgement, wherever it falls."""
    chance = random.Random(_SEED + synchronous)
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms", synchronous=synchronous)
    identifier = system_identifier(primary.dsn())
    with writing(primary.dsn(), megabytes=0.1, pause=0.01):
        for kill in range(_KILLS // 2):
            with ReceiverProgram(setup) as program:
                until(lambda: program.said().count("receiving from") > kill, "the stream")  # noqa: B023
                time.sleep(chance.uniform(0, 0.5))
                program.kill()
            acknowledged = _acknowledged(primary)
            assert _spool_end(setup) >= acknowledged, f"seed {_SEED}"
    end = current_lsn(primary.dsn())

    with ReceiverProgram(setup, "--until-lsn", str(end)) as program:
        assert program.process.wait(60) == 0, program.said()

    assert "alarm" not in program.said()
    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


def test_a_store_that_is_away_fills_the_spool_to_its_limit_and_the_server_runs_on(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path
) -> None:
    """Alarms first; then receiving waits; with the store back, everything is there. The other repository never waits."""
    setup = make_setup(
        work_dir / "pgkeep", primary.dsn(), repositories={"main": True, "other": False}, ship_every="200ms",
        spool_limit="6MB",
    )  # fmt: skip
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_shipped(write_wal(primary.dsn(), 1))
        away = setup.place().with_name("away")
        setup.place().rename(away)
        setup.place().write_text("no directory")
        spool = receiver.receiver.spool
        assert spool is not None
        largest = 0
        for _ in range(24):
            end = write_wal(primary.dsn(), 0.5)
            time.sleep(0.1)
            largest = max(largest, spool.size)
        receiver.wait_for("spool-full", "alarm")
        held = receiver.receiver.status()["durable_lsn"]
        begun = time.monotonic()
        end = write_wal(primary.dsn(), 1)
        assert time.monotonic() - begun < 5, "the primary waits"
        assert LSN.parse(str(held)) < end
        setup.place().unlink()
        away.rename(setup.place())
        receiver.wait_shipped(end)
        until(lambda: receiver.receiver.alarms.active() == [], "all alarms over")

    assert largest < 7.5 * MIB
    alarms = [event.kind for event in receiver.events if event.level == "alarm"]
    assert alarms.index("spool-half") < alarms.index("spool-nearly-full") < alarms.index("spool-full")
    assert set(alarms) == {"store main", "spool-half", "spool-nearly-full", "spool-full"}
    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


def test_a_receiver_starts_and_receives_while_its_store_is_away(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path
) -> None:
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms")
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(write_wal(primary.dsn(), 1))
    away = setup.place().with_name("away")
    setup.place().rename(away)

    with ReceiverThread(setup) as receiver:
        end = write_wal(primary.dsn(), 2)
        receiver.wait_durable(end)
        receiver.wait_for("store main", "alarm")
        away.rename(setup.place())
        receiver.wait_shipped(end)

    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


def test_a_dropped_slot_is_made_again_and_nothing_is_missing_where_the_server_kept_the_wal(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path
) -> None:
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms")
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(write_wal(primary.dsn(), 1))
    sql(primary.dsn(), "SELECT pg_drop_replication_slot('pgkeep_auth')")
    write_wal(primary.dsn(), 2)

    gaps: list[str] = []
    with ReceiverThread(setup, on_gap=gaps.append) as receiver:
        receiver.wait_for("slot", "alarm")
        receiver.wait_for("slot", "cleared")
        end = write_wal(primary.dsn(), 1)
        receiver.wait_shipped(end)

    assert gaps == []
    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


@pytest.mark.parametrize("major", [15, 18])
def test_a_slot_that_the_server_gave_up_leads_to_an_alarm_and_a_new_backup_by_itself(
    make_server: MakeServer, work_dir: Path, major: int
) -> None:
    """The store is away, the spool full, the server reaches max_slot_wal_keep_size: it must not wait for anybody.

    Later there are a new slot and a new backup, and that one restores.
    """
    server = make_server(major, wal_segment_size=1, settings=FORGETFUL)
    setup = make_setup(work_dir / "pgkeep", server.dsn(), ship_every="200ms", spool_limit="3MB")
    sql(server.dsn(), "CREATE TABLE things (n int)")
    with ReceiverProgram(setup) as program:
        until(lambda: "receiving from" in program.said(), "the stream")
        until(
            lambda: reach_of(setup, system_identifier(server.dsn()), current_lsn(server.dsn()) - 1), "the first piece"
        )
        away = setup.place().with_name("away")
        setup.place().rename(away)
        for _ in range(20):
            write_wal(server.dsn(), 1)
            sql(server.dsn(), "CHECKPOINT")
        assert sql(server.dsn(), "SELECT wal_status FROM pg_replication_slots WHERE NOT temporary") == [("lost",)]
        assert len(list((server.data_directory / "pg_wal").glob("0*"))) < 12
        sql(server.dsn(), "INSERT INTO things VALUES (42)")
        away.rename(setup.place())
        until(lambda: "a new backup was taken" in program.said(), program.said(), 60)
        until(lambda: (read_status(setup.spool) or {})["alarms"] == [], "all alarms over")
        end = write_wal(server.dsn(), 1)
        until(lambda: LSN.parse(str((read_status(setup.spool) or {})["durable_lsn"])) >= end, "the WAL after the gap")
        assert program.stop() == 0

    said = program.said()
    assert said.index("alarm: ") < said.index("a new backup was taken"), said
    repository = setup.repository()
    assert len(repository.catalog.names()) == 1
    archive = repository.wal(system_identifier(server.dsn()))
    spans = WalInventory.read(archive, MIB).timelines[1].spans
    assert len(spans) == 2, "the gap is there to be seen"
    assert spans[-1].end >= end
    restore(repository, work_dir / "restored")
    with running_copy(work_dir / "restored", server.binaries) as copy:
        assert sql(copy.dsn(), "SELECT n FROM things") == [(42,)]


def test_a_backup_after_a_gap_is_tried_until_it_succeeds_even_by_the_next_receiver(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path
) -> None:
    """What is left to do stands in the spool."""
    setup = make_setup(work_dir / "pgkeep", primary.dsn())

    def fail(_reason: str) -> None:
        raise RuntimeError("not now")

    with ReceiverThread(setup, on_gap=fail) as receiver:
        receiver.wait_for("streaming")
        receiver.receiver._gaps.report("for the test")
        receiver.wait_for("base-backup", "warning")
    reasons: list[str] = []
    with ReceiverThread(setup, on_gap=reasons.append) as receiver:
        receiver.wait_for("gap", "cleared")
    with ReceiverThread(setup, on_gap=reasons.append) as receiver:
        receiver.wait_for("streaming")

    assert reasons == ["for the test"]


def test_a_repository_with_other_wal_stops_there_and_the_others_go_on(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers write the same timeline: told at once, and once mended, nothing is missing."""
    monkeypatch.setattr(ship, "_DIFFERENT_RETRY", 0.3)
    setup = make_setup(
        work_dir / "pgkeep", primary.dsn(), repositories={"main": True, "other": False}, ship_every="200ms"
    )
    identifier = system_identifier(primary.dsn())
    archive = setup.repository("other").wal(identifier)
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        name = segment_name(1, current_lsn(primary.dsn()) + 2 * MIB, MIB)
        archive.put(name, b"of another server")
        end = write_wal(primary.dsn(), 4)
        receiver.wait_for("different-wal other", "alarm")
        main, other = receiver.receiver.shippers
        until(lambda: main.shipped is not None and main.shipped.lsn >= end, "the first repository")
        assert other.shipped is not None
        assert other.shipped.lsn < end
        (setup.place("other") / archive.object_name(name)).unlink()
        receiver.wait_shipped(end)
        receiver.wait_for("different-wal other", "cleared")

    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


def test_a_full_disk_below_the_spool_is_an_alarm_and_nothing_is_lost(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path
) -> None:
    with small_disk(work_dir / "disk", "5M"):
        spool = work_dir / "disk" / "spool"
        setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms", spool=str(spool))
        identifier = system_identifier(primary.dsn())
        with ReceiverThread(setup) as receiver:
            receiver.wait_shipped(write_wal(primary.dsn(), 1))
            away = setup.place().with_name("away")
            setup.place().rename(away)
            end = write_wal(primary.dsn(), 8)
            receiver.wait_for("spool-disk", "alarm")
            away.rename(setup.place())
            receiver.wait_shipped(end)
            receiver.wait_for("spool-disk", "cleared")

        expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


def test_damage_in_the_spool_is_an_alarm_and_the_server_is_asked_again(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit flips in what was acknowledged already, before it was shipped."""
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms")
    identifier = system_identifier(primary.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_shipped(write_wal(primary.dsn(), 1))
        setup.place().rename(setup.place().with_name("away"))
        parts = [Path("before")]
        while len(parts) < 3 or len(set(parts[-3:])) > 1:
            receiver.wait_durable(write_wal(primary.dsn(), 0.05))
            parts.append(max((setup.spool / "wal").iterdir()))
        monkeypatch.setattr(receive, "_LAST_SHIPPING", 0.1)
    setup.place().with_name("away").rename(setup.place())
    part = parts[-1]
    data = bytearray(part.read_bytes())
    data[data.find(b"FRAM") + 100] ^= 4
    part.write_bytes(data)

    with ReceiverThread(setup) as receiver:
        receiver.wait_for("spool-damage", "alarm")
        end = write_wal(primary.dsn(), 2)
        receiver.wait_shipped(end)

    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)


def test_acknowledged_wal_that_the_spool_has_lost_is_an_alarm(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path
) -> None:
    """Nothing in the file itself tells a disk that forgot its last write from a crash; what the receiver had said does."""
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms")
    with ReceiverThread(setup) as receiver:
        receiver.wait_durable(write_wal(primary.dsn(), 0.3))
    part = max((setup.spool / "wal").iterdir())
    os.truncate(part, part.stat().st_size - 1)

    with ReceiverThread(setup) as receiver:
        receiver.wait_for("spool-damage", "alarm")
        receiver.wait_for("spool-damage", "cleared")
        receiver.wait_shipped(write_wal(primary.dsn(), 0.3))


def test_a_clock_that_jumps_changes_nothing(
    primary: ThrowawayServer, drop_slots: None, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock leaps by days in both directions while WAL is received: intervals are measured by another clock."""
    setup = make_setup(work_dir / "pgkeep", primary.dsn(), ship_every="200ms")
    identifier = system_identifier(primary.dsn())
    real = time.time
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        for days in (3, -3, 400):
            monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
            end = write_wal(primary.dsn(), 0.5)
            receiver.wait_shipped(end, 10)

    assert [event for event in receiver.events if event.level != "info"] == []
    expect_same_wal(setup, primary, identifier, _start_of_wal(setup, identifier), end)
