"""What recovery does when its WAL cannot be brought: it stops with an error, and never promotes on less than there is."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.repository import Repository
from pgkeep.wal.fetch import restore_command
from pgkeep.wal.fetch_source import WalSource
from pgkeep.wal.prefetch import Prefetcher
from support.fetch import CLUSTER, SIZE, Copy, Origin, TroubledStore, make_segment, name_of, source_at
from support.jobs import KEY
from support.servers import MakeServer
from support.wal import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAL_SETTINGS: dict[str, str | int | bool] = {"wal_keep_size": "1GB", "max_wal_size": "1GB"}


@pytest.fixture
def make_origin(make_server: MakeServer, work_dir: Path) -> Callable[[int], Origin]:
    """A server with small segments and a backup, its WAL stored up to 3000 rows."""

    def make(major: int) -> Origin:
        origin = Origin(make_server(major, wal_segment_size=1, settings=WAL_SETTINGS), work_dir / "repository")
        origin.insert(1, 3000)
        origin.store_finished()
        return origin

    return make


class TroubledOrigin:
    """A repository whose store can be made to fail."""

    def __init__(self, origin: Origin, place: Path, name: str = "main") -> None:
        self.store = TroubledStore(place)
        self.repository = Repository.open(self.store, KEY)
        self.source = WalSource.of(name, self.repository, origin.system_identifier)


def prefetching(copy: Copy, *origins: TroubledOrigin, time_limit: float = 60) -> Prefetcher:
    return Prefetcher(
        copy.data_directory / "pg_wal",
        [origin.source for origin in origins],
        SIZE,
        depth=2,
        jobs=1,
        time_limit=time_limit,
    )


@pytest.mark.parametrize(("major", "trouble"), [(15, "fails"), (18, "hangs")])
def test_a_store_in_trouble_stops_recovery_and_never_promotes(
    major: int, trouble: str, make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(major)
    troubled = TroubledOrigin(origin, origin.place)
    with (
        Copy(origin, work_dir / "c" / "data", restore_command([])) as copy,
        prefetching(copy, troubled, time_limit=0.5),
    ):
        actions = {"fails": troubled.store.fail, "hangs": troubled.store.hang}
        troubled.store.when_asked(origin.middle(), actions[trouble])
        copy.start(wait=False)
        copy.wait_stopped()
        troubled.store.healthy.set()
        copy.expect_no_promotion()
        assert "could not restore file" in copy.log
        assert "exit code 209" in copy.log
        said = {"fails": "connection reset by peer", "hangs": "main did not answer in 0.5 s"}
        assert said[trouble] in copy.log
        # once the store is well, recovery goes on where it was
        troubled.store.failing = False
        copy.start()
        copy.wait_promoted()
        assert copy.rows() == list(range(1, 3001))


def test_an_unreachable_second_repository_keeps_recovery_from_ending(
    make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(17)
    shutil.copytree(origin.place, work_dir / "far")
    main, far = TroubledOrigin(origin, origin.place), TroubledOrigin(origin, work_dir / "far", "far")
    far.store.failing = True
    with Copy(origin, work_dir / "c" / "data", restore_command([])) as copy, prefetching(copy, main, far):
        copy.start(wait=False)
        copy.wait_stopped()
        copy.expect_no_promotion()
        assert "far: cannot read" in copy.log


def test_a_repository_that_is_unmounted_is_no_end_of_the_wal(
    make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(15)
    main = TroubledOrigin(origin, origin.place)

    def unmount() -> None:
        origin.place.rename(work_dir / "elsewhere")
        origin.place.mkdir()

    with Copy(origin, work_dir / "c" / "data", restore_command([])) as copy, prefetching(copy, main):
        main.store.when_asked(origin.middle(), unmount)
        copy.start(wait=False)
        copy.wait_stopped()
        copy.expect_no_promotion()


def test_damaged_segments_come_from_the_second_repository(make_origin: Callable[[int], Origin], work_dir: Path) -> None:
    origin = make_origin(18)
    shutil.copytree(origin.place, work_dir / "far")
    main, far = TroubledOrigin(origin, origin.place), TroubledOrigin(origin, work_dir / "far", "far")
    with Copy(origin, work_dir / "c" / "data", restore_command([])) as copy, prefetching(copy, main, far):
        damaged = _damage_middle(origin)
        copy.start()
        copy.wait_promoted()
        assert copy.rows() == list(range(1, 3001))
        assert f"pgkeep: {damaged} comes from far, because main failed" in copy.log


def test_a_segment_that_is_damaged_everywhere_stops_recovery_and_is_named(
    make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(17)
    with (
        Copy(origin, work_dir / "c" / "data", restore_command([])) as copy,
        prefetching(copy, TroubledOrigin(origin, origin.place)),
    ):
        damaged = _damage_middle(origin)
        copy.start(wait=False)
        copy.wait_stopped()
        copy.expect_no_promotion()
        assert "exit code 208" in copy.log
        assert origin.archive.object_name(damaged) in copy.log


@pytest.mark.parametrize(
    ("fallback", "code"),
    [
        ([], 199),
        (["/no/such/python", "-m", "pgkeep", "wal", "fetch"], 199),
        # a Python without pgkeep ends with 1, which alone would mean "absent"
        (["/usr/bin/python3", "-I", "-S", "-m", "pgkeep", "wal", "fetch"], 201),
    ],
)
def test_a_broken_installation_stops_recovery(
    fallback: list[str], code: int, make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(15)
    with Copy(origin, work_dir / "c" / "data", restore_command(fallback)) as copy:
        copy.start(wait=False)
        copy.wait_stopped()
        copy.expect_no_promotion()
        assert f"exit code {code}" in copy.log


def test_a_prefetcher_that_ends_in_the_middle_stops_recovery_without_a_fallback(
    make_origin: Callable[[int], Origin], work_dir: Path
) -> None:
    origin = make_origin(17)
    with Copy(origin, work_dir / "c" / "data", restore_command([])) as copy:
        main = TroubledOrigin(origin, origin.place)
        reached = threading.Event()

        def hang() -> None:
            main.store.hang()
            reached.set()

        main.store.when_asked(origin.middle(), hang)
        with prefetching(copy, main):
            copy.start(wait=False)
            assert reached.wait(30)
        main.store.healthy.set()
        copy.wait_stopped()
        copy.expect_no_promotion()


@pytest.fixture
def hung_program(tmp_path: Path) -> Iterator[list[str]]:
    """The full program, asked for a segment whose object hangs when it is opened: a FIFO that nobody writes."""
    _, _, repository = source_at(tmp_path / "main")
    archive = repository.wal(CLUSTER)
    archive.put(name_of(1), make_segment(1))
    archive.put(name_of(2), make_segment(2))
    (tmp_path / "key").write_text(KEY.text())
    (tmp_path / "pg_wal").mkdir()
    hung = tmp_path / "main" / archive.object_name(name_of(2))
    hung.unlink()
    os.mkfifo(hung)
    (tmp_path / "fifo").symlink_to(hung)
    yield [
        *(sys.executable, "-P", "-m", "pgkeep", "wal", "fetch", name_of(2), "pg_wal/RECOVERYXLOG"),
        *("--repository", f"file://{tmp_path}/main", "--key-file", str(tmp_path / "key")),
    ]
    assert list((tmp_path / "pg_wal").iterdir()) == []


def test_the_program_gives_up_a_store_that_hangs(hung_program: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [*hung_program, "--time-limit", "500ms"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 209
    assert "did not answer in 0.5 s" in ended.stderr


def test_the_program_ends_at_once_with_sigterm(hung_program: list[str], tmp_path: Path) -> None:
    with (
        subprocess.Popen(hung_program, cwd=tmp_path, stderr=subprocess.PIPE) as process,
        _killed_at_the_end(process),
        _held_open(tmp_path / "fifo"),
    ):
        process.terminate()
        assert process.wait(10) == 143


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


@contextlib.contextmanager
def _held_open(fifo: Path) -> Iterator[None]:
    """Wait until somebody reads the FIFO; then it is read in vain, for as long as this holds the other end."""
    ends: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: no reader yet
            ends.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    until(is_read, "the program at work")
    try:
        yield
    finally:
        os.close(ends[0])


def _damage_middle(origin: Origin) -> str:
    """Flip a byte of a segment in the middle of the archive; its name."""
    name = origin.middle()
    path = origin.place / origin.archive.object_name(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return name
