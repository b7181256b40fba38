"""Which rules keep a backup: a function of the backups, the pins, the rules and the time, and of nothing else.

Whoever may write to a repository may add backups, with any times in them; whoever may do no more must not be able to make
good ones go. So no rule counts backups (but ``minimum``, which only adds), and none counts backwards from the newest one:

* A backup claims when it was taken; the store says when it arrived, and nobody who cannot also replace objects forges that.
  A backup that claims to be younger than the store says is *doubtful*: it stands for nothing, and is never removed unasked.
* The window goes back from now. A backup is before it only once its own time and the store's are.
* The periods of a rule are those of the calendar, from now back, with backups or without. In each the backup counts that
  reached the store first, and the first verified one: whatever is added later takes nobody's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.units import format_duration

if TYPE_CHECKING:
    from pgkeep.config import RetentionSettings

__all__ = [
    "CLOCK_TOLERANCE",
    "Held",
    "Hold",
    "Rules",
    "State",
    "Verdict",
    "decide",
    "lies_on",
    "starts_since",
    "window_start",
]

CLOCK_TOLERANCE = timedelta(hours=1)
"""By how much the clocks of a server, a store and this machine may differ before a backup's time is doubted."""


class State(IntEnum):
    """What is known of a backup's worth."""

    TAKEN = 0
    VERIFIED = 1
    PROVEN = 2


@dataclass(frozen=True, slots=True)
class Rules:
    """What to keep. ``window``: every moment so far back; the counts are of calendar periods in ``zone``, the current one
    included; ``minimum`` newest backups whatever their age. ``grace``: how long the WAL of a backup outlives it, for those who
    are reading it.
    """

    window: timedelta | None = None
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    minimum: int = 1
    zone: str = "UTC"
    grace: timedelta = timedelta(days=1)

    @classmethod
    def of(cls, settings: RetentionSettings) -> Rules:
        """As a configuration has them."""
        return cls(
            None if settings.window is None else timedelta(seconds=settings.window),
            settings.daily,
            settings.weekly,
            settings.monthly,
            settings.yearly,
            settings.minimum,
            settings.time_zone,
            timedelta(seconds=settings.grace),
        )

    def describe(self) -> str:
        """In words, for people."""
        counts = {"daily": self.daily, "weekly": self.weekly, "monthly": self.monthly, "yearly": self.yearly}
        parts = (
            [] if self.window is None else [f"every moment of the last {format_duration(self.window.total_seconds())}"]
        )
        parts += [f"{count} {name}" for name, count in counts.items() if count]
        zone = f" (calendar of {self.zone})" if any(counts.values()) else ""
        return f"{', '.join([*parts, f'at least {self.minimum}'])}{zone}"


@dataclass(frozen=True, slots=True)
class Held:
    """A backup in a repository: ``started`` and ``finished`` are what it says itself, ``stored`` what the store does."""

    id: str
    started: datetime
    finished: datetime
    stored: datetime
    timeline: int
    start_lsn: int
    stop_lsn: int
    state: State = State.TAKEN

    @property
    def settled(self) -> datetime:
        """Since when, by every clock, it is there."""
        return max(self.finished, self.stored)

    def is_doubtful(self, now: datetime) -> bool:
        """Whether it claims to be from later than it can be."""
        return max(self.started, self.finished) > min(self.stored, now) + CLOCK_TOLERANCE


@dataclass(frozen=True, slots=True)
class Hold:
    """A pin: ``until`` None is for ever."""

    backup: str
    reason: str
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it has not ended."""
        return self.until is None or now < self.until


@dataclass
class Verdict:
    """One backup and the rules that keep it, for people; none: it goes. ``continuous``: WAL is kept from its start on."""

    backup: Held
    kept_by: list[str] = field(default_factory=list)
    continuous: bool = False

    @property
    def goes(self) -> bool:
        """Whether no rule keeps it."""
        return not self.kept_by


def window_start(rules: Rules, now: datetime) -> datetime:
    """The oldest moment that must be reachable; without a window it is now."""
    return now if rules.window is None else now - rules.window


def lies_on(path: TimelineHistory, backup: Held) -> bool:
    """Whether a recovery along the path can start from the backup."""
    return (
        backup.timeline in path.timelines
        and path.timeline_of(backup.start_lsn) == backup.timeline
        and path.timeline_of(backup.stop_lsn - 1) == backup.timeline
    )


def decide(
    backups: Iterable[Held], pins: Iterable[Hold], rules: Rules, now: datetime, paths: Sequence[TimelineHistory] = ()
) -> list[Verdict]:
    """For each backup of one cluster, oldest first, the rules that keep it.

    ``paths`` lead to the timelines on which moments of the window lie; a backup without its path among them is kept by the
    other rules alone.

    What holds: adding a backup that reaches the store later than all others, and within the window, makes no other one go
    that a window, a period or a pin keeps. The newest, the newest verified and the newest proven one are always kept.
    """
    ordered = sorted(backups, key=lambda backup: (backup.started, backup.id))
    verdicts = {backup.id: Verdict(backup) for backup in ordered}
    for pin in pins:
        if pin.backup in verdicts and pin.holds(now):
            until = "for ever" if pin.until is None else f"until {pin.until:%Y-%m-%d}"
            verdicts[pin.backup].kept_by.append(f"pinned {until}: {pin.reason}")
    counted = []
    for backup in ordered:
        if backup.is_doubtful(now):
            verdicts[backup.id].kept_by.append("doubtful: its time is later than the store's")
        else:
            counted.append(backup)
    _keep_window(verdicts, counted, rules, now, paths)
    _keep_periods(verdicts, counted, rules, now)
    _keep_newest(verdicts, counted, rules.minimum)
    return list(verdicts.values())


def starts_since(
    backups: Iterable[Held], paths: Iterable[TimelineHistory], begin: datetime, now: datetime
) -> list[str]:
    """The ids of the backups that a recovery to some moment since ``begin`` may start from: those since then, and on each path the
    last one before.
    """
    counted = [backup for backup in backups if not backup.is_doubtful(now)]
    found = {backup.id for backup in counted if backup.settled >= begin}
    for path in paths:
        before = [backup for backup in counted if backup.settled < begin and lies_on(path, backup)]
        if before:
            found.add(max(before, key=_end).id)
    return sorted(found)


def _keep_window(
    verdicts: dict[str, Verdict],
    counted: Sequence[Held],
    rules: Rules,
    now: datetime,
    paths: Sequence[TimelineHistory],
) -> None:
    begin = window_start(rules, now)
    for id_ in starts_since(counted, paths, begin, now):
        verdict = verdicts[id_]
        verdict.continuous = True
        if rules.window is None:
            verdict.kept_by.append("newest")
        else:
            verdict.kept_by.append("window" if verdict.backup.settled >= begin else "window's begin")


def _keep_periods(verdicts: dict[str, Verdict], counted: Sequence[Held], rules: Rules, now: datetime) -> None:
    zone = ZoneInfo(rules.zone)
    today = _day_in(zone, now)
    for period in _PERIODS:
        count: int = getattr(rules, period.rule)
        if count == 0:
            continue
        oldest = period.back(period.begin(today), count - 1)
        inside: dict[date, list[Held]] = {}
        for backup in counted:
            begin = period.begin(_day_in(zone, backup.started))
            if begin >= oldest:
                inside.setdefault(begin, []).append(backup)
        for begin, candidates in inside.items():
            why = begin.strftime(period.text)
            first = min(candidates, key=_arrival)
            verdicts[first.id].kept_by.append(why)
            verified = [backup for backup in candidates if backup.state >= State.VERIFIED]
            if verified and first.state < State.VERIFIED:
                verdicts[min(verified, key=_arrival).id].kept_by.append(f"{why}, verified")


def _keep_newest(verdicts: dict[str, Verdict], counted: Sequence[Held], minimum: int) -> None:
    newest = sorted(counted, key=_end)
    for backup in newest[-minimum:]:
        verdicts[backup.id].kept_by.append("minimum")
    for state, why in ((State.VERIFIED, "newest verified"), (State.PROVEN, "newest proven")):
        reached = [backup for backup in newest if backup.state >= state]
        if reached:
            verdicts[reached[-1].id].kept_by.append(why)


def _end(backup: Held) -> tuple[datetime, str]:
    return backup.finished, backup.id


def _arrival(backup: Held) -> tuple[datetime, str]:
    return backup.stored, backup.id


def _day_in(zone: ZoneInfo, moment: datetime) -> date:
    try:
        return moment.astimezone(zone).date()
    except OverflowError:
        # whoever writes a manifest writes its times
        return moment.date()


def _months_back(day: date, count: int) -> date:
    months = max(day.year * 12 + day.month - 1 - count, 12)
    return date(months // 12, months % 12 + 1, 1)


@dataclass(frozen=True, slots=True)
class _Period:
    """A rule's calendar periods: each goes by its first day."""

    rule: str
    text: str
    begin: Callable[[date], date]
    back: Callable[[date, int], date]


_PERIODS = (
    _Period("daily", "day %Y-%m-%d", lambda day: day, lambda day, count: day - timedelta(days=count)),
    _Period(
        "weekly",
        "week %G-W%V",
        lambda day: day - timedelta(days=min(day.weekday(), day.toordinal() - 1)),
        lambda day, count: day - timedelta(weeks=count),
    ),
    _Period("monthly", "month %Y-%m", lambda day: day.replace(day=1), _months_back),
    _Period(
        "yearly",
        "year %Y",
        lambda day: day.replace(month=1, day=1),
        lambda day, count: date(max(day.year - count, 1), 1, 1),
    ),
)
