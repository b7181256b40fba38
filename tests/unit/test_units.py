"""Sizes, durations and times as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.units import (
    format_duration,
    format_rate,
    format_size,
    format_time,
    parse_duration,
    parse_size,
    utc_now,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("8192", 8192),
        ("1k", 1 << 10),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        ("64 m", 64 << 20),
        ("1.5 GB", 3 << 29),
        (" 2 TiB ", 2 << 40),
        ("1P", 1 << 50),
        ("7b", 7),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 XB", "1,5 GB", "1 GB 2 MB", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (10 << 20, "10.0 MiB"),
        (345 << 20, "345 MiB"),
        (5 << 30, "5.00 GiB"),
        (2000 << 40, "2000 TiB"),
    ],
)
def test_a_size_is_shown_with_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_a_rate_is_a_size_a_second() -> None:
    assert format_rate(1 << 20) == "1.00 MiB/s"


@given(st.integers(0, 1 << 50))
def test_a_size_shown_reads_back_within_one_percent(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.01, abs=1)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("5min", timedelta(minutes=5)),
        ("5m", timedelta(minutes=5)),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5s", timedelta(seconds=1.5)),
        ("90 sec", timedelta(seconds=90)),
        ("1h 30m", timedelta(hours=1, minutes=30)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("14d", timedelta(days=14)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_duration_is_the_sum_of_its_parts(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "5", "min", "5 fortnights", "-5min", "5min later"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (42, "42.0 s"),
        (75, "1 min 15 s"),
        (3700, "1 h 1 min"),
        (86400 * 2 + 7200, "2 d 2 h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_time_is_shown_in_utc_wherever_it_was_taken() -> None:
    seoul = timezone(timedelta(hours=9))

    assert format_time(datetime(2026, 11, 23, 12, 0, 5, tzinfo=seoul)) == "2026-11-23 03:00:05 UTC"


def test_now_knows_its_zone() -> None:
    assert utc_now().tzinfo is UTC
