"""Whether a recovery ended where its plan said: short of the target is a failure, and so is past it."""

from __future__ import annotations

import re

from pgkeep.errors import RecoveryError
from pgkeep.postgres.lsn import LSN
from pgkeep.restore.target import RecoveryPlan

__all__ = ["check_end", "check_stop"]

_PAGE = 8192
_SHORT_HEADER, _LONG_HEADER = 24, 40
"""Bytes of a WAL page's header; the long one stands on a segment's first page (src/include/access/xlog_internal.h)."""

_EXPECTED = {
    "immediate": re.compile(r"recovery stopping after reaching consistency"),
    "time": re.compile(r"recovery stopping (?:before|after) (?:commit|abort) of (?:prepared )?transaction"),
    "xid": re.compile(r"recovery stopping (?:before|after) (?:commit|abort) of (?:prepared )?transaction (\d+),"),
    "lsn": re.compile(r"recovery stopping (?:before|after) WAL location"),
    "name": re.compile(r"recovery stopping at restore point \"(.*)\", time "),
}


def check_stop(plan: RecoveryPlan, stopping: str | None) -> None:
    """Hold the server's words on where it stopped against the target. Raises RecoveryError where they are of another."""
    kind = _kind(plan)
    if kind is None:
        return
    expected = _EXPECTED[kind]
    match = expected.search(stopping or "")
    value = plan.target.value
    if match is None or (kind in {"xid", "name"} and match[1] != value):
        raise RecoveryError(
            f"recovery stopped elsewhere than at its target ({kind} {value}): {stopping or 'no word of it'}",
            hint="the server was not promoted; see its log",
        )


def check_end(plan: RecoveryPlan, reached: LSN, timeline: int, *, promoted: bool) -> None:
    """Hold the LSN and the timeline against the plan. Raises RecoveryError where they differ."""
    end, planned = _boundary(reached, plan.segment_size), _boundary(plan.stop_lsn, plan.segment_size)
    if end < planned:
        raise RecoveryError(
            f"recovery ended at {reached}, short of its target at {plan.stop_lsn} on timeline {plan.path.timeline}",
            hint="is WAL missing? pgkeep wal status shows what the repository holds",
        )
    if end > planned and not plan.open_ended:
        raise RecoveryError(
            f"recovery went to {reached}, past its target at {plan.stop_lsn}",
            hint="the server was stopped; restore again, to the target's LSN: --to-lsn " + str(plan.stop_lsn),
        )
    if promoted and timeline <= plan.path.timeline:
        raise RecoveryError(f"recovery ended on timeline {timeline}, and a new one was due after {plan.path.timeline}")


def _kind(plan: RecoveryPlan) -> str | None:
    """What the server was told to stop at; None where it goes to the end of the WAL."""
    if "recovery_target" in plan.settings:
        return "immediate"
    return next((kind for kind in _EXPECTED if f"recovery_target_{kind}" in plan.settings), None)


def _boundary(lsn: int, segment_size: int) -> int:
    """An LSN right behind a page's header is the page's start: PostgreSQL gives the one or the other."""
    if lsn % segment_size == _LONG_HEADER:
        return lsn - _LONG_HEADER
    return lsn - _SHORT_HEADER if lsn % _PAGE == _SHORT_HEADER else lsn
