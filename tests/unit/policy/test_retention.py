"""Which rules keep a backup, and what nobody brings about by adding backups."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.policy.retention import Held, Hold, Rules, State, Verdict, decide, window_start
from pgkeep.policy.retention_wal import Need, NeededWal, needs_of
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
SIZE = 1 << 20
LINE = TimelineHistory(1)
_ENDS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
BIRTH = NOW - 3000 * DAY


def lsn_at(moment: datetime) -> int:
    """The server of these tests writes a segment in an hour."""
    return SIZE + int((moment - BIRTH) / HOUR * SIZE)


def held(started: datetime, *, name: str = "", stored: datetime | None = None, **changes: object) -> Held:
    """A backup that took ten minutes."""
    finished = started + timedelta(minutes=10)
    backup = Held(
        name or f"{started:%Y%m%dT%H%M%S}",
        started,
        finished,
        finished if stored is None else stored,
        1,
        lsn_at(started),
        lsn_at(finished),
    )
    return dataclasses.replace(backup, **changes)  # type: ignore[arg-type]


def kept(verdicts: list[Verdict]) -> dict[str, list[str]]:
    """The kept ones, by id, with their rules."""
    return {verdict.backup.id: verdict.kept_by for verdict in verdicts if not verdict.goes}


def nightly(days: int) -> list[Held]:
    """One at three in the morning, each day up to today."""
    return [held(datetime(2026, 11, 23, 3, tzinfo=UTC) - number * DAY) for number in range(days)]


def test_the_window_keeps_all_backups_in_it_and_the_last_one_before() -> None:
    verdicts = decide(nightly(10), [], Rules(window=3 * DAY), NOW, [LINE])

    assert kept(verdicts) == {
        "20261120T030000": ["window's begin"],
        "20261121T030000": ["window"],
        "20261122T030000": ["window"],
        "20261123T030000": ["window", "minimum"],
    }
    assert [verdict.continuous for verdict in verdicts if not verdict.goes] == [True] * 4


def test_without_a_window_the_newest_one_alone_keeps_the_wal_behind_it() -> None:
    verdicts = decide(nightly(10), [], Rules(minimum=2), NOW, [LINE])

    assert kept(verdicts) == {"20261122T030000": ["minimum"], "20261123T030000": ["newest", "minimum"]}
    assert [verdict.backup.id for verdict in verdicts if verdict.continuous] == ["20261123T030000"]


def test_each_branch_has_a_backup_that_its_window_begins_with() -> None:
    branch = TimelineHistory(2, (TimelineSwitch(1, LSN(lsn_at(NOW - 20 * DAY))),))
    backups = [*nightly(30), held(NOW - 19 * DAY, name="second", timeline=2)]

    found = kept(decide(backups, [], Rules(window=10 * DAY), NOW, [LINE, branch]))

    assert found["second"] == ["window's begin"]
    assert found["20261113T030000"] == ["window's begin"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Rules(daily=3), {"20261121T030000", "20261122T030000", "20261123T030000"}),
        # the first of each period: Mondays, and the first of each month
        (Rules(weekly=3), {"20261109T030000", "20261116T030000", "20261123T030000"}),
        (Rules(monthly=3), {"20260901T030000", "20261001T030000", "20261101T030000", "20261123T030000"}),
        (Rules(yearly=2), {"20250101T030000", "20260101T030000", "20261123T030000"}),
        (Rules(minimum=3), {"20261121T030000", "20261122T030000", "20261123T030000"}),
    ],
)
def test_a_rule_keeps_the_first_backup_of_each_of_its_calendar_periods(rules: Rules, expected: set[str]) -> None:
    assert set(kept(decide(nightly(800), [], rules, NOW, [LINE]))) == expected


def test_periods_are_those_of_the_zone() -> None:
    # ten at night in London is the next day in Seoul
    backups = [held(datetime(2026, 11, 30, 22, tzinfo=UTC)), held(datetime(2026, 12, 1, 22, tzinfo=UTC))]
    now = datetime(2026, 12, 2, 1, tzinfo=UTC)

    assert kept(decide(backups, [], Rules(monthly=1, zone="Asia/Seoul"), now))["20261130T220000"] == ["month 2026-12"]
    assert "20261130T220000" not in kept(decide(backups, [], Rules(monthly=1, zone="UTC"), now))


def test_a_period_without_a_backup_counts_so_that_nobody_can_fill_it() -> None:
    weekly = [held(NOW - number * 7 * DAY) for number in range(10)]
    rules = Rules(daily=14)
    fillers = [held(NOW - number * DAY + HOUR, name=f"filler {number}", stored=NOW) for number in range(1, 60)]

    before = kept(decide(weekly, [], rules, NOW))
    after = kept(decide([*weekly, *fillers], [], rules, NOW))

    assert set(before) == {weekly[0].id, weekly[1].id}
    assert set(before) <= set(after)


def test_a_verified_backup_of_a_period_stays_beside_the_first_one() -> None:
    first, second = held(NOW - 40 * DAY), held(NOW - 39 * DAY, state=State.VERIFIED)
    later = held(NOW - 38 * DAY, state=State.VERIFIED)

    found = kept(decide([first, second, later, held(NOW - HOUR)], [], Rules(monthly=2), NOW))

    assert found[first.id] == ["month 2026-10"]
    assert found[second.id] == ["month 2026-10, verified"]
    assert found[later.id] == ["newest verified"]


def test_a_backup_dated_in_the_future_stands_for_nothing_and_stays() -> None:
    good = held(NOW - HOUR)
    future = held(NOW + 400 * DAY, stored=NOW - HOUR)
    found = kept(decide([good, future], [], Rules(window=3 * DAY, yearly=9), NOW, [LINE]))

    assert found[future.id] == ["doubtful: its time is later than the store's"]
    assert found[good.id] == ["window", "year 2026", "minimum"]


def test_what_was_dated_ahead_is_still_doubtful_when_its_day_has_come() -> None:
    ahead = held(NOW - 5 * DAY, stored=NOW - 300 * DAY)
    good = held(NOW - 5 * DAY + HOUR)

    found = kept(decide([ahead, good, held(NOW - HOUR)], [], Rules(daily=9), NOW))

    assert found[good.id] == ["day 2026-11-18"]
    assert found[ahead.id] == ["doubtful: its time is later than the store's"]


def test_a_backup_with_an_old_date_that_has_just_come_does_not_begin_the_window() -> None:
    old = held(NOW - 20 * DAY)
    fake = held(NOW - 14 * DAY - HOUR, stored=NOW - HOUR)

    verdicts = decide([old, fake, held(NOW - HOUR)], [], Rules(window=14 * DAY), NOW, [LINE])

    assert kept(verdicts)[old.id] == ["window's begin"]


def test_a_pin_keeps_a_backup_until_it_ends() -> None:
    backups = nightly(20)
    pins = [
        Hold(backups[9].id, "case 4711", NOW + DAY),
        Hold(backups[10].id, "for ever"),
        Hold(backups[11].id, "over", NOW - HOUR),
    ]

    found = kept(decide(backups, pins, Rules(), NOW))

    assert found[backups[9].id] == ["pinned until 2026-11-24: case 4711"]
    assert found[backups[10].id] == ["pinned for ever: for ever"]
    assert backups[11].id not in found


def test_times_at_the_ends_of_the_calendar_are_no_error() -> None:
    ends = [dataclasses.replace(held(NOW), id=f"{moment.year}", started=moment, finished=moment) for moment in _ENDS]

    rules = Rules(window=DAY, daily=10_000, weekly=10_000, monthly=10_000, yearly=1000, zone="Pacific/Kiritimati")
    assert len(decide([*ends, held(NOW - HOUR)], [], rules, NOW, [LINE])) == 3


# What nobody can bring about

moments = st.integers(0, 24 * 500).map(lambda hours: NOW - hours * HOUR)
rules_ = st.builds(
    Rules,
    window=st.integers(1, 40).map(lambda days: days * DAY),
    daily=st.integers(0, 30),
    weekly=st.integers(0, 9),
    monthly=st.integers(0, 9),
    yearly=st.integers(0, 2),
    minimum=st.integers(1, 4),
    zone=st.sampled_from(["UTC", "Asia/Seoul", "America/New_York"]),
)
states = st.sampled_from(State)


@st.composite
def honest(draw: st.DrawFn) -> list[Held]:
    """Backups as a schedule takes them: each came to the store when it was finished."""
    started = sorted(draw(st.sets(moments, min_size=1, max_size=25)))
    return [held(moment, name=f"good {number}", state=draw(states)) for number, moment in enumerate(started)]


@st.composite
def intrusion(draw: st.DrawFn) -> tuple[Rules, list[Held], list[Held]]:
    """Rules, good backups, and fakes with any times and LSNs, all added after the window's begin and after the good ones."""
    rules, good = draw(rules_), draw(honest())
    since = max(window_start(rules, NOW), *(backup.stored for backup in good)) + timedelta(seconds=1)
    fakes = []
    for number in range(draw(st.integers(0, 12))):
        started = NOW + draw(st.integers(-24 * 600, 24 * 600)) * HOUR
        finished = started + draw(st.integers(0, 48)) * HOUR
        stored = since + draw(st.integers(0, 3600)) * timedelta(seconds=1)
        first, second = sorted(draw(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40))))
        fakes.append(Held(f"fake {number}", started, finished, stored, draw(st.integers(1, 3)), first, second + 1))
    return rules, good, fakes


@given(intrusion())
def test_added_backups_make_none_go_that_a_window_or_a_period_keeps(case: tuple[Rules, list[Held], list[Held]]) -> None:
    """What ``minimum`` alone keeps they can: it counts backups, and only ever adds to what the others keep."""
    rules, good, fakes = case
    before = decide(good, [], rules, NOW, [LINE])
    after = kept(decide([*good, *fakes], [], rules, NOW, [LINE]))

    lasting = {verdict.backup.id for verdict in before if set(verdict.kept_by) - {"minimum"}}
    assert lasting <= set(after)


@given(rules_, honest(), st.integers(0, 24 * 40))
def test_every_moment_of_the_window_that_could_be_reached_still_can(rules: Rules, good: list[Held], ago: int) -> None:
    expect_reachable(rules, good, [], ago)


@given(intrusion(), st.integers(0, 24 * 40))
def test_every_moment_of_the_window_is_reached_from_a_good_backup_whatever_was_added(
    case: tuple[Rules, list[Held], list[Held]], ago: int
) -> None:
    rules, good, fakes = case
    expect_reachable(rules, good, fakes, ago)


def expect_reachable(rules: Rules, good: list[Held], fakes: list[Held], ago: int) -> None:
    """A good backup that is finished by then stays, with all WAL from its start to then."""
    moment = NOW - ago * HOUR
    if moment < window_start(rules, NOW) or not any(backup.finished <= moment for backup in good):
        return
    verdicts = decide([*good, *fakes], [], rules, NOW, [LINE])
    needed = NeededWal(
        needs_of(
            [verdict.backup for verdict in verdicts if verdict.continuous],
            [verdict.backup for verdict in verdicts if not verdict.goes],
            [LINE],
            SIZE,
        ),
        SIZE,
    )
    names = {backup.id for backup in good}
    starts = [v.backup for v in verdicts if not v.goes and v.backup.id in names and v.backup.finished <= moment]
    assert any(needed.covers(1, backup.start_lsn, lsn_at(moment)) for backup in starts)


@given(rules_, honest())
def test_the_newest_and_the_newest_of_each_state_stay(rules: Rules, good: list[Held]) -> None:
    found = kept(decide(good, [], rules, NOW, [LINE]))

    for state in State:
        reached = [backup for backup in good if backup.state >= state]
        if reached:
            assert max(reached, key=lambda backup: backup.finished).id in found
    assert len(found) >= min(rules.minimum, len(good))


@given(rules_, honest())
def test_what_goes_has_no_rule_and_a_second_run_takes_nothing_more(rules: Rules, good: list[Held]) -> None:
    first = decide(good, [], rules, NOW, [LINE])
    again = decide([verdict.backup for verdict in first if not verdict.goes], [], rules, NOW, [LINE])

    assert not any(verdict.goes for verdict in again)


@given(rules_, honest(), st.integers(0, 24 * 100))
def test_what_has_expired_is_not_wanted_back_later(rules: Rules, good: list[Held], later: int) -> None:
    """A backup that no rule keeps now, none would keep later: what goes early is not missed."""
    gone = {verdict.backup.id for verdict in decide(good, [], rules, NOW, [LINE]) if verdict.goes}

    assert not gone & set(kept(decide(good, [], rules, NOW + later * HOUR, [LINE])))


# WAL


def test_wal_is_kept_from_the_first_continuous_backup_and_of_others_from_start_to_stop() -> None:
    verdicts = decide(nightly(100), [], Rules(window=3 * DAY, monthly=3), NOW, [LINE])
    continuous = [verdict.backup for verdict in verdicts if verdict.continuous]
    others = [verdict.backup for verdict in verdicts if not verdict.goes and not verdict.continuous]

    spans = NeededWal(needs_of(continuous, others, [LINE], SIZE), SIZE).spans()[1]

    begins = [lsn_at(datetime(2026, month, 1, 3, tzinfo=UTC)) for month in (9, 10, 11)]
    assert spans[:-1] == [(begin, begin + SIZE) for begin in begins]
    assert spans[-1] == (lsn_at(datetime(2026, 11, 20, 3, tzinfo=UTC)), None)


def test_a_branch_needs_its_parent_up_to_the_segment_of_the_switch() -> None:
    switch = 10 * SIZE + 5
    branch = TimelineHistory(2, (TimelineSwitch(1, LSN(switch)),))
    backup = dataclasses.replace(held(NOW), start_lsn=4 * SIZE + 40, stop_lsn=4 * SIZE + 80)

    needed = NeededWal(needs_of([backup], [], [branch], SIZE), SIZE)

    assert needed.spans() == {1: [(4 * SIZE, 11 * SIZE)], 2: [(10 * SIZE, None)]}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.one_of(st.none(), st.integers(0, 8))), max_size=8),
    st.integers(0, 80),
    st.integers(1, 20),
)
def test_needed_wal_knows_each_segment(spans: list[tuple[int, int | None]], first: int, count: int) -> None:
    needs = [Need(1, a * SIZE // 2, None if n is None else (a + n) * SIZE // 2) for a, n in spans]
    needed = NeededWal(needs, SIZE)

    def wanted(segment: int) -> bool:
        return any(
            need.start // SIZE <= segment and (need.end is None or segment * SIZE < max(need.end, need.start + 1))
            for need in needs
        )

    segments = range(first, first + count)
    assert needed.touches(1, first * SIZE, (first + count) * SIZE) == any(map(wanted, segments))
    assert needed.covers(1, first * SIZE, (first + count) * SIZE) == all(map(wanted, segments))
    assert not needed.touches(2, 0, 1 << 62)
