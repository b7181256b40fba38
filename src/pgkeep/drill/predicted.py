"""What drills measured, put to use: the restore time of now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pgkeep.drill.record import DrillRecord, PhaseName
from pgkeep.policy.objectives import Forecast, forecast
from pgkeep.policy.rto import Measured, Work
from pgkeep.wal.status import WalStatus

__all__ = ["forecasts", "measured_restores"]

_FILES: tuple[PhaseName, ...] = ("fetch", "write")
_REST: tuple[PhaseName, ...] = ("plan", "start", "promote", "first query")
_ENOUGH = 3
"""Drills from the same repository: with fewer, those from others say more than nothing."""
_COUNT = 50


def measured_restores(records: Iterable[DrillRecord], *repository: str) -> list[Measured]:
    """The newest restores of a cluster that came to their end, the newest last; from this repository (its name, its URL) where there are enough.

    A drill that failed in its checks has measured a restore all the same.
    """
    usable = sorted((record for record in records if _is_usable(record)), key=lambda record: record.started)
    own = [record for record in usable if record.repository in repository]
    return [_measured(record) for record in (own if len(own) >= _ENOUGH else usable)[-_COUNT:]]


def forecasts(status: WalStatus, records: Sequence[DrillRecord], now: datetime) -> list[Forecast]:
    """For each repository that a restore could come from."""
    found = (forecast(status, wal, measured_restores(records, wal.name, wal.url), now) for wal in status.repositories)
    return [each for each in found if each is not None]


def _is_usable(record: DrillRecord) -> bool:
    return record.rto is not None and record.logical_bytes > 0 and record.seconds_of("write") is not None


def _measured(record: DrillRecord) -> Measured:
    # time spent waiting for WAL to arrive is no work, and says nothing of the next restore
    replay = max((record.seconds_of("replay") or 0.0) - record.wal_waited, 0.0)
    return Measured(
        Work(record.logical_bytes, record.fetched_bytes, record.wal_bytes),
        restore=_sum(record, _FILES),
        replay=replay,
        rest=_sum(record, _REST),
    )


def _sum(record: DrillRecord, names: Sequence[PhaseName]) -> float:
    return sum(record.seconds_of(name) or 0.0 for name in names)
