"""What a check says: one sentence, how bad it is, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pgkeep.errors import PgkeepError

__all__ = ["Finding", "Status", "failed", "first_failure"]

Status = Literal["ok", "warning", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. ``remedy`` is the command or setting that mends it; ``error`` is there when it failed."""

    name: str
    status: Status
    message: str
    remedy: str | None = None
    error: PgkeepError | None = field(default=None, compare=False)

    def document(self) -> dict[str, object]:
        """For ``--json``."""
        return {"name": self.name, "status": self.status, "message": self.message, "remedy": self.remedy}


def failed(name: str, error: PgkeepError) -> Finding:
    """A check that failed, in its error's words."""
    return Finding(name, "failed", str(error), error.hint, error)


def first_failure(findings: Iterable[Finding]) -> PgkeepError | None:
    """The error of the first check that failed."""
    return next((finding.error for finding in findings if finding.error is not None), None)
