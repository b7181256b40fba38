from __future__ import annotations

import threading
import time

import pytest

from pgkeep.workers import Workers


def test_every_call_runs_once() -> None:
    done = list[int]()
    with Workers(4, "test") as workers:
        for number in range(500):
            workers.submit(done.append, number)
        workers.drain()
    assert sorted(done) == list(range(500))


def test_calls_run_in_threads_of_the_given_name_and_number() -> None:
    names, barrier = list[str](), threading.Barrier(3)

    def note() -> None:
        names.append(threading.current_thread().name)
        barrier.wait(30)

    with Workers(3, "packer") as workers:
        for _ in range(3):
            workers.submit(note)
        workers.drain()
    assert sorted(names) == ["packer_0", "packer_1", "packer_2"]


def test_all_processors_work_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert Workers(None, "test").jobs == 7
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert Workers(None, "test").jobs == 1
    assert Workers(2, "test").jobs == 2


def test_a_feeder_that_runs_ahead_is_held_back() -> None:
    gate, submitted = threading.Event(), list[int]()

    def feed(workers: Workers) -> None:
        for number in range(10):
            workers.submit(gate.wait, 30)  # type: ignore[arg-type]
            submitted.append(number)

    with Workers(2, "test", waiting=3) as workers:
        feeder = threading.Thread(target=feed, args=(workers,))
        feeder.start()
        patience = time.monotonic() + 30
        while len(submitted) < 6 and time.monotonic() < patience:
            time.sleep(0.005)
        feeder.join(0.1)
        assert len(submitted) == 6
        gate.set()
        feeder.join(30)
        workers.drain()
    assert len(submitted) == 10


def fail() -> None:
    raise ValueError("of the call")


def test_the_first_failure_is_raised_by_drain() -> None:
    with Workers(1, "test") as workers:
        workers.submit(fail)
        with pytest.raises(ValueError, match="of the call"):
            workers.drain()


@pytest.mark.timeout(60)
def test_a_failure_stops_the_feeder() -> None:
    def feed(workers: Workers) -> None:
        while True:
            workers.submit(fail)

    with Workers(2, "test", waiting=1) as workers, pytest.raises(ValueError, match="of the call"):
        feed(workers)


def test_a_failure_is_raised_to_whoever_asks() -> None:
    with Workers(1, "test") as workers:
        workers.raise_failure()
        workers.submit(fail)
        with pytest.raises(ValueError, match="of the call"):
            workers.drain()
        with pytest.raises(ValueError, match="of the call"):
            workers.raise_failure()


def test_leaving_early_drops_what_has_not_begun_and_waits_for_the_rest() -> None:
    gate, begun, done = threading.Event(), threading.Event(), list[int]()

    def work(number: int) -> None:
        begun.set()
        gate.wait(30)
        done.append(number)

    def leave_early() -> None:
        with Workers(1, "test", waiting=5) as workers:
            for number in range(5):
                workers.submit(work, number)
            begun.wait(30)
            threading.Timer(0.05, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_early()
    assert done == [0]
