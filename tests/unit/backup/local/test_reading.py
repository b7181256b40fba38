from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.backup.local.reading import OpenFile, Pace, Reads
from pgkeep.backup.local.walk import DataDirectory
from pgkeep.errors import ServerSettingError

CONTENT = random.Random(0).randbytes(64 * 512)


class Here(DataDirectory):
    """A directory without tablespaces."""

    def __init__(self, place: Path) -> None:
        self.place = os.fsencode(place)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with one file."""
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path


def open_file(place: Path) -> OpenFile:
    return OpenFile(b"file", os.fsencode(place / "file"))


@given(st.sets(st.integers(0, 63), min_size=1))
def test_pages_are_read_in_order_wherever_they_are(tmp_path_factory: pytest.TempPathFactory, pages: set[int]) -> None:
    place = tmp_path_factory.getbasetemp() / "pages"
    place.write_bytes(CONTENT)
    file = OpenFile(b"", os.fsencode(place))
    wanted = np.array(sorted(pages), np.uint32)
    file.expect_pages(wanted, 512)
    assert file.read_pages(wanted, 512) == b"".join(CONTENT[page * 512 : (page + 1) * 512] for page in sorted(pages))
    file.close()


def test_a_file_that_shrinks_while_it_is_read_ends_in_zeros(place: Path) -> None:
    file = open_file(place)
    os.truncate(place / "file", 700)
    assert file.facts.size == len(CONTENT)
    assert file.read(512, 1024) == CONTENT[512:700] + bytes(836)
    file.close()


def test_what_a_file_grows_by_is_not_read(place: Path) -> None:
    file = open_file(place)
    with (place / "file").open("ab") as more:
        more.write(b"more")
    assert file.facts.size == len(CONTENT)
    file.close()


def test_a_file_that_is_removed_can_be_read_to_its_end(place: Path) -> None:
    reads = Reads(Here(place))
    file = reads.open(b"file")
    assert file is not None
    load = reads.later(file, lambda: file.read(0, len(CONTENT)))
    reads.give_up(file)
    (place / "file").unlink()

    assert load() == CONTENT
    assert reads.size == len(CONTENT)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)


def test_a_file_that_is_gone_is_none(place: Path) -> None:
    assert Reads(Here(place)).open(b"other") is None


def test_a_file_that_may_not_be_read_is_an_error_that_names_it(place: Path) -> None:
    (place / "link").symlink_to("file")
    with pytest.raises(ServerSettingError, match="link cannot be read"):
        Reads(Here(place)).open(b"link")


def test_waiting_ends_when_the_last_read_does(place: Path) -> None:
    reads = Reads(Here(place))
    file = reads.open(b"file")
    assert file is not None
    go_on = threading.Event()
    load = reads.later(file, lambda: (go_on.wait(), b"bytes")[1])
    reads.give_up(file)
    reader = threading.Thread(target=load)
    reader.start()
    looks = []

    def look() -> None:
        looks.append(reads.size)
        if len(looks) >= 2:
            go_on.set()

    reads.wait(look)

    assert looks[:2] == [0, 0]
    assert reads.size == 5
    reader.join()


def test_waiting_ends_when_something_is_wrong_elsewhere(place: Path) -> None:
    reads = Reads(Here(place))
    assert reads.open(b"file") is not None

    def look() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        reads.wait(look)
    reads.close()


def test_a_read_that_fails_lets_go_of_its_file(place: Path) -> None:
    reads = Reads(Here(place))
    file = reads.open(b"file")
    assert file is not None

    def fail() -> bytes:
        raise OSError

    load = reads.later(file, fail)
    reads.give_up(file)
    with pytest.raises(OSError):
        load()
    reads.wait(lambda: None)


def test_the_pace_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    pace = Pace(1000)
    for _ in range(20):
        pace.wait(500)
    assert now[0] == pytest.approx(110, abs=1)

    now[0] += 3600
    for _ in range(20):
        pace.wait(500)
    assert now[0] == pytest.approx(3720, abs=1.1)


def test_without_a_rate_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()
    monkeypatch.setattr(time, "sleep", slept.append)
    Pace(None).wait(1 << 40)
    assert slept == []
