"""Whether rules will do what their author hopes: sentences for those that will not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pgkeep.policy.retention import Rules
from pgkeep.units import format_duration

__all__ = ["doubts_about"]

_SHORTEST_WINDOW = timedelta(days=2)
"""What goes wrong on Friday evening is often found on Monday; under two days even a night is short."""

_SHORTEST_GRACE = timedelta(hours=1)


def doubts_about(rules: Rules) -> list[tuple[str, str]]:
    """What is doubtful about the rules, and the setting that mends it."""
    return [*_window(rules), *_periods(rules), *_grace(rules)]


def _window(rules: Rules) -> Iterator[tuple[str, str]]:
    remedy = 'window = "14d"'
    if rules.window is None:
        what = "without a window only moments since the newest backup can be reached"
        yield f"{what}, and whoever can add backups can make the one before go", remedy
    elif rules.window < _SHORTEST_WINDOW:
        what = f"a window of {format_duration(rules.window.total_seconds())} may be over before a mistake is found"
        yield f"{what}, or backups that an intruder adds", remedy


def _periods(rules: Rules) -> Iterator[tuple[str, str]]:
    if rules.window is None:
        return
    for name, count, days in (
        ("daily", rules.daily, 1),
        ("weekly", rules.weekly, 7),
        ("monthly", rules.monthly, 28),
        ("yearly", rules.yearly, 365),
    ):
        if count and timedelta(days=count * days) <= rules.window:
            window = format_duration(rules.window.total_seconds())
            yield f"{name} = {count} keeps nothing that the window of {window} does not", f"a larger {name}, or none"


def _grace(rules: Rules) -> Iterator[tuple[str, str]]:
    if rules.grace < _SHORTEST_GRACE:
        what = f"with a grace of {format_duration(rules.grace.total_seconds())} restores"
        yield f"{what} that run while backups expire may lose their WAL", 'grace = "1d"'
