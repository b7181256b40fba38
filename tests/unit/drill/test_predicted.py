"""From the records of drills to the measurements that a prediction rests on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pgkeep.drill.predicted import measured_restores
from pgkeep.drill.record import DrillRecord, Phase, Rto
from pgkeep.policy.rto import Measured, Work

_MOMENT = datetime(2026, 11, 23, 3, 4, 5, tzinfo=UTC)


def _record(number: int, **changes: object) -> DrillRecord:
    """A drill that took ``number`` seconds to write."""
    fields: dict[str, object] = {
        "id": f"20261123T030405.{number:03}Z-1f2e3d4c",
        "cluster": "auth",
        "system_identifier": 1,
        "repository": "main",
        "started": _MOMENT + timedelta(days=number),
        "ended": _MOMENT + timedelta(days=number),
        "state": "passed",
        "asked_by": "operator",
        "logical_bytes": 1000,
        "fetched_bytes": 300,
        "wal_bytes": 50,
        "wal_waited": 1.5,
        "phases": [
            Phase(name="plan", seconds=0.25),
            Phase(name="write", seconds=float(number)),
            Phase(name="replay", seconds=4.0),
            Phase(name="first query", seconds=0.5),
            Phase(name="checks", seconds=100.0),
        ],
        "rto": Rto(measured=10.0),
        **changes,
    }
    return DrillRecord(**fields)  # type: ignore[arg-type]


def test_a_drill_is_a_measurement_without_its_checks_and_without_waiting_for_wal() -> None:
    assert measured_restores([_record(3)], "main") == [Measured(Work(1000, 300, 50), 3.0, 2.5, 0.75)]


def test_a_drill_that_failed_in_its_checks_counts_and_one_that_never_answered_does_not() -> None:
    records = [_record(1, state="failed"), _record(2, rto=None), _record(3, phases=[]), _record(4, logical_bytes=0)]
    assert [each.restore for each in measured_restores(records, "main")] == [1.0]


def test_the_newest_are_last_and_those_of_the_same_repository_count_where_there_are_enough() -> None:
    records = [_record(5), _record(1), _record(2, repository="far"), _record(9, repository="file:///main")]
    assert [each.restore for each in measured_restores(records, "main", "file:///main")] == [1.0, 5.0, 9.0]
    assert [each.restore for each in measured_restores(records, "far", "s3://far")] == [1.0, 2.0, 5.0, 9.0]
