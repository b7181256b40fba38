"""The window of segments that are kept ready, and who is served from it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import BusyError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch, format_history
from pgkeep.repository.wal_objects import WalArchive, piece_name
from pgkeep.wal import thin_fetch
from pgkeep.wal.prefetch import Prefetcher
from pgkeep.wal.prefetch_process import serve
from pgkeep.wal.prefetch_window import source_of, upcoming
from support.fetch import CLUSTER, SIZE, TroubledStore, make_segment, name_of, source_at
from support.wal import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.wal.fetch import Answer

DEPTH = 4
TARGET = "pg_wal/RECOVERYXLOG"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# The window


def paths() -> st.SearchStrategy[TimelineHistory]:
    """Up to four timelines, each branching off behind the one before it."""
    return st.lists(st.integers(0, 12 * 4), max_size=3).map(
        lambda quarters: TimelineHistory(
            len(quarters) + 1,
            tuple(
                TimelineSwitch(timeline, LSN(quarter * SIZE // 4))
                for timeline, quarter in enumerate(sorted(quarters), 1)
            ),
        )
    )


held = st.sets(st.tuples(st.integers(1, 4), st.integers(0, 14)))


def as_the_server_looks(path: TimelineHistory, wal: set[tuple[int, int]], current: int, number: int) -> int | None:
    """XLogFileReadAnyTLI in its own words: expectedTLEs is newest first, a begin of 0 is that of the oldest."""
    entries = [(path.timeline, path.switches[-1].lsn if path.switches else 0)]
    entries += [
        (path.switches[index].parent, path.switches[index - 1].lsn if index else 0)
        for index in reversed(range(len(path.switches)))
    ]
    for timeline, begin in entries:
        if timeline < current:
            break
        if begin != 0 and number < begin // SIZE:
            continue
        if (timeline, number) in wal:
            return timeline
    return None


@given(paths(), held, st.integers(1, 4), st.integers(0, 14))
def test_a_segment_is_looked_for_as_the_server_does(
    path: TimelineHistory, wal: set[tuple[int, int]], current: int, number: int
) -> None:
    found = source_of(path, number * SIZE, SIZE, lambda timeline, start: (timeline, start // SIZE) in wal, current)
    assert found == as_the_server_looks(path, wal, current, number)


@given(paths(), held, st.integers(0, 6), st.integers(0, 14))
def test_what_comes_next_is_what_the_server_will_ask_for(
    path: TimelineHistory, wal: set[tuple[int, int]], count: int, number: int
) -> None:
    expected: list[tuple[int, int]] = []
    current, at = 1, number + 1
    while len(expected) < count and (timeline := as_the_server_looks(path, wal, current, at)) is not None:
        expected.append((timeline, at * SIZE))
        current, at = timeline, at + 1
    found = upcoming(
        path, 1, number * SIZE, SIZE, lambda timeline, start: (timeline, start // SIZE) in wal, count=count
    )
    assert found == expected


@given(st.integers(0, 10 * SIZE), st.integers(0, 9))
def test_nothing_that_begins_at_the_limit_or_behind_it_comes_next(limit: int, number: int) -> None:
    found = upcoming(TimelineHistory(1), 1, number * SIZE, SIZE, lambda *_: True, count=20, limit_lsn=limit)
    assert [start for _, start in found] == [at * SIZE for at in range(number + 1, 10) if at * SIZE < limit]


# The prefetcher


class Place:
    """A data directory, a repository, and prefetchers between them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.pg_wal = self.data / "pg_wal"
        self.pg_wal.mkdir(parents=True)
        self.spool = self.pg_wal / "pgkeep.prefetch"
        self.source, self.store, repository = source_at(directory / "main")
        self.archive: WalArchive = repository.wal(CLUSTER)

    def put(self, *numbers: int, timeline: int = 1) -> None:
        for number in numbers:
            self.archive.put(name_of(number, timeline), make_segment(number, timeline))

    def put_history(self, timeline: int, *switches: tuple[int, int]) -> None:
        history = TimelineHistory(timeline, tuple(TimelineSwitch(parent, LSN(lsn), "x") for parent, lsn in switches))
        self.archive.put(f"{timeline:08X}.history", format_history(history).encode())

    @contextlib.contextmanager
    def prefetcher(self, **options: object) -> Iterator[Prefetcher]:
        chosen: dict[str, object] = {"depth": DEPTH, "jobs": 2, **options}
        prefetcher = Prefetcher(self.pg_wal, [self.source], SIZE, system_identifier=CLUSTER, **chosen)  # type: ignore[arg-type]
        with prefetcher:
            yield prefetcher

    def ask(self, name: str, path: str = TARGET) -> int:
        """As the server asks: by the thin client, in the data directory."""
        command = [sys.executable, "-I", "-S", thin_fetch.__file__, "pg_wal/pgkeep.prefetch/socket", name, path]
        return subprocess.run(command, cwd=self.data, check=False, timeout=60).returncode

    def take(self, number: int, timeline: int = 1) -> None:
        """Ask for a segment that must be there."""
        assert self.ask(name_of(number, timeline)) == 0
        assert (self.data / TARGET).read_bytes() == make_segment(number, timeline)
        (self.data / TARGET).unlink()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.healthy.set()


def names(*numbers: int, timeline: int = 1) -> list[str]:
    return [name_of(number, timeline) for number in numbers]


def wait_ready(prefetcher: Prefetcher, expected: list[str]) -> None:
    until(lambda: prefetcher.ready == expected, f"{expected} ready, but there are {prefetcher.ready}", 10)


def got(store: TroubledStore) -> list[str]:
    return [name.rpartition("/")[2] for verb, name in store.asked if verb == "get" and "/wal/" in name]


def test_what_follows_is_kept_ready_and_no_more(place: Place) -> None:
    place.put(*range(1, 20))
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3, 4, 5))
        time.sleep(0.1)
        assert sorted(got(place.store)) == names(1, 2, 3, 4, 5)
        place.take(2)
        wait_ready(prefetcher, names(3, 4, 5, 6))


def test_a_segment_that_is_ready_needs_no_store(place: Place) -> None:
    place.put(*range(1, 6))
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3, 4, 5))
        place.store.failing = True
        for number in (2, 3, 4, 5):
            place.take(number)
        assert place.ask(name_of(6)) == 209
        assert prefetcher.fetched_segments == 5
        assert prefetcher.fetched_bytes == 5 * SIZE


def test_the_folder_is_gone_after_it_and_private_before(place: Place) -> None:
    place.put(1, 2, 3)
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3))
        assert place.spool.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in place.spool.iterdir()} == {"socket", "lock"} | {
            path.name for path in place.spool.glob("*.pgkeep-*")
        }
    assert list(place.pg_wal.iterdir()) == []


def test_not_more_bytes_are_kept_than_there_is_room_for(place: Place) -> None:
    place.put(*range(1, 20))
    with place.prefetcher(depth=16, room=2 * SIZE + 5) as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3))
        time.sleep(0.1)
        assert prefetcher.ready == names(2, 3)


def test_nothing_behind_the_limit_is_brought_before_it_is_asked_for(place: Place) -> None:
    place.put(*range(1, 20))
    with place.prefetcher(limit_lsn=3 * SIZE + 1) as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3))
        place.take(2)
        place.take(3)
        place.take(4)
        assert prefetcher.ready == []


def test_without_depth_requests_are_served_all_the_same(place: Place) -> None:
    place.put(1, 2)
    with place.prefetcher(depth=0) as prefetcher:
        place.take(1)
        place.take(2)
        assert got(place.store) == names(1, 2)
        assert prefetcher.ready == []


def test_a_jump_drops_what_is_not_needed(place: Place) -> None:
    place.put(*range(1, 30))
    with place.prefetcher() as prefetcher:
        place.take(10)
        wait_ready(prefetcher, names(11, 12, 13, 14))
        place.take(3)
        wait_ready(prefetcher, names(4, 5, 6, 7))
        place.take(6)
        wait_ready(prefetcher, names(7, 8, 9, 10))
        assert len(list(place.spool.glob("*.pgkeep-*"))) == 4


def test_questions_in_vain_leave_the_window_alone(place: Place) -> None:
    place.put(*range(1, 10))
    place.put_history(2, (1, 100 * SIZE))
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3, 4, 5))
        place.store.asked.clear()
        assert place.ask(name_of(2, 3)) == 1
        assert place.ask(name_of(2, 2)) == 1
        place.take(2)
        assert set(got(place.store)) <= set(names(6))


def test_the_path_crosses_to_the_next_timeline(place: Place) -> None:
    place.put(1, 2, 3, 4, 5)
    place.put(3, 4, 5, 6, timeline=2)
    place.put_history(2, (1, 3 * SIZE + 100))
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, sorted([*names(2), *names(3, 4, 5, timeline=2)]))


def test_a_server_that_stays_on_its_timeline_is_followed_there(place: Place) -> None:
    place.put(*range(1, 9))
    place.put(*range(3, 9), timeline=2)
    place.put_history(2, (1, 3 * SIZE + 100))
    with place.prefetcher() as prefetcher:
        place.take(1)
        place.take(2)
        place.take(3)
        wait_ready(prefetcher, names(4, 5, 6, 7))


def test_a_path_that_is_known_is_kept_to(place: Place) -> None:
    place.put(*range(1, 9))
    place.put(*range(3, 9), timeline=2)
    place.put_history(2, (1, 3 * SIZE + 100))
    with place.prefetcher(path=TimelineHistory(1)) as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3, 4, 5))


def test_a_new_timeline_is_followed_once_its_history_is_fetched(place: Place) -> None:
    place.put(1, 2, 3)
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3))
        place.put(*range(3, 9), timeline=2)
        place.put_history(2, (1, 3 * SIZE + 100))
        assert place.ask("00000002.history", "pg_wal/RECOVERYHISTORY") == 0
        place.take(2)
        wait_ready(prefetcher, names(3, 4, 5, 6, timeline=2))


def test_what_is_new_in_the_archive_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.fetch_sources._LISTING_AGE", 0.0)
    place.put(1, 2)
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2))
        place.put(3, 4, 5)
        place.take(2)
        wait_ready(prefetcher, names(3, 4, 5))


def test_an_open_segment_is_never_kept_ready(place: Place) -> None:
    place.put(1)
    place.archive.put(piece_name(name_of(2), 0, 4000), make_segment(2)[:4000])
    with place.prefetcher() as prefetcher:
        place.take(1)
        assert place.ask(name_of(2)) == 0
        assert (place.data / TARGET).read_bytes() == make_segment(2)[:4000] + bytes(SIZE - 4000)
        assert prefetcher.ready == []
        place.put(2)
        place.take(2)


def test_asking_in_vain_again_and_again_costs_three_questions_a_second(place: Place) -> None:
    place.put(1)
    with place.prefetcher():
        place.take(1)
        place.store.asked.clear()
        began = time.monotonic()
        for _ in range(30):
            assert place.ask(name_of(2)) == 1
        seconds = time.monotonic() - began
        # a listing, the root record, the folder of clusters
        assert len(place.store.asked) <= 3 * (seconds + 2)


def test_a_request_waits_for_its_own_fetch_however_long_that_takes(place: Place) -> None:
    place.put(1, 2, 3)
    with place.prefetcher():
        place.store.hang()
        threading.Timer(1.0, place.store.healthy.set).start()
        place.take(1)
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2, 3))
        assert prefetcher.waited_seconds < 1.0


def test_who_waits_is_told_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.prefetch_server._PULSE_SECONDS", 0.05)
    monkeypatch.setattr("pgkeep.wal.thin_fetch._SILENCE", 0.4)
    monkeypatch.chdir(place.data)
    place.put(1)
    with place.prefetcher():
        place.store.hang()
        threading.Timer(1.0, place.store.healthy.set).start()
        assert thin_fetch.ask("pg_wal/pgkeep.prefetch/socket", name_of(1), TARGET) == (0, "")


def test_a_silent_prefetcher_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.thin_fetch._SILENCE", 0.2)
    monkeypatch.chdir(place.data)
    place.put(1)
    with place.prefetcher():
        place.store.hang()
        assert thin_fetch.ask("pg_wal/pgkeep.prefetch/socket", name_of(1), TARGET) is None
        place.store.healthy.set()


def test_a_store_that_hangs_is_an_error_after_the_limit_and_not_before(place: Place) -> None:
    place.put(1)
    with place.prefetcher(time_limit=0.5):
        place.store.hang()
        began = time.monotonic()
        assert place.ask(name_of(1)) == 209
        assert time.monotonic() - began >= 0.5
        place.store.healthy.set()


def test_who_waits_for_a_segment_under_way_waits_for_one_time_limit_only(place: Place) -> None:
    place.put(1, 2)
    with place.prefetcher(jobs=1, time_limit=3.0):
        reached, answered = threading.Event(), threading.Event()

        def hang() -> None:
            # only who asks for this one: the first may still be on its way
            reached.set()
            answered.wait(60)

        place.store.when_asked(name_of(2), hang)
        place.take(1)
        assert reached.wait(10)
        began = time.monotonic()
        assert place.ask(name_of(2)) == 209
        assert time.monotonic() - began < 5.5
        answered.set()
        place.take(2)


def test_the_end_waits_for_no_store(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.prefetch._END_SECONDS", 0.1)
    place.put(1, 2)
    began = time.monotonic()
    with place.prefetcher() as prefetcher:
        place.take(1)
        wait_ready(prefetcher, names(2))
        place.put(3)
        place.store.hang()
        threading.Thread(target=prefetcher.fetch, args=(name_of(3), TARGET), daemon=True).start()
    assert time.monotonic() - began < 5


def test_a_failure_of_prefetching_is_told_by_the_request_that_fails_too(place: Place) -> None:
    place.put(1, 2)
    with place.prefetcher():
        place.store.failing = True
        assert place.ask(name_of(2)) == 209
        place.store.failing = False
        place.take(2)


@pytest.mark.parametrize(
    "path",
    [
        "x",
        "../x",
        "pg_wal/../x",
        "/tmp/x",
        "pg_wal/a/b",
        "pg_wal/.",
        "pg_wal/..",
        "pg_wal/pgkeep.prefetch",
        "pg_wal/",
        "",
    ],
)
def test_nothing_is_written_outside_pg_wal(place: Place, path: str) -> None:
    place.put(1)
    with place.prefetcher() as prefetcher:
        assert prefetcher.fetch(name_of(1), path) is None
        assert place.ask(name_of(1), path) == 199
    assert sorted(path.name for path in place.data.iterdir()) == ["pg_wal"]


def test_a_request_that_was_given_up_does_not_disturb_the_next(place: Place) -> None:
    place.put(1, 2, 9)
    answers: list[Answer | None] = []
    with place.prefetcher(depth=0) as prefetcher:
        place.store.hang()
        late = threading.Thread(target=lambda: answers.append(prefetcher.fetch(name_of(9), TARGET)))
        late.start()
        until(lambda: place.store.asked, "the first request at work")
        second = threading.Thread(target=lambda: answers.append(prefetcher.fetch(name_of(1), TARGET)))
        second.start()
        time.sleep(0.1)
        place.store.healthy.set()
        late.join()
        second.join()
        assert sorted(answer.code for answer in answers if answer is not None) == [0, 210]
        assert (place.data / TARGET).read_bytes() == make_segment(1)


def test_a_request_whose_asker_is_gone_leaves_no_file(place: Place) -> None:
    place.put(1)
    with place.prefetcher() as prefetcher:
        answer = prefetcher.fetch(name_of(1), TARGET, lambda: False)
        assert answer is not None
        assert answer.code == 210
    assert list(place.pg_wal.iterdir()) == []


def test_a_killed_client_is_noticed(place: Place) -> None:
    place.put(1)
    with place.prefetcher() as prefetcher:
        place.store.hang()
        command = [sys.executable, "-I", "-S", thin_fetch.__file__, "pg_wal/pgkeep.prefetch/socket", name_of(1), TARGET]
        client = subprocess.Popen(command, cwd=place.data)
        until(lambda: place.store.asked, "the request at work")
        client.kill()
        client.wait()
        place.store.healthy.set()
        until(lambda: prefetcher.idle_seconds > 0, "the request done")
        assert not (place.data / TARGET).exists()


def test_what_was_left_by_a_killed_prefetcher_is_cleared(place: Place) -> None:
    place.put(1)
    place.spool.mkdir()
    for name in (f"{name_of(7)}.pgkeep-1-aa", "socket", "whatever"):
        (place.spool / name).write_bytes(b"left")
    (place.pg_wal / f"{name_of(7)}.pgkeep-999999999-aa").write_bytes(b"left")
    with place.prefetcher():
        assert {path.name for path in place.spool.iterdir()} == {"socket", "lock"}
        place.take(1)
    assert list(place.pg_wal.iterdir()) == []


def test_a_folder_that_is_a_link_is_not_followed(place: Place) -> None:
    elsewhere = place.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    place.spool.symlink_to(elsewhere)
    with pytest.raises(Exception, match=r"cannot make .*pgkeep\.prefetch"), place.prefetcher():
        pass
    assert (elsewhere / "precious").exists()


def test_two_prefetchers_do_not_share_a_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.prefetch._END_SECONDS", 0.1)
    with place.prefetcher(), pytest.raises(BusyError), place.prefetcher():
        pass


def test_a_data_directory_may_have_a_long_path(tmp_path: Path) -> None:
    place = Place(tmp_path / ("long" * 30))
    place.put(1)
    with place.prefetcher():
        place.take(1)


def test_the_process_ends_by_itself_when_nobody_asks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.prefetch_process.server_status", _status(os.getpid()))
    prefetcher = Prefetcher(place.pg_wal, [place.source], SIZE, depth=1, jobs=1, system_identifier=CLUSTER)
    began = time.monotonic()
    serve(prefetcher, place.data, idle=0.3)
    assert 0.3 <= time.monotonic() - began < 5


def test_the_process_ends_with_its_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as server:
        monkeypatch.setattr("pgkeep.wal.prefetch_process.server_status", _status(server.pid))
        threading.Timer(0.3, server.kill).start()
        prefetcher = Prefetcher(place.pg_wal, [place.source], SIZE, depth=1, jobs=1, system_identifier=CLUSTER)
        began = time.monotonic()
        serve(prefetcher, place.data)
        assert time.monotonic() - began < 5


def test_the_process_ends_when_its_folder_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.prefetch_process.server_status", _status(os.getpid()))
    prefetcher = Prefetcher(place.pg_wal, [place.source], SIZE, depth=1, jobs=1, system_identifier=CLUSTER)
    threading.Timer(0.3, lambda: place.data.rename(place.directory / "aside")).start()
    began = time.monotonic()
    serve(prefetcher, place.data)
    assert time.monotonic() - began < 5


def _status(pid: int) -> Callable[[Path], object]:
    from pgkeep.postgres.running import ServerStatus

    return lambda _: ServerStatus(pid)
