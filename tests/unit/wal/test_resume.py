"""Where receiving goes on when a server's timelines are held against ours."""

from __future__ import annotations

import pytest

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch
from pgkeep.wal.resume import OtherHistory, resume_at
from pgkeep.wal.spool import Position

SEGMENT = 16 << 20
SWITCH = LSN(0x5123456)
SECOND = TimelineHistory(2, (TimelineSwitch(1, SWITCH),))
THIRD = TimelineHistory(3, (TimelineSwitch(1, SWITCH), TimelineSwitch(2, LSN(0x7000100))))


def test_on_the_same_timeline_it_goes_on_at_the_very_byte() -> None:
    assert resume_at(Position(1, LSN(0x3000061)), TimelineHistory(1), SEGMENT).position == (1, 0x3000061)


def test_an_old_timeline_is_received_up_to_its_end() -> None:
    assert resume_at(Position(1, LSN(SWITCH - 1)), SECOND, SEGMENT).position == (1, SWITCH - 1)


def test_at_its_end_the_next_timeline_begins_with_the_segment_of_the_switch() -> None:
    resume = resume_at(Position(1, SWITCH), SECOND, SEGMENT)

    assert resume.position == (2, 0x5000000)
    assert resume.left is None


def test_timelines_are_followed_one_by_one() -> None:
    assert resume_at(Position(1, SWITCH), THIRD, SEGMENT).position == (2, 0x5000000)
    assert resume_at(Position(2, LSN(0x5500000)), THIRD, SEGMENT).position == (2, 0x5500000)
    assert resume_at(Position(2, LSN(0x7000100)), THIRD, SEGMENT).position == (3, 0x7000000)


def test_wal_beyond_the_switch_is_left_where_it_is_and_told() -> None:
    resume = resume_at(Position(1, LSN(0x6000000)), SECOND, SEGMENT)

    assert resume.position == (2, 0x5000000)
    assert resume.left is not None
    assert "0/6000000" in resume.left


def test_a_branch_that_the_server_did_not_take_is_left() -> None:
    """Recovered to the past twice: the server's timeline 3 comes from 1, and ours was 2."""
    history = TimelineHistory(3, (TimelineSwitch(1, LSN(0x4000000)),))

    resume = resume_at(Position(2, LSN(0x6000000)), history, SEGMENT)

    assert resume.position == (3, 0x4000000)
    assert resume.left is not None


def test_a_server_on_an_older_timeline_is_refused() -> None:
    with pytest.raises(OtherHistory, match="timeline 1, and WAL of timeline 2"):
        resume_at(Position(2, LSN(0x6000000)), TimelineHistory(1), SEGMENT)
