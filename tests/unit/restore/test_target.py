"""Recovery targets as people write them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import UsageError
from pgkeep.postgres.lsn import LSN
from pgkeep.restore.target import (
    RecoveryTarget,
    format_moment,
    parse_moment,
    setting_time,
    target_lsn,
    target_name,
    target_time,
    target_timeline,
    target_xid,
)

NOW = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)
KOREAN = datetime(2025, 5, 31, 18, 15, tzinfo=UTC)


@pytest.fixture
def machine_in_seoul() -> Iterator[None]:
    """The zone of the machine, for one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Seoul")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "text",
    [
        "2025-06-01 03:15:00+09",
        "2025-06-01 03:15:00+09:00",
        "2025-06-01 03:15:00 +0900",
        "2025-06-01T03:15:00+09:00",
        "2025-06-01 03:15:00 Asia/Seoul",
        "2025-06-01 3:15+9",
        "2025-05-31T18:15:00Z",
        "2025-05-31 18:15:00 UTC",
        "2025-05-31 18:15:00.000 gmt",
        "2025-05-31 14:45:00-0330",
        "  2025-05-31   18:15:00+00 ",
    ],
)
def test_a_time_may_be_written_in_many_ways(text: str) -> None:
    assert parse_moment(text) == KOREAN


def test_a_fraction_counts_to_the_microsecond() -> None:
    assert parse_moment("2025-06-01 03:15:00.25Z") == datetime(2025, 6, 1, 3, 15, 0, 250_000, UTC)
    assert parse_moment("2025-06-01 03:15:00,123456Z").microsecond == 123_456


def test_a_time_without_a_zone_is_taken_in_the_configured_one() -> None:
    assert parse_moment("2025-06-01 03:15:00", "Asia/Seoul") == KOREAN
    assert parse_moment("2025-06-01 03:15:00", "America/New_York") == datetime(2025, 6, 1, 7, 15, tzinfo=UTC)


@pytest.mark.usefixtures("machine_in_seoul")
def test_a_time_without_any_zone_is_this_machines() -> None:
    assert parse_moment("2025-06-01 03:15:00") == KOREAN


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("5 minutes ago", timedelta(minutes=5)),
        ("5min ago", timedelta(minutes=5)),
        ("1 minute ago", timedelta(minutes=1)),
        ("2 hours 30 mins ago", timedelta(hours=2, minutes=30)),
        ("90 Seconds Ago", timedelta(seconds=90)),
        ("1.5h ago", timedelta(minutes=90)),
        ("3 days ago", timedelta(days=3)),
        ("2 weeks ago", timedelta(days=14)),
        ("250 ms ago", timedelta(milliseconds=250)),
    ],
)
def test_a_time_may_be_said_as_a_duration_ago(text: str, ago: timedelta) -> None:
    assert parse_moment(text, now=lambda: NOW) == NOW - ago


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2025-06-01", "is a day, and a recovery needs a moment"),
        ("2025-06-01 +09", "is a day"),
        ("yesterday", "not a time"),
        ("", "not a time"),
        ("now", "not a time"),
        ("2025-06-31 03:15:00Z", "not a time"),
        ("2025-06-01 25:15:00Z", "not a time"),
        ("2025-06-01 03:15:61Z", "not a time"),
        ("01.06.2025 03:15", "not a time"),
        ("2025-06-01 03:15:00+25", "no zone is"),
        ("2025-06-01 03:15:00+09:75", "no zone is"),
        ("2025-06-01 03:15:00 KST", "no time zone of this machine"),
        ("2025-06-01 03:15:00 Asia", "no time zone of this machine"),
        ("2025-06-01 03:15:00.1234567Z", "finer than a microsecond"),
        ("5 parsecs ago", "not a time"),
        ("ago", "not a time"),
        ("0001-01-01 00:00+09", "beyond all calendars"),
        ("999999999 weeks ago", "beyond all calendars"),
    ],
)
def test_anything_else_is_refused_with_the_right_form(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parse_moment(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "what", "way_out"),
    [
        ("2025-03-30 02:30:00", "does not exist in Europe/Berlin", "2025-03-30 02:30:00+01:00"),
        ("2025-10-26 02:30:00", "comes twice in Europe/Berlin", "2025-10-26 02:30:00+02:00"),
    ],
)
def test_a_time_that_the_clocks_skip_or_repeat_needs_an_offset(text: str, what: str, way_out: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        parse_moment(text, "Europe/Berlin")
    assert way_out in (caught.value.hint or "")
    assert parse_moment(way_out).utcoffset() is not None


@given(st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2100, 1, 1)), st.integers(-15 * 60, 15 * 60))
def test_every_moment_survives_being_written(naive: datetime, minutes: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    target = target_time(moment.isoformat())
    assert target.time == moment
    assert parse_moment(setting_time(moment)) == moment
    assert parse_moment(format_moment(moment)) == moment


def test_a_time_is_repeated_in_utc_and_as_it_was_given() -> None:
    target = target_time("2025-06-01 03:15:00+09")
    assert str(target) == "2025-05-31 18:15:00 UTC (2025-06-01 03:15:00+09:00)"
    assert target.value == "2025-05-31T18:15:00.000000+00:00"
    assert str(target_time("2025-05-31 18:15:00.5", "Asia/Seoul")).endswith("(2025-05-31 18:15:00.500000+09:00)")


def test_an_lsn_is_taken_as_postgresql_prints_it() -> None:
    assert target_lsn(" 0/3000060 ").lsn == LSN(0x3000060)
    assert target_lsn("a/b").value == "A/B"
    for text in ("", "0/0", "3000060", "0/3000060/1", "x/1", "0/123456789"):
        with pytest.raises(UsageError, match="not an LSN") as caught:
            target_lsn(text)
        assert "0/3000060" in (caught.value.hint or "")


def test_a_transaction_may_be_given_with_its_epoch() -> None:
    assert target_xid("12345").value == "12345"
    assert target_xid(str((7 << 32) + 12345)) == RecoveryTarget(
        kind="xid", value="12345", written=str((7 << 32) + 12345)
    )


@pytest.mark.parametrize("text", ["", "0", "1", "2", "-5", "0x10", "12a", str(1 << 64), str(1 << 32), "٣٤٥"])
def test_what_no_transaction_can_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a transaction id"):
        target_xid(text)


def test_a_name_is_as_long_as_postgresql_lets_it_be() -> None:
    assert target_name("x" * 63).value == "x" * 63
    assert target_name("가" * 21).value == "가" * 21
    for name in ("", "x" * 64, "가" * 22, "a\0b"):
        with pytest.raises(UsageError, match="no restore point has the name"):
            target_name(name)


def test_a_timeline_is_a_number_or_the_latest() -> None:
    assert [target_timeline(text) for text in ("2", "0x1F", "latest")] == [2, 31, None]
    for text in ("", "0", "-1", "current", "4294967296"):
        with pytest.raises(UsageError, match="not a timeline"):
            target_timeline(text)
