"""Whether this machine's clock can be trusted with what has expired: held against the store's, and against what came when.

An object store has a clock of its own, and dates what comes. A directory's dates are this machine's own: there a clock that has
jumped ahead shows as a long time in which nothing came. So does a cluster that nobody backed up; a person has to say which it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pgkeep.errors import PgkeepError
from pgkeep.policy.retention import CLOCK_TOLERANCE, Rules
from pgkeep.units import format_duration, format_time, utc_now

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from pgkeep.repository.leases import Lease

__all__ = ["check_against_store", "check_arrivals", "silence"]

_SHORTEST_SILENCE = timedelta(days=7)
"""A machine that was off over a long weekend has no wrong clock."""

_JUST_NOW = timedelta(days=2)
"""What came so lately may have been dated by a clock that had jumped already."""


def check_arrivals(repository: Repository, arrivals: Iterable[tuple[str, datetime]], now: datetime) -> None:
    """Hold the clock against backups and the times at which they came. Raises PgkeepError where one is of the future."""
    for backup, stored in arrivals:
        if stored > now + CLOCK_TOLERANCE:
            raise PgkeepError(
                f"the clock of this machine must be wrong: it shows {format_time(now)}, and backup {backup} came to"
                f" {repository.store.url} at {format_time(stored)}; nothing was removed",
                hint="set the clock: what has expired is decided by it",
            )


def check_against_store(repository: Repository, lease: Lease) -> None:
    """Hold the clock against the store's, which has just dated our lease. Raises PgkeepError, StoreError."""
    here, there = utc_now(), repository.store.info(lease.name).modified
    if abs(here - there) > CLOCK_TOLERANCE:
        raise PgkeepError(
            f"the clock of this machine shows {format_time(here)}, that of {repository.store.url} {format_time(there)};"
            " nothing was removed",
            hint="set the clock that is wrong: what has expired is decided by it",
        )


def silence(repository: Repository, arrivals: Iterable[datetime], rules: Rules, now: datetime) -> str | None:
    """Why the clock may have jumped ahead, in a sentence; None where nothing says so, or where the store has a clock of its own."""
    if not repository.store.url.startswith("file:"):
        return None
    last = max((came for came in arrivals if came <= now - _JUST_NOW), default=None)
    if last is None or now - last <= max(rules.window or timedelta(0), _SHORTEST_SILENCE):
        return None
    return (
        f"nothing came to {repository.store.url} between {format_time(last)} and the last two days: for"
        f" {format_duration((now - last).total_seconds())} nothing was backed up, or this machine's clock has jumped ahead"
    )
