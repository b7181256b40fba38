"""A delta restore's parts without a server: what is compared with what, what is fetched and written, what is removed."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.progress import Silent
from pgkeep.repository import Repository, open_store
from pgkeep.repository.contents import ContentWriter, Parameters
from pgkeep.repository.maps import Extent, FileEntry, encode_extents
from pgkeep.repository.packs import PackKind
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore.delta import DeltaCounts, DeltaWriter, differing
from pgkeep.restore.pace import Pace
from pgkeep.restore.source import ContentSource

PAGE = 8192
CELL = 4 * PAGE


class Bench:
    """A repository with contents, and files made of them that are written over what is on the disk."""

    def __init__(self, directory: Path) -> None:
        self.repository = Repository.create(
            open_store(str(directory / "repository")), None, Parameters(cell_size=CELL, pack_size=1 << 20)
        )
        self.target = directory / "target"
        self.target.mkdir()
        self._pages: dict[bytes, bytes] = {}

    def store(self, *contents: bytes) -> list[bytes]:
        with self.repository.writer() as writer:
            return [self._put(writer, content) for content in contents]

    def _put(self, writer: ContentWriter, content: bytes) -> bytes:
        stored = writer.put(PackKind.DATA, content).id
        self._pages[stored] = content
        return stored

    def file(self, name: str, size: int, *extents: Extent) -> BackupFile:
        entry = FileEntry(name.encode(), size, 0o600, 0, None, extents=encode_extents(extents))
        return BackupFile(name.encode(), entry)

    def expected(self, file: BackupFile, *extents: Extent) -> bytes:
        data = bytearray(file.entry.size)
        for extent in extents:
            content = self._pages[extent.id][extent.content_page * PAGE :][: extent.pages * PAGE]
            content = content[: file.entry.size - extent.first_page * PAGE]
            data[extent.first_page * PAGE :][: len(content)] = content
            data[extent.first_page * PAGE : extent.first_page * PAGE + len(content)] = content
        return bytes(data)

    def write(self, *files: BackupFile) -> DeltaCounts:
        with DeltaWriter(
            _Tree(),
            ContentSource(self.repository),
            lambda path: os.fsencode(self.target) + b"/" + path,
            jobs=2,
            owner=None,
            progress=Silent(),
            pace=Pace(),
        ) as writer:
            for file in files:
                writer.add(file)
            writer.finish()
            return writer.counts

    def there(self, name: str) -> bytes:
        return (self.target / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        (self.target / name).write_bytes(data)


class _Tree(BackupTree):
    """Files with their maps in themselves need nothing of a backup but its page size."""

    def __init__(self) -> None:
        self.manifest = type("Manifest", (), {"page_size": PAGE})()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def pages(*numbers: int) -> bytes:
    """Pages that differ from one another; 0 is zeros."""
    return b"".join(bytes(PAGE) if number == 0 else random.Random(number).randbytes(PAGE) for number in numbers)


def test_a_cell_that_is_there_is_not_fetched(bench: Bench) -> None:
    (cell,) = bench.store(pages(1, 2, 3, 4))
    bench.put("f", pages(1, 2, 3, 4))

    counts = bench.write(bench.file("f", CELL, Extent(0, 4, 0, cell)))

    assert counts == DeltaCounts(compared=CELL, kept=CELL)


def test_a_cell_that_differs_is_fetched_and_only_its_pages_that_differ_are_written(bench: Bench) -> None:
    (cell,) = bench.store(pages(1, 2, 3, 4))
    bench.put("f", pages(1, 2, 9, 4))

    counts = bench.write(bench.file("f", CELL, Extent(0, 4, 0, cell)))

    assert bench.there("f") == pages(1, 2, 3, 4)
    assert (counts.written, counts.kept) == (PAGE, 3 * PAGE)
    assert counts.fetched > 0


def test_a_superseded_cell_is_known_by_its_old_pages_where_these_are_on_the_disk(bench: Bench) -> None:
    """An older copy: the cell as it was is all there, so that only the bundle is fetched."""
    cell, bundle = bench.store(pages(1, 2, 3, 4), pages(7))
    bench.put("f", pages(1, 2, 3, 4))

    counts = bench.write(
        bench.file("f", CELL, Extent(0, 2, 0, cell), Extent(2, 1, 0, bundle), Extent(3, 1, 3, cell)),
    )

    assert bench.there("f") == pages(1, 2, 7, 4)
    assert (counts.written, counts.kept) == (PAGE, 3 * PAGE)
    assert counts.fetched < 2 * PAGE


def test_a_bundle_is_known_by_its_pages_in_all_their_files(bench: Bench) -> None:
    """Content pages in another order than they lie in the files."""
    (bundle,) = bench.store(pages(1, 2, 3))
    bench.put("f", pages(5, 2))
    bench.put("g", pages(3, 5, 1))
    other = bench.store(pages(5))[0]

    counts = bench.write(
        bench.file("f", 2 * PAGE, Extent(0, 1, 0, other), Extent(1, 1, 1, bundle)),
        bench.file("g", 3 * PAGE, Extent(0, 1, 2, bundle), Extent(1, 1, 0, other), Extent(2, 1, 0, bundle)),
    )

    assert (counts.kept, counts.written, counts.fetched) == (5 * PAGE, 0, 0)


def test_what_cannot_be_proven_is_fetched_and_compared(bench: Bench) -> None:
    """The third page of the content is nowhere on the disk."""
    (bundle,) = bench.store(pages(1, 2, 3))
    bench.put("f", pages(1, 9))

    counts = bench.write(bench.file("f", 2 * PAGE, Extent(0, 1, 0, bundle), Extent(1, 1, 1, bundle)))

    assert bench.there("f") == pages(1, 2)
    assert (counts.kept, counts.written) == (PAGE, PAGE)


def test_holes_are_made_where_something_is(bench: Bench) -> None:
    """And stay where nothing is, without being read."""
    (page,) = bench.store(pages(1))
    size = 64 << 20
    with (bench.target / "f").open("wb") as file:
        file.write(pages(1, 2))
        file.seek(40 << 20)
        file.write(b"not a zero")
        os.ftruncate(file.fileno(), size)

    counts = bench.write(bench.file("f", size, Extent(0, 1, 0, page)))

    assert bench.there("f") == pages(1) + bytes(size - PAGE)
    assert counts.compared < 2 << 20
    assert counts.kept + counts.written == size
    assert (bench.target / "f").stat().st_blocks * 512 <= 1 << 20


def test_a_file_that_is_too_long_or_too_short_or_not_there_gets_its_size(bench: Bench) -> None:
    """Also one whose last page is cut off."""
    (cell,) = bench.store(pages(1, 2)[:10_000])
    expected = pages(1, 2)[:10_000]
    for there in (None, b"", expected[:5000], expected[:9000], expected + b"more", pages(1, 2, 3)):
        if there is not None:
            bench.put("f", there)

        bench.write(bench.file("f", 10_000, Extent(0, 2, 0, cell)))

        assert bench.there("f") == expected
        (bench.target / "f").unlink()


def test_a_file_with_a_second_name_is_made_anew(bench: Bench) -> None:
    """Its twin, in a copy that was made of links, stays as it is."""
    (cell,) = bench.store(pages(1, 2))
    twin = bench.target.parent / "twin"
    twin.write_bytes(pages(1, 9))
    os.link(twin, bench.target / "f")

    bench.write(bench.file("f", 2 * PAGE, Extent(0, 2, 0, cell)))

    assert bench.there("f") == pages(1, 2)
    assert twin.read_bytes() == pages(1, 9)


def test_small_files_are_compared_too(bench: Bench) -> None:
    bench.put("same", b"text")
    bench.put("other", b"other")
    files = [
        BackupFile(name, FileEntry(name, 4, 0o640, 0, None, inline=b"text")) for name in (b"same", b"other", b"new")
    ]

    counts = bench.write(*files)

    assert {name: bench.there(name) for name in ("same", "other", "new")} == dict.fromkeys(
        ("same", "other", "new"), b"text"
    )
    assert (counts.kept, counts.written, counts.removed) == (4, 8, 1)
    assert {path.stat().st_mode & 0o777 for path in bench.target.iterdir()} == {0o640}


@st.composite
def maps(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """First page, pages, page in the content, number of the content: in order, with gaps."""
    extents, page = [], 0
    for gap, count, start, content in draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 3), st.integers(0, 5)),
            max_size=8,
        )
    ):
        page += gap
        extents.append((page, min(count, 4 - start), start, content))
        page += min(count, 4 - start)
    return extents


@given(st.lists(maps(), min_size=1, max_size=3), st.randoms(use_true_random=False), st.integers(0, 3))
def test_whatever_is_there_becomes_what_the_map_says(
    tmp_path_factory: pytest.TempPathFactory,
    layouts: list[list[tuple[int, int, int, int]]],
    chance: random.Random,
    wrong: int,
) -> None:
    """Files of pieces of six contents, over files with any of their pages wrong; a second run writes nothing."""
    bench = Bench(tmp_path_factory.mktemp("delta"))
    contents = bench.store(*(pages(*(10 * number + page for page in range(1, 5))) for number in range(6)))
    files, expected = [], []
    for number, layout in enumerate(layouts):
        extents = [Extent(first, count, start, contents[content]) for first, count, start, content in layout]
        size = (max((first + count for first, count, _, _ in layout), default=0) + chance.randrange(3)) * PAGE
        file = bench.file(f"f{number}", size, *extents)
        data = bench.expected(file, *extents)
        there = bytearray(data)
        for _ in range(wrong if size else 0):
            there[chance.randrange(size)] ^= 1 + chance.randrange(255)
        bench.put(f"f{number}", bytes(there[: chance.choice([size, size, size // 2])]) + b"x" * chance.choice([0, 9]))
        files.append(file)
        expected.append(data)

    bench.write(*files)

    assert [bench.there(f"f{number}") for number in range(len(files))] == expected
    assert bench.write(*files).written == 0


@given(st.integers(1, 300), st.sets(st.integers(0, 299)), st.sampled_from([0, 100]))
def test_runs_of_differing_pages_are_found(count: int, changed: set[int], tail: int) -> None:
    """With a page cut off at the end; all in one where it is more than half."""
    page = 64
    size = count * page + tail
    total = -(-size // page)
    old = bytearray(size)
    new = bytearray(size)
    changed = {number for number in changed if number < total}
    for number in changed:
        new[min(number * page + 63, size - 1)] = 1

    runs = differing(memoryview(old), memoryview(new), page)

    if 2 * len(changed) > total:
        assert runs == [(0, size)]
    for first, end in runs:
        old[first:end] = new[first:end]
    assert old == new
    if 2 * len(changed) <= total:
        assert sum(end - first for first, end in runs) <= len(changed) * page


# What threads share


def test_a_pace_lets_so_many_bytes_pass_in_a_second() -> None:
    """Over all threads."""
    pace = Pace(rate=1_000_000)
    begun = time.monotonic()
    threads = [threading.Thread(target=_spend, args=(pace, [50_000] * 4)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.35 < time.monotonic() - begun < 3


def _spend(pace: Pace, sizes: Sequence[int]) -> None:
    for size in sizes:
        pace.spend(size)


def test_a_nice_thread_leaves_others_as_they_are() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def work() -> None:
        pace = Pace(nice=4)
        pace.enter()
        pace.enter()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(before + 4, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
