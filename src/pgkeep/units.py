"""Sizes, durations and times, as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["format_duration", "format_rate", "format_size", "format_time", "parse_duration", "parse_size", "utc_now"]

_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*", re.IGNORECASE)
_DURATION_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|sec|min|[smhdw])\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from ``"64MiB"``, ``"64M"``, ``"1.5 GB"``; units are powers of 1024, as in PostgreSQL's settings.

    Raises ValueError for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (write it like 500MB or 64GiB)")
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def format_size(size: float) -> str:
    """``1536`` -> ``"1.5 KiB"``: three significant digits, units of 1024."""
    size = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000 or unit == "TiB":
            break
        size /= 1024
    if unit == "B":
        return f"{size:.0f} B"
    digits = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """``format_size`` a second."""
    return f"{format_size(bytes_per_second)}/s"


def parse_duration(text: str) -> timedelta:
    """A duration from ``"5min"``, ``"14d"``, ``"1h 30m"``; raises ValueError for anything else."""
    position, seconds = 0, 0.0
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None:
            break
        seconds += float(match[1]) * _DURATION_UNITS[match[2].lower()]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError(f"not a duration: {text!r} (write it like 5min, 14d or 1h 30m)")
    return timedelta(seconds=seconds)


def format_duration(seconds: float) -> str:
    """``0.25`` -> ``"0.25 s"``, ``75`` -> ``"1 min 15 s"``, ``3700`` -> ``"1 h 1 min"``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def utc_now() -> datetime:
    """Now, in UTC, to the microsecond."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """A time for people: UTC, to the second, with its zone."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
