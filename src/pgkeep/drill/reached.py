"""Whether recovery ended where it was to end: position, timeline, and the time of the last transaction."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg

from pgkeep.drill.record import Check, Reached
from pgkeep.errors import PgkeepError
from pgkeep.postgres.connection import connect_sql
from pgkeep.restore.recover import Recovered
from pgkeep.restore.target import RecoveryPlan, format_moment

__all__ = ["hold_reached", "timeline_now"]

_NOW = "SELECT system_identifier, (SELECT timeline_id FROM pg_control_checkpoint()) FROM pg_control_system()"


def hold_reached(plan: RecoveryPlan, recovered: Recovered) -> tuple[Reached, Check]:
    """The recovery has held its LSN against the plan already; here the timelines it went along and the last transaction's time."""
    path, lsn = plan.path, recovered.lsn
    timeline = path.timeline_of(lsn - 1)
    crossed = [
        each for each in path.timelines if path.start_of(each) < lsn and not _ended(path.end_of(each), plan.start_lsn)
    ]
    last = _time(recovered.last_transaction)
    reached = Reached(lsn=str(lsn), time=last, timeline=timeline, crossed=crossed)
    problem = None
    if timeline < plan.stop_timeline or (timeline != plan.stop_timeline and not plan.open_ended):
        problem = f"recovery ended on timeline {timeline}, and was to end on timeline {plan.stop_timeline}"
    elif (
        plan.told_time is not None
        and last != plan.told_time
        and not (plan.open_ended and last and last > plan.told_time)
    ):
        said = "none" if last is None else format_moment(last)
        problem = f"the last transaction that was replayed ended {said}, and was to be that of {format_moment(plan.told_time)}"
    went = " and ".join(map(str, crossed))
    detail = f"LSN {lsn} on timeline {timeline}" + (f", along timelines {went}" if len(crossed) > 1 else "")
    if last is not None:
        detail += f", the last transaction of {format_moment(last)}"
    check = Check(
        name="reached",
        kind="reached",
        outcome="passed" if problem is None else "failed",
        detail=problem or detail,
        remedy=None if problem is None else "pgkeep list --window shows what the repository holds",
        counted=1,
        unit="targets",
    )
    return reached, check


def timeline_now(dsn: str, system_identifier: int) -> int | None:
    """The timeline that the live cluster is on; None where it does not answer, or another one does."""
    try:
        with connect_sql(dsn) as connection:
            row = connection.execute(_NOW).fetchone()
    except (PgkeepError, psycopg.Error):
        return None
    return int(row[1]) if row is not None and int(row[0]) == system_identifier else None


def _ended(end: int | None, start: int) -> bool:
    return end is not None and end <= start


def _time(said: str | None) -> datetime | None:
    """As the server writes it: ``2026-11-23 17:00:00.12345+00``."""
    try:
        return None if said is None else datetime.fromisoformat(said.strip()).astimezone(UTC)
    except ValueError:
        return None
