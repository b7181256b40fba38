"""Numbers and times in the words of one language and one time zone."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from pgkeep.drill.report.messages import MESSAGES, Language, message
from pgkeep.units import format_duration

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

    def day(self, moment: datetime) -> str:
        """Month and day in the zone, for a plot's axis."""
        return f"{moment.astimezone(self._zone):%m-%d}"

    def duration(self, seconds: float) -> str:
        """As `pgkeep.units.format_duration`, in this language."""
        if seconds < 0:
            return f"-{self.duration(-seconds)}"
        if self.language == "en":
            return format_duration(seconds)
        if seconds < 60:
            return self("duration.second", seconds=format_duration(seconds).removesuffix(" s"))
        whole = round(seconds)
        if whole < 3600:
            return self("duration.minute", minutes=whole // 60, seconds=whole % 60)
        if whole < 86400:
            return self("duration.hour", hours=whole // 3600, minutes=whole % 3600 // 60)
        return self("duration.day", days=whole // 86400, hours=whole % 86400 // 3600)

    @staticmethod
    def share(share: float) -> str:
        """A share from 0 to 1 as per cent."""
        percent = share * 100
        return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"
