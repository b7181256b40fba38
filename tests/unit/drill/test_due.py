"""A drill that is late, failing or was never run is an alarm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from pgkeep.config import Cluster
from pgkeep.drill.due import due_plans, judge_drills, ordinary_is_due
from pgkeep.drill.record import DrillRecord
from support.drill_records import passed_record

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def cluster(**drill: Any) -> Cluster:
    return Cluster.model_validate({"name": "auth", "dsn": "host=/nowhere", "repositories": ("main",), "drill": drill})


def drill(days_ago: float, state: Any = "passed", plan: str | None = None) -> DrillRecord:
    ended = NOW - timedelta(days=days_ago)
    cause = None if state == "passed" else "WAL is missing"
    changes = {
        "id": f"{ended:%Y%m%dT%H%M%S}.000Z-00000000",
        "ended": ended,
        "state": state,
        "plan": plan,
        "cause": cause,
    }
    return msgspec.structs.replace(passed_record(), **changes)


def status(settings: Cluster, *records: DrillRecord) -> list[tuple[str, str]]:
    return [(finding.name, finding.status) for finding in judge_drills(settings, records, NOW)]


def test_what_was_never_run_is_a_warning_and_a_failure_where_it_was_asked_for() -> None:
    assert status(cluster()) == [("drills", "warning")]
    assert status(cluster(every=86400.0)) == [("drills", "failed")]
    assert ordinary_is_due(cluster(every=86400.0), [], NOW)
    assert not ordinary_is_due(cluster(), [], NOW)


def test_one_that_is_late_is_a_failure_that_says_since_when() -> None:
    settings = cluster(every=7 * 86400.0)
    assert status(settings, drill(9), drill(6)) == [("drills", "ok")]
    (finding,) = judge_drills(settings, [drill(9)], NOW)
    assert finding.message == "the last drill that passed was 9 d 0 h ago, and one is due every 7 d 0 h"
    assert (finding.status, finding.remedy) == ("failed", "pgkeep drill")
    assert status(cluster(), drill(9000)) == [("drills", "ok")]


def test_one_that_failed_last_is_a_failure_whatever_passed_before() -> None:
    (finding,) = judge_drills(cluster(), [drill(2), drill(1, "failed")], NOW)
    assert finding.status == "failed"
    assert "failed: WAL is missing" in finding.message
    assert status(cluster(), drill(2, "failed"), drill(1)) == [("drills", "ok")]


def test_plans_are_due_each_in_its_own_time_by_their_own_drills() -> None:
    plans = [{"name": "monthly", "every": 30 * 86400.0}, {"name": "quarterly", "every": 90 * 86400.0}]
    settings = cluster(plan=plans)
    records = [drill(60, plan="quarterly"), drill(40, plan="monthly"), drill(20, "failed", "monthly"), drill(1)]
    assert [plan.name for plan in due_plans(settings, records, NOW)] == ["monthly"]
    assert status(settings, *records) == [
        ("drills", "ok"),
        ("drill plan monthly", "failed"),
        ("drill plan quarterly", "ok"),
    ]
    assert [plan.name for plan in due_plans(settings, [], NOW)] == ["monthly", "quarterly"]
