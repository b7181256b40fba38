"""Numbers and times in the words of one language and one time zone."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from pgkeep.drill.report.messages import MESSAGES, Language, message

__all__ = ["Wording", "clip", "visible"]


def visible(text: str) -> str:
    """The text in one line, with what cannot be printed shown as an escape: names come from servers."""
    joined = " ".join(text.split())
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in joined
    )


def clip(text: str, limit: int) -> str:
    """The text on one line, cut off where it is longer than ``limit`` characters."""
    text = visible(text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


_UNITS = ((86400, "day", 3600, "hour"), (3600, "hour", 60, "minute"), (60, "minute", 1, "second"))


class Wording:
    """``words("key", count=3)`` is a message; the methods are values.

    ``zone`` is the name of a time zone, for the times that are shown first; None shows UTC only.
    """

    def __init__(self, language: Language, zone: str | None = None) -> None:
        self.language = language
        self._zone: tzinfo = UTC if zone is None else ZoneInfo(zone)

    def __call__(self, key: str, /, **values: object) -> str:
        return message(self.language, key, **values)

    def known(self, prefix: str, value: str) -> str:
        """The word for a value of the record; itself where a later version of pgkeep wrote one that we do not know."""
        key = f"{prefix}.{value}"
        return self(key) if key in MESSAGES else visible(value)

    def time(self, moment: datetime) -> str:
        """To the second, in the zone with its offset, and in UTC beside it."""
        there, utc = moment.astimezone(self._zone), moment.astimezone(UTC)
        if not there.utcoffset():
            return f"{utc:%Y-%m-%d %H:%M:%S} UTC"
        beside = f"{utc:%H:%M:%S}" if there.date() == utc.date() else f"{utc:%Y-%m-%d %H:%M:%S}"
        return f"{there.replace(microsecond=0).isoformat(sep=' ')} ({beside} UTC)"

    def short_time(self, moment: datetime) -> str:
        """To the minute, in the zone, for a table."""
        there = moment.astimezone(self._zone)
        return f"{there:%Y-%m-%d %H:%M}" + ("" if there.utcoffset() else " UTC")

    def bare_time(self, moment: datetime) -> str:
        """To the second, in the zone, for a table."""
        there = moment.astimezone(self._zone)
        return f"{there:%Y-%m-%d %H:%M:%S}" + ("" if there.utcoffset() else " UTC")

    def day(self, moment: datetime) -> str:
        """Month and day in the zone, for a plot's axis."""
        return f"{moment.astimezone(self._zone):%m-%d}"

    def duration(self, seconds: float) -> str:
        """Two units at most, nothing that is zero: ``75`` -> ``"1 min 15 s"``, ``900`` -> ``"15 min"``, ``0.25`` -> ``"0.25 s"``."""
        if seconds < 0:
            return f"-{self.duration(-seconds)}"
        if seconds < 59.95:
            shown = f"{seconds:.2f}" if seconds < 1 else f"{seconds:.1f}"
            return self("unit.second", count=shown.rstrip("0").rstrip("."))
        whole = round(seconds)
        size, unit, smaller, smaller_unit = next(row for row in _UNITS if whole >= row[0])
        parts = ((whole // size, unit), (whole % size // smaller, smaller_unit))
        return " ".join(self(f"unit.{name}", count=count) for count, name in parts if count)

    @staticmethod
    def share(share: float) -> str:
        """A share from 0 to 1 as per cent."""
        percent = share * 100
        return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"
