"""How a check's answer is put into words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgkeep.drill.record import Check, CheckKind
from pgkeep.drill.session import Done

__all__ = ["coverage", "failed", "passed", "skipped"]

_SHOWN = 3


def passed(kind: CheckKind, detail: str, counted: int, unit: str, *, sampled: float = 1.0) -> Check:
    """All that was looked at is as it should be."""
    return Check(name=kind, kind=kind, outcome="passed", detail=detail, counted=counted, unit=unit, sampled=sampled)


def failed(
    kind: CheckKind, problems: Sequence[str], remedy: str, counted: int, unit: str, *, sampled: float = 1.0
) -> Check:
    """``problems`` are sentences that name what is wrong; the first ones are shown."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return Check(
        name=kind,
        kind=kind,
        outcome="failed",
        detail="; ".join(problems[:_SHOWN]) + more,
        remedy=remedy,
        counted=counted,
        unit=unit,
        sampled=sampled,
    )


def skipped(kind: CheckKind, detail: str, remedy: str | None = None) -> Check:
    """It could not be done, which is no fault of the backup."""
    return Check(name=kind, kind=kind, outcome="skipped", detail=detail, remedy=remedy, sampled=0.0)


def coverage(done: Done[Any, Any]) -> str:
    """``, 30 % of the bytes in the time that there was``; nothing where all was looked at."""
    return f", {done.share:.0%} of the bytes in the time that there was" if done.left else ""
