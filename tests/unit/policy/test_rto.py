"""The prediction of a restore's time: what it learns from measurements, and what it says without any."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.policy.rto import MIB, Measured, RtoModel, Work

_GIB = 1 << 30
_works = st.builds(
    Work,
    written=st.integers(0, 1 << 44),
    fetched=st.integers(0, 1 << 44),
    wal=st.integers(0, 1 << 42),
)
_times = st.floats(0, 1e6)
_measured = st.lists(st.builds(Measured, work=_works, restore=_times, replay=_times, rest=_times), max_size=12)


class Machine:
    """Restores at rates of its own, give or take ``noise``."""

    def __init__(self, write: float, fetch: float, replay: float, fixed: float, noise: float, seed: int) -> None:
        self._rates = (write * MIB, fetch * MIB, replay * MIB)
        self._fixed = fixed
        self._noise = noise
        self._chance = random.Random(seed)

    def restore(self, work: Work) -> Measured:
        """One restore, measured."""
        write, fetch, replay = self._rates
        return Measured(
            work,
            restore=self._about(self._fixed / 4 + work.written / write + work.fetched / fetch),
            replay=self._about(self._fixed / 4 + work.wal / replay),
            rest=self._about(self._fixed / 2),
        )

    def exact(self, work: Work) -> float:
        """The time without noise."""
        write, fetch, replay = self._rates
        return self._fixed + work.written / write + work.fetched / fetch + work.wal / replay

    def _about(self, seconds: float) -> float:
        return seconds * self._chance.uniform(1 - self._noise, 1 + self._noise)


_machines = st.builds(
    Machine,
    write=st.floats(30, 3000),
    fetch=st.floats(5, 2000),
    replay=st.floats(5, 500),
    fixed=st.floats(0.5, 20),
    noise=st.just(0.03),
    seed=st.integers(0, 1000),
)


def _work(size: float, wal: float) -> Work:
    return Work(int(size * _GIB), int(size * _GIB / 3), int(wal * _GIB))


@settings(max_examples=50)
@given(_machines)
def test_after_drills_of_several_sizes_others_are_predicted_within_a_quarter(machine: Machine) -> None:
    drills = [(1, 0.2), (2, 1.0), (4, 0.1), (8, 2.0), (16, 0.5), (2, 4.0)]
    model = RtoModel([machine.restore(_work(*each)) for each in drills])
    for size, wal in [(1.5, 0.5), (3, 3.0), (6, 0.3), (12, 1.0)]:
        exact = machine.exact(_work(size, wal))
        assert abs(model.predict(_work(size, wal)).seconds - exact) < 0.25 * exact


@settings(max_examples=50)
@given(_machines)
def test_one_drill_is_enough_to_predict_the_same_again(machine: Machine) -> None:
    work = _work(5, 1)
    exact = machine.exact(work)
    prediction = RtoModel([machine.restore(work)]).predict(work)
    assert abs(prediction.seconds - exact) < 0.25 * exact
    assert prediction.low < exact < prediction.high


@settings(max_examples=50)
@given(_measured, _works)
def test_a_prediction_is_a_time_within_its_bounds_whatever_was_measured(measured: list[Measured], work: Work) -> None:
    prediction = RtoModel(measured).predict(work)
    assert 0 < prediction.low <= prediction.seconds <= prediction.high < float("inf")
    assert prediction.measured == len(measured)


@settings(max_examples=50)
@given(_measured, _works, st.integers(0, 1 << 40))
def test_more_to_do_never_takes_less_time(measured: list[Measured], work: Work, more: int) -> None:
    model = RtoModel(measured)
    seconds = model.predict(work).seconds
    assert model.predict(Work(work.written + more, work.fetched, work.wal)).seconds >= seconds
    assert model.predict(Work(work.written, work.fetched + more, work.wal)).seconds >= seconds
    assert model.predict(Work(work.written, work.fetched, work.wal + more)).seconds >= seconds


@settings(max_examples=50)
@given(_measured, _works, st.floats(1, 1e5))
def test_with_the_most_wal_that_may_be_the_objective_is_just_met(
    measured: list[Measured], work: Work, objective: float
) -> None:
    model = RtoModel(measured)
    most = model.most_wal(work, objective)
    if most is None:
        assert model.predict(Work(work.written, work.fetched, 0)).seconds > objective
    else:
        assert model.predict(Work(work.written, work.fetched, most)).seconds <= objective * 1.001


def test_drills_make_the_interval_narrow() -> None:
    machine = Machine(200, 100, 50, 4, 0.05, 1)
    work = _work(5, 1)
    widths = []
    for count in (0, 1, 3, 10):
        prediction = RtoModel([machine.restore(_work(5 + n % 3, 1 + n % 2)) for n in range(count)]).predict(work)
        widths.append(prediction.high / prediction.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 4, "built-in rates promise little"
    assert widths[-1] < 2


def test_what_was_never_measured_is_less_certain_than_what_was() -> None:
    machine = Machine(200, 100, 50, 4, 0.05, 1)
    model = RtoModel([machine.restore(_work(5, 0)) for _ in range(5)])
    near, far = model.predict(_work(5, 0)), model.predict(_work(5, 10))
    assert far.high / far.low > 1.5 * near.high / near.low


def test_a_machine_that_became_slower_is_believed_after_a_few_drills() -> None:
    before, now = Machine(400, 200, 100, 2, 0.03, 1), Machine(100, 50, 25, 8, 0.03, 2)
    work = _work(6, 1)
    drills = [before.restore(_work(4 + n % 4, 1)) for n in range(5)] + [
        now.restore(_work(4 + n % 4, 1)) for n in range(15)
    ]
    exact = now.exact(work)
    assert abs(RtoModel(drills).predict(work).seconds - exact) < 0.25 * exact
