"""Whether this machine's clock can be trusted with what has expired: held against the store's, and against the last expiry.

An object store has a clock of its own, and dates what comes. A directory's dates are this machine's own: there a clock that has
jumped ahead shows as a long time in which no expiry ran. So does an expiry that nobody ran; a person has to say which it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pgkeep.errors import PgkeepError
from pgkeep.policy.retention import CLOCK_TOLERANCE
from pgkeep.units import format_duration, format_time, utc_now

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from pgkeep.repository.leases import Lease

__all__ = ["check_against_store", "check_arrivals", "dates_by_our_clock", "silence"]

_LONGEST_PAUSE = timedelta(days=10)
"""An expiry that is run every week never waits so long for the next one."""


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


def dates_by_our_clock(repository: Repository) -> bool:
    """Whether the store dates objects by this machine's clock, which cannot be held against itself."""
    return repository.store.url.startswith("file:")


def silence(repository: Repository, last_run: datetime | None, now: datetime) -> str | None:
    """Why the clock may have jumped ahead, in a sentence; None where nothing says so, or where the store has a clock of its own."""
    if not dates_by_our_clock(repository) or last_run is None or now - last_run <= _LONGEST_PAUSE:
        return None
    return (
        f"pgkeep expire ran last at {format_time(last_run)} in {repository.store.url}:"
        f" {format_duration((now - last_run).total_seconds())} ago, or this machine's clock has jumped ahead"
    )
