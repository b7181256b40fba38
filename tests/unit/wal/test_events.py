"""Alarms stay until their cause is gone, and nobody hears the same thing over and over."""

from __future__ import annotations

from pgkeep.wal.events import Alarms, Event
from pgkeep.wal.ship import Backoff


def _heard() -> tuple[Alarms, list[Event]]:
    events: list[Event] = []
    return Alarms(events.append), events


def test_an_alarm_is_told_once_and_stays_on() -> None:
    alarms, events = _heard()
    alarms.raise_alarm("store main", "it fails", "mount it")
    alarms.raise_alarm("store main", "it still fails", "mount it")

    assert [event.message for event in events] == ["it fails"]
    assert [alarm.message for alarm in alarms.active()] == ["it still fails"]
    assert alarms.active()[0].time == events[0].time


def test_its_end_is_told_once_and_only_where_it_was_on() -> None:
    alarms, events = _heard()
    alarms.clear("store main", "never mind")
    alarms.raise_alarm("store main", "it fails")
    alarms.clear("store main", "it works")
    alarms.clear("store main", "it works")

    assert [(event.level, event.message) for event in events] == [("alarm", "it fails"), ("cleared", "it works")]
    assert alarms.active() == []


def test_a_warning_is_repeated_only_after_it_was_settled() -> None:
    alarms, events = _heard()
    for _ in range(2):
        alarms.warn("disconnected", "the server is away")
    alarms.settle("disconnected")
    alarms.warn("disconnected", "the server is away")

    assert len(events) == 2


def test_a_listener_whose_pipe_broke_does_no_harm() -> None:
    def broken(_event: Event) -> None:
        raise BrokenPipeError

    alarms = Alarms(broken)
    alarms.raise_alarm("gap", "WAL is missing")

    assert len(alarms.active()) == 1


def test_waiting_times_grow_to_their_limit_and_begin_anew() -> None:
    backoff = Backoff(0.2, 15)
    waits = [backoff.next() for _ in range(12)]
    backoff.reset()

    assert all(0.1 <= wait <= 15 for wait in waits)
    assert waits[0] <= 0.2
    assert min(waits[-3:]) >= 7.5
    assert backoff.next() <= 0.2
