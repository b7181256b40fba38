"""How long a restore would take that began now, from how long earlier ones took.

Three parts, each a sum of work times a cost: bringing the files back (a fixed time, the bytes that the files hold, the bytes fetched from
the repository), replaying WAL (a fixed time, its bytes), and the rest, which is about the same each time. The costs are fitted by least
squares of the relative errors, none below zero, and held to built-in ones as far as the measurements leave them open: with none, the
built-in costs are the prediction, and the interval says how little that is. The newest measurements count most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Measured", "Prediction", "RtoModel", "Work"]

_Vector = npt.NDArray[np.float64]

MIB = 1 << 20
_RESTORE = (1.0, 1 / (400 * MIB), 1 / (150 * MIB))
_REPLAY = (0.5, 1 / (40 * MIB))
_REST = (2.0,)
"""Built-in costs: seconds, seconds a byte written, a byte fetched, a byte of WAL replayed; of one machine with a disk of its own."""

_LOOSE_AT_FIRST = 2.0
"""How far the built-in costs may be off, as a share of themselves: machines differ by more than factors of two."""
_LOOSE = 1.0
"""How far one cost may be off against the others."""
_ROUNDS = 8
_UNUSUAL = 1.345
"""Standard deviations beyond which a measurement counts less: Huber's choice."""
_SPREAD = 0.1
"""How far measurements of the same work differ, as a share, before there are enough to say; it counts like `_SPREAD_COUNT` of them."""
_SPREAD_COUNT = 2.0
_FADES = 0.9
"""The weight of a measurement, as a share of the next newer one's."""
_SHORT = 0.5
"""Seconds: what is shorter is measured no better than this."""
_LEAST = 1e-3
"""Seconds: less is as good as nothing."""
_Z = 1.6449
"""Of the normal distribution: 90 % lie within so many standard deviations."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a restore has to do, in bytes: of files that it writes, of objects that it fetches, of WAL that it replays."""

    written: int
    fetched: int
    wal: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A restore that was measured, in seconds: the files, the replay, and all else until the first query was answered."""

    work: Work
    restore: float
    replay: float
    rest: float

    @property
    def total(self) -> float:
        """From the start to the first answer."""
        return self.restore + self.replay + self.rest


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds, with the bounds between which nine of ten are; ``measured`` is on how many restores it rests, 0 for built-in rates."""

    seconds: float
    low: float
    high: float
    measured: int


class RtoModel:
    """Fitted on measurements, the newest last."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        self._count = len(measured)
        weights = np.array([_FADES**age for age in range(len(measured) - 1, -1, -1)], dtype=np.float64)
        self._restore = _Part(
            _RESTORE, [_of_files(each.work) for each in measured], [each.restore for each in measured], weights
        )
        self._replay = _Part(
            _REPLAY, [_of_wal(each.work) for each in measured], [each.replay for each in measured], weights
        )
        self._rest = _Part(_REST, [(1.0,) for _ in measured], [each.rest for each in measured], weights)

    def predict(self, work: Work) -> Prediction:
        """The time of a restore that does this much."""
        parts = [
            self._restore.predict(_of_files(work)),
            self._replay.predict(_of_wal(work)),
            self._rest.predict((1.0,)),
        ]
        seconds = sum(part[0] for part in parts)
        # parts go wrong together (a slow disk is slow for all of them): their deviations are added, not their variances
        deviation = sum(part[1] for part in parts)
        freedom = _SPREAD_COUNT + self._count
        # on the scale of logarithms, so that the lower bound stays a time
        factor = math.exp(_student(freedom) * math.sqrt(math.log1p((deviation / seconds) ** 2)))
        return Prediction(seconds, seconds / factor, seconds * factor, self._count)

    def most_wal(self, work: Work, seconds: float) -> int | None:
        """How much WAL may be replayed so that all is done in ``seconds``; None where it would not be with none."""
        without = self.predict(Work(work.written, work.fetched, 0)).seconds
        if without > seconds:
            return None
        cost = self._replay.costs[1]
        return int((seconds - without) / cost) if cost > 0 else 1 << 62


class _Part:
    """Costs that are not below zero: weighted least squares of the relative errors, held to the built-in costs.

    How much slower this machine is than the built-in costs say is taken from all measurements together first; it is the proportions of
    the costs to one another that are held.
    """

    def __init__(
        self, built_in: Sequence[float], works: Sequence[Sequence[float]], seconds: Sequence[float], weights: _Vector
    ) -> None:
        x = np.array(works, dtype=np.float64).reshape(len(works), len(built_in)) * np.array(built_in)
        y = np.array(seconds, dtype=np.float64)
        counted = float(weights.sum())
        slower = np.log(np.maximum(y, _LEAST) / np.maximum(x.sum(axis=1), _LEAST))
        factor = math.exp(float(weights @ slower) / counted) if counted else 1.0
        # in units of what the costs would be then: all are of one size, and about 1
        self._unit = np.array(built_in) * factor
        x *= factor
        held = 1 / (_LOOSE if counted else _LOOSE_AT_FIRST) ** 2
        self._costs = np.ones(len(built_in))
        trusted = weights
        for _ in range(_ROUNDS):
            # errors are shares of what is predicted: as shares of what was measured, the quickest restores would count most
            scale = np.maximum(x @ self._costs, _SHORT)
            self._costs = _solve(x / scale[:, None], y / scale, trusted / _SPREAD**2, held)
            scale = np.maximum(x @ self._costs, _SHORT)
            residuals = (y - x @ self._costs) / scale
            # one that other work on the machine has slowed down must not bend the rest (Huber's weights)
            usual = max(float(np.median(np.abs(residuals))) * 1.4826, _SPREAD) if len(y) else _SPREAD
            trusted = weights * np.minimum(1.0, _UNUSUAL * usual / np.maximum(np.abs(residuals), 1e-9))
        scale = np.maximum(x @ self._costs, _SHORT)
        residuals = (y - x @ self._costs) / scale
        variance = (_SPREAD_COUNT * _SPREAD**2 + float(weights @ residuals**2)) / (_SPREAD_COUNT + counted)
        self._spread = math.sqrt(variance)
        scaled = x / scale[:, None]
        information = (scaled.T * weights) @ scaled / _SPREAD**2 + held * np.eye(len(built_in))
        # costs that the measurements say nothing about stay as uncertain as they were
        self._covariance = np.linalg.inv(information) * max(variance / _SPREAD**2, 1.0)

    @property
    def costs(self) -> list[float]:
        """Seconds, and seconds a byte."""
        return [float(cost) for cost in self._costs * self._unit]

    def predict(self, work: Sequence[float]) -> tuple[float, float]:
        """Seconds, and their standard deviation."""
        x = np.array(work, dtype=np.float64) * self._unit
        seconds = float(x @ self._costs)
        spread = self._spread * seconds
        return seconds, math.sqrt(spread**2 + float(x @ self._covariance @ x))


def _solve(x: _Vector, y: _Vector, weights: _Vector, held: float) -> _Vector:
    """The costs, none below zero, that fit best and are near 1: the best of the solutions for each choice of those that are not zero.

    There are three at the most, so that all choices can be tried.
    """
    columns = x.shape[1]
    best, least = np.ones(columns), math.inf
    for count in range(1, columns + 1):
        for chosen in itertools.combinations(range(columns), count):
            free = list(chosen)
            part = x[:, free]
            left = (part.T * weights) @ part + held * np.eye(count)
            solution = np.linalg.solve(left, (part.T * weights) @ y + held)
            if (solution < 0).any():
                continue
            costs = np.zeros(columns)
            costs[free] = solution
            misfit = float(weights @ (y - x @ costs) ** 2) + held * float(((costs - 1) ** 2).sum())
            if misfit < least:
                best, least = costs, misfit
    return best


def _of_files(work: Work) -> tuple[float, float, float]:
    return 1.0, float(work.written), float(work.fetched)


def _of_wal(work: Work) -> tuple[float, float]:
    return 1.0, float(work.wal)


def _student(freedom: float) -> float:
    """Within so many standard deviations are 90 % of Student's distribution (Abramowitz and Stegun, 26.7.5)."""
    return (
        _Z
        + (_Z**3 + _Z) / (4 * freedom)
        + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
        + (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / (384 * freedom**3)
    )
