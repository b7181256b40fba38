"""Where a recovery is to stop: as people write it, as the plan holds it, and as PostgreSQL's settings say it.

PostgreSQL docs, 19.5.6 "Recovery Target"; what each target means to the server: recoveryStopsBefore and
recoveryStopsAfter in src/backend/access/transam/xlogrecovery.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from pgkeep.errors import UsageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.units import parse_duration, utc_now

__all__ = [
    "Action",
    "Kind",
    "RecoveryPlan",
    "RecoveryTarget",
    "format_moment",
    "immediate",
    "latest",
    "parse_moment",
    "setting_time",
    "target_lsn",
    "target_name",
    "target_time",
    "target_timeline",
    "target_xid",
]

Kind = Literal["immediate", "latest", "time", "lsn", "xid", "name"]
Action = Literal["promote", "pause", "shutdown"]

MAX_NAME_BYTES = 63
"""MAXFNAMELEN in src/include/access/xlog_internal.h, less its closing NUL."""

_FIRST_NORMAL_XID = 3
"""Below are the bootstrap, frozen and invalid ones (src/include/access/transam.h)."""

_MAX_OFFSET_HOURS = 15
"""MAX_TZDISP_HOUR in src/include/datatype/timestamp.h."""

_TIME = re.compile(
    r"""(?P<date>\d{4}-\d{2}-\d{2})
    (?:[T ]\s*(?P<clock>\d{1,2}:\d{2}(?::\d{2}(?:[.,](?P<fraction>\d{1,9}))?)?))?
    \s*(?P<zone>Z|z|[+-]\d{1,2}(?::?\d{2})?|[A-Za-z][A-Za-z0-9_+/-]*)?""",
    re.VERBOSE | re.ASCII,
)
_AGO = re.compile(r"(?P<duration>.*\S)\s+ago", re.IGNORECASE | re.DOTALL)
_LONG_UNITS = {
    "second": "s",
    "sec": "s",
    "minute": "min",
    "min": "min",
    "hour": "h",
    "hr": "h",
    "day": "d",
    "week": "w",
}
_LONG_UNIT = re.compile(r"\b([a-z]+?)s?\b(?=\s|\d|$)", re.IGNORECASE)
_FORM = 'write it like "2025-06-01 03:15:00+09", or "5min ago"'


class RecoveryTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where a recovery is to stop, and what then.

    ``value`` depends on ``kind``: a time in UTC to the microsecond (``2025-05-31T18:15:00.000000+00:00``), an LSN, a
    32-bit transaction id in decimal digits, the name of a restore point, nothing for "immediate" and "latest".
    ``exclusive``: stop just before it instead of just after. ``timeline`` None: the newest one on which it can be reached.
    ``standby``: the server is to go on as a standby. ``written`` is the value in the operator's own words, for messages.
    """

    kind: Kind
    value: str = ""
    exclusive: bool = False
    timeline: int | None = None
    action: Action = "promote"
    standby: bool = False
    written: str = ""

    @property
    def time(self) -> datetime:
        """The moment of a target of kind "time", in UTC."""
        return datetime.fromisoformat(self.value)

    @property
    def lsn(self) -> LSN:
        """The position of a target of kind "lsn"."""
        return LSN.parse(self.value)

    @property
    def xid(self) -> int:
        """The transaction of a target of kind "xid"."""
        return int(self.value)

    def __str__(self) -> str:
        if self.kind == "immediate":
            return "the end of the backup"
        if self.kind == "latest":
            return "the end of the WAL"
        what = {
            "time": lambda: format_moment(self.time),
            "lsn": lambda: f"LSN {self.value}",
            "xid": lambda: f"transaction {self.value}",
            "name": lambda: f"restore point {self.value!r}",
        }[self.kind]()
        given = (
            f" ({self.written})" if self.kind in {"time", "xid"} and self.written not in {"", self.value, what} else ""
        )
        return f"{'just before ' if self.exclusive else ''}{what}{given}"


@dataclass(frozen=True, kw_only=True)
class RecoveryPlan:
    """A recovery that can reach its target, and where exactly it will stop.

    Replay begins at ``start_lsn``, and ``stop_lsn`` is what ``pg_last_wal_replay_lsn()`` will say when it ends: all that
    lies before it is replayed, and nothing behind it. Where ``open_ended``, the archive may have grown by then, and it may
    say more. ``stop_timeline`` is the timeline that the WAL just before ``stop_lsn`` belongs to; it may be an ancestor of
    ``path``'s own. ``stop_time`` is when the last transaction ended that is replayed, ``next_time`` when the
    first ended that is not; None where there is none, or it is not known. ``told_time`` is what the server will say of the former: it does not
    count one at whose very record it stops by LSN (xlogrecovery.c, recoveryStopsAfter). ``settings`` are the ``recovery_target*`` parameters, without
    ``restore_command``; ``signal`` is the signal file's name.
    """

    target: RecoveryTarget
    backup: str
    path: TimelineHistory
    start_lsn: LSN
    consistent_lsn: LSN
    stop_lsn: LSN
    stop_timeline: int
    stop_time: datetime | None
    told_time: datetime | None
    next_time: datetime | None
    open_ended: bool
    segment_size: int
    settings: dict[str, str]
    signal: Literal["recovery.signal", "standby.signal"]
    notes: list[str] = field(default_factory=list)

    @property
    def wal_bytes(self) -> int:
        """Bytes of WAL to replay."""
        return self.stop_lsn - self.start_lsn


immediate = RecoveryTarget(kind="immediate")
latest = RecoveryTarget(kind="latest")


def target_time(text: str, zone: str | None = None, now: Callable[[], datetime] = utc_now) -> RecoveryTarget:
    """A time as people write it; ``zone`` is that of a time without one, None for this machine's. Raises UsageError."""
    moment = parse_moment(text, zone, now)
    written = moment.isoformat(sep=" ")
    return RecoveryTarget(kind="time", value=moment.astimezone(UTC).isoformat(timespec="microseconds"), written=written)


def target_lsn(text: str) -> RecoveryTarget:
    """An LSN as PostgreSQL prints it. Raises UsageError."""
    try:
        lsn = LSN.parse(text.strip())
    except ValueError:
        lsn = LSN(0)
    if lsn == 0:
        raise UsageError(f"not an LSN: {text!r}", hint="write it as PostgreSQL prints it: 0/3000060")
    return RecoveryTarget(kind="lsn", value=str(lsn))


def target_xid(text: str) -> RecoveryTarget:
    """A transaction id as ``pg_current_xact_id()`` prints it, of 64 bits, or its lower 32. Raises UsageError."""
    stripped = text.strip()
    number = int(stripped) if re.fullmatch(r"[0-9]{1,20}", stripped, re.ASCII) else 0
    xid = number & 0xFFFFFFFF
    if number >= 1 << 64 or xid < _FIRST_NORMAL_XID:
        raise UsageError(
            f"not a transaction id: {text!r}", hint="write it as SELECT pg_current_xact_id() prints it: 12345"
        )
    return RecoveryTarget(kind="xid", value=str(xid), written=stripped)


def target_name(text: str) -> RecoveryTarget:
    """The name of a restore point. Raises UsageError."""
    size = len(text.encode("utf-8", "surrogateescape"))
    if not text or "\0" in text or size > MAX_NAME_BYTES:
        what = f"it has {size} bytes" if size > MAX_NAME_BYTES else "it is empty" if not text else "it holds a NUL"
        raise UsageError(
            f"no restore point has the name {text!r}: {what}",
            hint=f"a name has 1 to {MAX_NAME_BYTES} bytes; pgkeep list --window shows those there are",
        )
    return RecoveryTarget(kind="name", value=text)


def target_timeline(text: str) -> int | None:
    """A timeline's number, or None for "latest". Raises UsageError."""
    stripped = text.strip()
    if stripped.lower() == "latest":
        return None
    # PostgreSQL's own settings take 0x too, and its file names are hexadecimal
    match = re.fullmatch(r"0x([0-9a-f]{1,8})|([0-9]{1,10})", stripped, re.IGNORECASE | re.ASCII)
    number = 0 if match is None else int(match[1], 16) if match[1] else int(match[2])
    if not 1 <= number < 1 << 32:
        raise UsageError(f"not a timeline: {text!r}", hint="write its number, like 2, or latest; pgkeep list --window")
    return number


def parse_moment(text: str, zone: str | None = None, now: Callable[[], datetime] = utc_now) -> datetime:
    """A time with its zone, from what a person writes: `_FORM` says how.

    ``zone`` is the name of the zone of a time without one; None: this machine's. Raises UsageError for anything else, and
    for a local time that a change of the clocks skips or repeats.
    """
    try:
        moment = _parse_moment(text, zone, now)
        # a year at either end of the calendar may have no place in UTC
        moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{text!r} is beyond all calendars", hint=_FORM) from None
    return moment


def _parse_moment(text: str, zone: str | None, now: Callable[[], datetime]) -> datetime:
    stripped = text.strip()
    ago = _AGO.fullmatch(stripped)
    if ago is not None:
        return now() - _parse_ago(ago["duration"], text)
    match = _TIME.fullmatch(stripped)
    if match is None:
        raise UsageError(f"not a time: {text!r}", hint=_FORM)
    if match["clock"] is None:
        raise UsageError(
            f"{text!r} is a day, and a recovery needs a moment",
            hint=f'write the time of day too: "{match["date"]} 03:15:00"',
        )
    if match["fraction"] and len(match["fraction"]) > 6:
        raise UsageError(f"{text!r} is finer than a microsecond", hint="PostgreSQL keeps six digits after the second")
    clock = match["clock"].replace(",", ".")
    hour, colon, rest = clock.partition(":")
    seconds = rest if rest.count(":") else f"{rest}:00"
    whole, dot, fraction = seconds.partition(".")
    try:
        naive = datetime.fromisoformat(
            f"{match['date']}T{hour:0>2}{colon}{whole}" + (f".{fraction:0<6}" if dot else "")
        )
    except ValueError as error:
        raise UsageError(f"not a time: {text!r} ({error})", hint=_FORM) from None
    return _in_zone(naive, match["zone"], zone, text)


def _parse_ago(duration: str, text: str) -> timedelta:
    def shorten(match: re.Match[str]) -> str:
        return _LONG_UNITS.get(match[1].lower(), match[0])

    try:
        return parse_duration(_LONG_UNIT.sub(shorten, duration))
    except ValueError:
        raise UsageError(f"not a time: {text!r}", hint=_FORM) from None


def _in_zone(naive: datetime, written: str | None, default: str | None, text: str) -> datetime:
    if written is not None and written.upper() in {"Z", "UTC", "GMT"}:
        return naive.replace(tzinfo=UTC)
    if written is not None and written[0] in "+-":
        return naive.replace(tzinfo=_offset(written, text))
    name = written or default
    if name is None:
        candidates = [naive.replace(fold=fold).astimezone() for fold in (0, 1)]
        place = "on this machine"
    else:
        try:
            zone = ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise UsageError(
                f"{name!r} is no time zone of this machine",
                hint='write an offset, like "+09", or a name, like Asia/Seoul',
            ) from None
        candidates = [naive.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
        place = f"in {name}"
    first, second = candidates
    if first.utcoffset() != second.utcoffset():
        zone_or_local = None if name is None else first.tzinfo
        skipped = first.astimezone(UTC).astimezone(zone_or_local).replace(tzinfo=None) != naive
        offset = first.strftime("%z")
        raise UsageError(
            f"{text!r} {'does not exist' if skipped else 'comes twice'} {place}: the clocks change then",
            hint=f'say which one is meant, with its offset: "{naive}{offset[:3]}:{offset[3:5]}"',
        )
    return first


def _offset(written: str, text: str) -> timezone:
    digits = written[1:].replace(":", "")
    hours, minutes = (int(digits), 0) if len(digits) <= 2 else (int(digits[:-2]), int(digits[-2:]))
    if hours > _MAX_OFFSET_HOURS or minutes > 59:
        raise UsageError(f"not a time: {text!r} (no zone is {written} from UTC)", hint=_FORM)
    size = timedelta(hours=hours, minutes=minutes)
    return timezone(-size if written[0] == "-" else size)


def setting_time(moment: datetime) -> str:
    """A time as ``recovery_target_time`` takes it, whatever the server's zone and DateStyle."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")


def format_moment(moment: datetime) -> str:
    """A time for people, in UTC, with as much of its fraction as it has."""
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%d %H:%M:%S") + (f".{utc:%f}".rstrip("0") if utc.microsecond else "") + " UTC"
