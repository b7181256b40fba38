"""The parser of WAL records against ``pg_waldump`` and ``pg_controldata`` on WAL of a busy server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.postgres.control_file import parse_control_file
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_records import WalEvent, WalRecordParser
from support.busy_wal import BUSY_SETTINGS, DumpedRecord, dump_wal, make_busy_wal, wal_of
from support.servers import MAJORS, sql

if TYPE_CHECKING:
    from support.servers import MakeServer

MIB = 1 << 20


@dataclass
class Busy:
    """A busy server's WAL, stopped: ``end`` is where the records end."""

    start: LSN
    data: bytes
    size: int
    records: list[DumpedRecord]
    checkpoint: tuple[LSN, datetime]
    end: LSN

    @property
    def wanted(self) -> list[DumpedRecord]:
        """The records that are events."""
        return [record for record in self.records if record.kind is not None]


def _busy(make_server: MakeServer, major: int, size: int, **more: str | int | bool) -> Busy:
    server = make_server(major, wal_segment_size=size // MIB, settings={**BUSY_SETTINGS, **more})
    make_busy_wal(server)
    before = LSN.parse(sql(server.dsn(), "SELECT pg_current_wal_insert_lsn()::text")[0][0])
    server.stop()
    control = parse_control_file((server.data_directory / "global/pg_control").read_bytes())
    start, data = wal_of(server, size)
    assert before > start
    end = WalRecordParser(size, every=True).feed(start, data)[-1].end_lsn
    return Busy(start, data, size, dump_wal(server, start, size), (control.checkpoint, control.checkpoint_time), end)


def _feed_in_cuts(busy: Busy, first: int, cuts: list[int]) -> list[WalEvent]:
    parser = WalRecordParser(busy.size)
    events: list[WalEvent] = []
    for begin, end in zip([first, *cuts], [*cuts, len(busy.data)], strict=True):
        events += parser.feed(busy.start + begin, busy.data[begin:end])
    return events


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("size", [MIB, 16 * MIB], ids=["1 MiB", "16 MiB"])
def test_the_parser_finds_what_pg_waldump_prints_however_the_wal_is_cut(
    make_server: MakeServer, major: int, size: int
) -> None:
    busy = _busy(make_server, major, size, full_page_writes=size == MIB)
    events = WalRecordParser(size).feed(busy.start, busy.data)
    wanted = busy.wanted
    assert {record.kind for record in wanted} >= {"commit", "abort", "restore_point", "checkpoint", "switch"}
    assert [(event.kind, event.lsn, event.xid) for event in events] == [
        (record.kind, record.lsn, record.xid) for record in wanted
    ]
    for event, record in zip(events, wanted, strict=True):
        assert record.time in {None, event.time}
        assert event.name == record.name
        assert (event.time is None) == (event.kind == "switch")
    location, moment = busy.checkpoint
    assert [event.time for event in events if event.lsn == location] == [moment]

    every = WalRecordParser(size, every=True).feed(busy.start, busy.data)
    assert [record.lsn for record in every] == [record.lsn for record in busy.records]
    for event, following in zip(every, busy.records[1:], strict=False):
        # as PostgreSQL reports the end: the page's start where the next record stands behind that page's header
        header = 0 if event.end_lsn % 8192 else 24 if event.end_lsn % size else 40
        assert event.end_lsn + header == following.lsn

    @settings(max_examples=12)
    @given(st.data())
    def cut(data: st.DataObject) -> None:
        end = busy.end - busy.start
        first = data.draw(st.one_of(st.just(0), st.integers(0, end)))
        anywhere = st.integers(first, end)
        near_page = st.builds(
            lambda page, off: max(min(page * 8192 + off, end), first),
            st.integers(first // 8192, end // 8192),
            st.integers(-30, 60),
        )
        cuts = sorted(data.draw(st.lists(st.one_of(anywhere, near_page), max_size=40)))
        found = _feed_in_cuts(busy, first, cuts)
        assert found == [event for event in events if event.lsn >= busy.start + first]

    cut()


def test_feeds_of_a_few_bytes_give_the_same_as_a_whole_one(make_server: MakeServer) -> None:
    busy = _busy(make_server, 17, MIB)
    middle = min(busy.wanted, key=lambda record: abs(record.lsn - (busy.start + busy.end) // 2)).lsn - busy.start
    begin = middle // 8192 * 8192 - 8192 + 13
    data = busy.data[: middle + 12_000]
    for step in (1, 7, 100, 8191):
        parser = WalRecordParser(MIB)
        found: list[WalEvent] = []
        for place in range(begin, len(data), step):
            found += parser.feed(busy.start + place, data[place : place + step])
        assert found == WalRecordParser(MIB).feed(busy.start + begin, data[begin:])
        assert found


def test_what_a_recovery_writes_is_found_too(make_server: MakeServer) -> None:
    server = make_server(18, wal_segment_size=1, settings=BUSY_SETTINGS)
    before = datetime.now(UTC)
    data_directory = server.data_directory
    server.stop()
    (data_directory / "standby.signal").touch()
    server.start(BUSY_SETTINGS)
    sql(server.dsn(), "SELECT pg_promote()")
    server.stop()
    start, data = wal_of(server, MIB, 2)
    events = WalRecordParser(MIB).feed(start, data)
    (recovered,) = [event for event in events if event.kind == "end_of_recovery"]
    (record,) = [record for record in dump_wal(server, start, MIB, 2) if record.kind == "end_of_recovery"]
    assert recovered.lsn == record.lsn
    assert recovered.time is not None
    assert before <= recovered.time <= datetime.now(UTC)
