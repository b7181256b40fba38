from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from pgkeep.errors import BusyError, StoreError
from pgkeep.repository import leases
from pgkeep.repository.leases import Lease
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import read_record, write_record
from pgkeep.units import utc_now

HOLD = """
import sys, time
from pgkeep.errors import BusyError
from pgkeep.repository.leases import Lease
from pgkeep.repository.posix import PosixStore
store = PosixStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with Lease(store, "backup"):
        (store.root / "tmp").mkdir(exist_ok=True)
        (store.root / "tmp" / f"{store.writer}-half").write_bytes(b"half")
        print("held", flush=True)
        sys.stdin.readline()
except BusyError:
    print("busy", flush=True)
"""

Process = subprocess.Popen[str]


@pytest.fixture
def holders(store: PosixStore) -> Iterator[list[Process]]:
    """Two processes that wait for a line before they take the lease, and for another before they let it go."""
    store.put("a", [b""])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [line(process) for process in processes] == ["ready", "ready"]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def names(store: PosixStore) -> list[str]:
    return [info.name for info in store.list("leases/")]


def foreign_lease(store: PosixStore, **changes: Any) -> str:
    """A lease as a process on another machine writes it."""
    fields = {
        "resource": "backup",
        "host": "elsewhere",
        "boot": "another machine",
        "pid": 1,
        "process_start": 1,
        "writer": "feedfeedfeedfeed",
        "expires": (utc_now() + timedelta(minutes=5)).isoformat(),
    }
    write_record(store, "leases/20000101T000000000000Z-00000000.0", {**fields, **changes})
    return "leases/20000101T000000000000Z-00000000.0"


def test_a_lease_is_there_while_it_is_held(store: PosixStore) -> None:
    with Lease(store, "backup") as lease:
        (name,) = names(store)
        fields = read_record(store, name)
        assert (fields["resource"], fields["pid"], fields["writer"]) == ("backup", os.getpid(), store.writer)
        assert not lease.took_over
    assert names(store) == []


def test_a_second_writer_is_told_who_holds_the_resource(store: PosixStore) -> None:
    with Lease(store, "backup"):
        with (
            pytest.raises(BusyError, match=f"another job holds backup: process {os.getpid()} on ") as caught,
            Lease(store, "backup"),
        ):
            pytest.fail("both hold it")
        assert "wait for it to end" in str(caught.value.hint)
        with Lease(store, "another backup") as other:
            assert not other.took_over
    with Lease(store, "backup"):
        assert len(names(store)) == 1


def test_a_lease_that_was_begun_first_and_written_late_does_not_hold_beside_another(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that holds has looked before this one was there, and sorts behind it."""
    monkeypatch.setattr(leases, "_SETTLING", 0.1)
    early = Lease(store, "backup")
    with Lease(store, "backup"):
        with pytest.raises(BusyError), early:
            pytest.fail("both hold it")
        assert len(names(store)) == 1


@pytest.mark.parametrize("attempt", range(3))
def test_of_eight_threads_exactly_one_holds(store: PosixStore, monkeypatch: pytest.MonkeyPatch, attempt: int) -> None:
    monkeypatch.setattr(leases, "_SETTLING", 1.0)
    barrier, done = threading.Barrier(8), threading.Event()
    answers = list[str]()

    def take() -> None:
        barrier.wait()
        try:
            with Lease(store, "backup"):
                answers.append("held")
                done.wait(30)
        except BusyError:
            answers.append("busy")

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    patience = time.monotonic() + 30
    while len(answers) < 8 and time.monotonic() < patience:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["busy"] * 7 + ["held"]
    assert names(store) == []


def test_of_two_processes_exactly_one_holds(holders: list[Process]) -> None:
    for process in holders:
        go(process)
    answers = {line(process): process for process in holders}
    assert sorted(answers) == ["busy", "held"]
    assert answers["busy"].wait(30) == 0
    go(answers["held"])
    assert answers["held"].wait(30) == 0


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "a zombie"])
def test_the_lease_of_a_killed_process_is_taken_over_at_once(
    store: PosixStore, holders: list[Process], reaped: bool
) -> None:
    victim = holders[0]
    go(victim)
    assert line(victim) == "held"
    with pytest.raises(BusyError, match=f"process {victim.pid} on "), Lease(store, "backup"):
        pytest.fail("both hold it")
    assert store.leftovers() == 4
    os.kill(victim.pid, 9)
    if reaped:
        victim.wait()
    else:
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
    with Lease(store, "something else") as lease:
        assert lease.took_over
        assert store.leftovers() == 0
        assert len(names(store)) == 1


def test_a_lease_from_another_machine_holds_until_it_is_over(store: PosixStore) -> None:
    foreign_lease(store)
    with pytest.raises(BusyError, match="process 1 on elsewhere") as caught, Lease(store, "backup"):
        pytest.fail("both hold it")
    assert "from another after 20" in str(caught.value.hint)
    assert len(names(store)) == 1


def test_a_lease_from_another_machine_that_is_over_is_taken_over(store: PosixStore) -> None:
    name = foreign_lease(store, expires=(utc_now() - timedelta(seconds=1)).isoformat())
    (store.root / "tmp").mkdir()
    (store.root / "tmp" / "feedfeedfeedfeed-1").write_bytes(b"half")
    with Lease(store, "backup") as lease:
        assert lease.took_over
        assert name not in names(store)
        assert store.leftovers() == 0


def test_a_process_id_that_was_given_to_another_process_is_a_dead_one(store: PosixStore) -> None:
    foreign_lease(store, boot=leases._boot_id(), pid=os.getpid(), process_start=1)
    with Lease(store, "backup") as lease:
        assert lease.took_over


def test_a_process_of_another_container_on_this_machine_is_not_taken_for_dead(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers share the kernel's boot id and not its process ids."""
    real = os.readlink
    with Lease(store, "backup"):
        monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]" if path == "/proc/self/ns/pid" else real(path))
        monkeypatch.setattr(leases, "_process_start", lambda pid: None)
        with pytest.raises(BusyError), Lease(store, "backup"):
            pytest.fail("both hold it")


@pytest.mark.parametrize(("answer", "alive"), [(PermissionError, True), (ProcessLookupError, False)])
def test_a_process_that_proc_hides_is_asked_for_by_a_signal(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch, answer: type[OSError], alive: bool
) -> None:
    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (4_000_000, 0)
        raise answer

    monkeypatch.setattr(os, "kill", kill)
    foreign_lease(store, boot=leases._boot_id(), pid=4_000_000)
    fields = read_record(store, names(store)[0])
    assert leases._is_alive(fields) is alive


def test_a_damaged_lease_holds_until_it_would_be_over(store: PosixStore) -> None:
    store.put("leases/x.0", [b"damaged"])
    with Lease(store, "backup"):
        assert "leases/x.0" in names(store)
    an_hour_ago = time.time() - 3600
    os.utime(store.root / "leases" / "x.0", (an_hour_ago, an_hour_ago))
    with Lease(store, "backup"):
        assert "leases/x.0" not in names(store)


def test_a_lease_is_renewed_while_it_is_held(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_LIFETIME", timedelta(seconds=3))
    with Lease(store, "backup"):
        first = names(store)[0]
        patience = time.monotonic() + 20
        while first in names(store) and time.monotonic() < patience:
            time.sleep(0.01)
        assert len(names(store)) == 1
        assert first not in names(store)
        with pytest.raises(BusyError), Lease(store, "backup"):
            pytest.fail("both hold it")
    assert names(store) == []


def test_a_renewal_that_fails_leaves_no_lease_behind(store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice nothing is written, once the object is there and the store says it is not."""
    monkeypatch.setattr(leases, "_LIFETIME", timedelta(seconds=0.25))
    real, calls = write_record, list[str]()

    def simulated_failing_write(target: PosixStore, name: str, fields: dict[str, object]) -> None:
        calls.append(name)
        if len(calls) == 4:
            real(target, name, fields)
        if 2 <= len(calls) <= 4:
            raise StoreError("the network is down")
        real(target, name, fields)

    monkeypatch.setattr(leases, "write_record", simulated_failing_write)
    with Lease(store, "backup"):
        patience = time.monotonic() + 20
        while len(calls) < 6 and time.monotonic() < patience:
            time.sleep(0.01)
        # a listing in the moment of a renewal may show neither record
        assert names(store) or names(store)
    assert len(calls) >= 6
    assert names(store) == []


def test_a_lease_whose_store_fails_at_the_end_hides_no_error(
    store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulated_failing_delete(self: PosixStore, name: str) -> None:
        raise StoreError("the network is down")

    monkeypatch.setattr(PosixStore, "delete", simulated_failing_delete)
    with pytest.raises(ValueError, match="of the job"), Lease(store, "backup"):
        raise ValueError("of the job")


def test_a_job_that_gives_way_leaves_no_lease(store: PosixStore) -> None:
    foreign_lease(store)
    before = names(store)
    with pytest.raises(BusyError), Lease(store, "backup"):
        pytest.fail("both hold it")
    assert names(store) == before
