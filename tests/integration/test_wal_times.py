"""The index of times on WAL of a busy server, against what ``pg_waldump`` prints of it."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import segment_name
from pgkeep.repository import Repository
from pgkeep.repository.wal_objects import piece_name
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.times import PathEvent, TimesWriter, WalTimes
from support.busy_wal import BUSY_SETTINGS, DumpedRecord, dump_wal, make_busy_wal, wal_of
from support.jobs import new_repository
from support.servers import MAJORS, MakeServer, sql
from support.wal import write_wal

SIZE = 1 << 20
LINE = TimelineHistory(1)


def _times(repository: Repository, system: int) -> WalTimes:
    return WalTimes(repository, system, WalInventory.read(repository.wal(system), SIZE))


def _same(found: PathEvent | None, records: list[DumpedRecord]) -> bool:
    if found is None or not records:
        return found is None and not records
    first = records[0]
    return (found.kind, found.lsn, found.xid, found.timeline) == (first.kind, first.lsn, first.xid, 1)


@pytest.mark.parametrize("major", MAJORS)
def test_searches_in_a_repository_give_what_a_look_at_all_of_the_wal_gives(
    make_server: MakeServer, tmp_path: Path, major: int
) -> None:
    server = make_server(major, wal_segment_size=1, settings=BUSY_SETTINGS)
    # how much a load writes within a second depends on the machine; two groups of 32 segments must be full
    write_wal(server.dsn(), 48)
    make_busy_wal(server, seconds=1)
    system = sql(server.dsn(), "SELECT system_identifier FROM pg_control_system()")[0][0]
    server.stop()
    start, data = wal_of(server, SIZE)
    records = dump_wal(server, start, SIZE)
    repository = new_repository(tmp_path / "repository")
    archive = repository.wal(system)
    last = records[-1].lsn - records[-1].lsn % SIZE
    writer = TimesWriter(repository, system, SIZE)
    created: list[str] = []
    for lsn in range(start, last, SIZE):
        segment = data[lsn - start : lsn - start + SIZE]
        archive.put(segment_name(1, lsn, SIZE), segment)
        created += writer.segment(1, lsn, segment)
    assert len(created) >= 2, (start, last, len(records))
    # the open segment, in two pieces
    middle = SIZE // 3
    name = segment_name(1, last, SIZE)
    archive.put(piece_name(name, 0, middle), data[last - start :][:middle])
    archive.put(piece_name(name, middle, SIZE - 7), data[last - start :][middle : SIZE - 7])

    times = _times(repository, system)
    assert times.write_missing_groups() == []
    ends = [record for record in records if record.kind in {"commit", "abort"}]
    points = [record for record in records if record.kind == "restore_point"]
    assert [(point.lsn, point.name) for point in times.restore_points()] == [(p.lsn, p.name) for p in points]
    for point in points:
        assert point.name is not None
        assert _same(times.find_name(LINE, 0, point.name), [p for p in points if p.name == point.name])
    chance = random.Random(major)
    moments = [end.time for end in ends if end.time is not None]
    assert times.newest_time(LINE, 0) == max(moments)
    assert times.earliest_time(LINE, 0) == min(moments)
    for _ in range(60):
        sought, begin = chance.choice(ends), chance.choice(ends).lsn
        assert sought.time is not None
        assert _same(
            times.find_xid(LINE, begin, sought.xid or 0), [e for e in ends if e.lsn >= begin and e.xid == sought.xid]
        )
        for moment in (sought.time, sought.time + timedelta(microseconds=chance.randint(-500, 500))):
            later = [e for e in ends if e.lsn >= begin and e.time is not None and e.time > moment]
            assert _same(times.first_commit_after(LINE, begin, moment), later)
            at_or_later = [e for e in ends if e.lsn >= begin and e.time is not None and e.time >= moment]
            assert _same(times.first_commit_after(LINE, begin, moment, exclusive=True), at_or_later)
            earlier = [e for e in ends if e.lsn < begin and e.time is not None and e.time <= moment]
            assert _same(times.last_commit_before(LINE, begin, moment), earlier[::-1])
    for _ in range(10):
        index = chance.randrange(1, len(records))
        found = times.record_from(LINE, records[index - 1].lsn + 1)
        assert found is not None
        assert found.lsn == records[index].lsn
        before = times.last_record(LINE, start, records[index].lsn)
        assert before is not None
        assert before.lsn == records[index - 1].lsn
    final = times.last_record(LINE, start, LSN(last + SIZE))
    assert final is not None
    assert final.lsn == records[-1].lsn

    kept = times.segments(1)
    for name in created:
        repository.store.delete(name)
    assert _times(repository, system).segments(1) == kept
    assert _times(repository, system).write_missing_groups() == created
