"""Drills that are due, late, failing, or were never run: an alarm, and what is to be done next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pgkeep.config import Cluster, DrillPlan
from pgkeep.drill.record import DrillRecord
from pgkeep.errors import ProofError
from pgkeep.findings import Finding, failed
from pgkeep.units import format_duration

__all__ = ["due_plans", "judge_drills", "ordinary_is_due"]


def judge_drills(cluster: Cluster, records: Sequence[DrillRecord], now: datetime) -> list[Finding]:
    """One finding for the cluster's drills in all, and one for each plan. ``records`` oldest first."""
    findings = [_judge("drills", cluster.drill.every, records, now, "pgkeep drill")]
    for plan in cluster.drill.plans:
        command = f"pgkeep drill --plan {plan.name}"
        findings.append(_judge(f"drill plan {plan.name}", plan.every, _of(plan, records), now, command))
    return findings


def due_plans(cluster: Cluster, records: Sequence[DrillRecord], now: datetime) -> list[DrillPlan]:
    """The plans of which no drill passed in their time."""
    return [plan for plan in cluster.drill.plans if _is_late(plan.every, _of(plan, records), now)]


def ordinary_is_due(cluster: Cluster, records: Sequence[DrillRecord], now: datetime) -> bool:
    """Whether no drill of whatever kind passed in the time that ``drill.every`` gives."""
    return cluster.drill.every is not None and _is_late(cluster.drill.every, records, now)


def _judge(name: str, every: float | None, records: Sequence[DrillRecord], now: datetime, command: str) -> Finding:
    newest = max(records, key=lambda record: record.id, default=None)
    if newest is None:
        message = "no drill was ever run: no backup is proven"
        return (
            Finding(name, "warning", message, command)
            if every is None
            else failed(name, ProofError(message, hint=command))
        )
    if not newest.passed:
        message = f"the last drill, {newest.id}, failed: {newest.cause}"
        return failed(name, ProofError(message, hint=newest.remedy or "pgkeep drill report latest"))
    ago = format_duration(max((now - newest.ended).total_seconds(), 0.0))
    if every is not None and _is_late(every, records, now):
        message = f"the last drill that passed was {ago} ago, and one is due every {format_duration(every)}"
        return failed(name, ProofError(message, hint=command))
    return Finding(name, "ok", f"passed {ago} ago: {newest.id}")


def _is_late(every: float, records: Sequence[DrillRecord], now: datetime) -> bool:
    passed = [record.ended for record in records if record.passed]
    return not passed or (now - max(passed)).total_seconds() > every


def _of(plan: DrillPlan, records: Sequence[DrillRecord]) -> list[DrillRecord]:
    return [record for record in records if record.plan == plan.name]
