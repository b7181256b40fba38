from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import (
    TimelineHistory,
    TimelineSwitch,
    format_history,
    history_name,
    parse_history,
    parse_history_name,
)

THIRD = TimelineHistory(
    3,
    (
        TimelineSwitch(1, LSN.parse("0/3000060"), "no recovery target specified"),
        TimelineSwitch(2, LSN.parse("0/50000A0"), "before 2026-11-23 04:00:00+00"),
    ),
)
THIRD_TEXT = "1\t0/3000060\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-11-23 04:00:00+00\n"


@st.composite
def histories(draw: st.DrawFn) -> TimelineHistory:
    timelines = sorted(draw(st.sets(st.integers(1, (1 << 32) - 1), min_size=1, max_size=6)))
    lsns = sorted(draw(st.lists(st.integers(1, (1 << 64) - 1), min_size=len(timelines), max_size=len(timelines))))
    reasons = st.from_regex(r"(\w+( \w+)*)?", fullmatch=True)
    switches = [TimelineSwitch(tli, LSN(lsn), draw(reasons)) for tli, lsn in zip(timelines, lsns, strict=True)]
    return TimelineHistory(timelines[-1], tuple(switches[:-1]))


@given(histories())
def test_what_is_written_is_read_back(history: TimelineHistory) -> None:
    assert parse_history(history.timeline, format_history(history)) == history


def test_a_history_is_written_as_a_server_writes_it() -> None:
    assert format_history(THIRD) == THIRD_TEXT


@pytest.mark.parametrize(
    "text",
    [
        THIRD_TEXT,
        THIRD_TEXT.encode(),
        "# comment\n" + THIRD_TEXT.replace("\n\n", "\n"),
        THIRD_TEXT.replace("\n", "\r\n"),
        THIRD_TEXT.rstrip("\n"),
    ],
    ids=["text", "bytes", "comment", "crlf", "cut"],
)
def test_a_history_is_read_with_comments_and_empty_lines(text: str | bytes) -> None:
    assert parse_history(3, text) == THIRD


def test_a_reason_in_another_encoding_does_no_harm() -> None:
    assert parse_history(2, b'1\t0/3000060\tat restore point "caf\xe9"\n').switches[0].lsn == 0x3000060


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("one\t0/1\tx\n", "no timeline switch: 'one"),
        ("1\tnowhere\tx\n", "no timeline switch"),
        ("2\t0/1\tx\n1\t0/2\tx\n", "do not increase"),
        ("1\t0/1\tx\n1\t0/2\tx\n", "do not increase"),
        ("1\t0/2\tx\n2\t0/1\tx\n", "go back"),
        ("3\t0/1\tx\n", "names timeline 3 as a parent"),
    ],
)
def test_a_history_that_cannot_be_is_damage(text: str, named: str) -> None:
    with pytest.raises(DamageError, match=named):
        parse_history(3, text)


@pytest.mark.parametrize(
    ("lsn", "timeline"),
    [("0/0", 1), ("0/300005F", 1), ("0/3000060", 2), ("0/500009F", 2), ("0/50000A0", 3), ("9/0", 3)],
)
def test_a_byte_belongs_to_the_timeline_that_wrote_it(lsn: str, timeline: int) -> None:
    assert THIRD.timeline_of(LSN.parse(lsn)) == timeline


def test_each_timeline_ends_where_the_next_begins() -> None:
    assert THIRD.timelines == (1, 2, 3)
    assert [THIRD.start_of(timeline) for timeline in THIRD.timelines] == [0, 0x3000060, 0x50000A0]
    assert [THIRD.end_of(timeline) for timeline in THIRD.timelines] == [0x3000060, 0x50000A0, None]


def test_a_timeline_off_the_path_has_no_start() -> None:
    with pytest.raises(ValueError, match="timeline 4 is no ancestor of timeline 3"):
        THIRD.start_of(4)


def test_a_history_file_is_named_after_its_timeline() -> None:
    assert history_name(26) == "0000001A.history"
    assert parse_history_name("0000001A.history") == 26


@pytest.mark.parametrize("name", ["1A.history", "0000001a.history", "0000001A.history.gz", "0000001A"])
def test_other_names_are_no_history(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a timeline history file"):
        parse_history_name(name)
