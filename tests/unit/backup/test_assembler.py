"""Files on their way into a backup, whole or by their changed pages: what is read back is what they are."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.backup.assembler import FileAssembler
from pgkeep.backup.changes import Changes, PageWatch
from pgkeep.backup.health import MAX_FETCH, MAX_PIECES, unhealthy_cells
from pgkeep.backup.parent import ParentBackup
from pgkeep.errors import DamageError
from pgkeep.receiver.changed import cut_at_cells
from pgkeep.receiver.frames import FileFacts
from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.contents import Parameters
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.tree import BackupTree
from support.manifests import plain_manifest

if TYPE_CHECKING:
    from pgkeep.backup.changes import Chosen
    from pgkeep.backup.overlay import Pages

PAGE, CELL = 512, 8 * 512
PATH = b"base/5/16384"


class Backups:
    """A repository and its newest backup, which the next one is built on."""

    def __init__(self, repository: Repository, watch: PageWatch | None = None) -> None:
        self.repository = repository
        self.watch = watch
        self.manifest: Manifest | None = None

    def take(self, feed: Callable[[FileAssembler], None]) -> Manifest:
        """A backup of what ``feed`` gives to the assembler."""
        repository = self.repository
        parent = None if self.manifest is None else ParentBackup(self.manifest, repository)
        with repository.writer() as writer:
            changes = None if parent is None else Changes(parent, writer, repository.parameters, self.watch)
            with FileAssembler(writer, repository.parameters, jobs=2, changes=changes) as assembler:
                feed(assembler)
                assembler.drain()
                tree = list(assembler.tree())
                files = assembler.files
        self.manifest = plain_manifest(page_size=PAGE, block_size=PAGE, directories=tree, files=files)
        return self.manifest

    def files(self) -> dict[bytes, bytes]:
        """The files of the newest backup, with their checksums looked at."""
        assert self.manifest is not None
        tree = BackupTree(self.manifest, self.repository.reader())
        found = {}
        for file in tree.files():
            found[file.path] = b"".join(tree.read(file))
            assert file.entry.crc32c in {None, google_crc32c.value(found[file.path])}
        return found

    def crc32c(self, path: bytes) -> int | None:
        assert self.manifest is not None
        entry = ParentBackup(self.manifest, self.repository).entry(path)
        assert entry is not None
        return entry.crc32c


Feed = Callable[[FileAssembler], None]


def reading(data: bytes) -> Feed:
    """Give the file, whole."""
    return partial(whole, path=PATH, data=data)


def whole(assembler: FileAssembler, path: bytes, data: bytes, differs: Chosen | None = None) -> None:
    assembler.begin(FileFacts(path, len(data), 0o600, 0))
    if len(data) <= 512:
        assembler.inline(data)
    else:
        for start in range(0, len(data), CELL):
            piece = data[start : start + CELL]
            first, last = start // PAGE, (start + len(piece)) // PAGE
            chosen = None if differs is None else partial(_part, differs, first, last)
            assembler.cell(partial(bytes, piece), len(piece), chosen)
    assembler.end()


def _part(differs: Chosen, first: int, last: int, _data: bytes) -> Chosen:
    return differs[first:last]


def by_pages(assembler: FileAssembler, path: bytes, data: bytes, kept_pages: int, changed: list[int]) -> None:
    numbers: Pages = np.array(changed, np.uint32)
    assembler.begin_changed(FileFacts(path, len(data), 0o600, 0), kept_pages, numbers)
    start = 0
    for count in cut_at_cells(changed, CELL // PAGE):
        group = changed[start : start + count]
        piece = b"".join(data[page * PAGE : (page + 1) * PAGE] for page in group)
        assembler.pages(partial(bytes, piece), numbers[start : start + count])
        start += count
    assembler.end()


def page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE) if seed else bytes(PAGE)


def data_of(seeds: list[int]) -> bytes:
    return b"".join(map(page, seeds))


@pytest.fixture
def backups(repository: Repository) -> Backups:
    return Backups(repository)


_Seeds = st.lists(st.integers(0, 4), min_size=2, max_size=40)


@settings(max_examples=60)
@given(history=st.lists(st.tuples(_Seeds, st.sampled_from(["whole", "pages", "differs"])), min_size=2, max_size=6))
def test_any_history_of_a_file_reads_back(history: list[tuple[list[int], str]]) -> None:
    """Whole and compared, by changed pages, by pages that may differ: in any order, growing and shrinking."""
    with TemporaryDirectory() as directory:
        store = PosixStore(Path(directory) / "repository")
        repository = Repository.create(store, KeyFile(bytes(32)), Parameters(PAGE, CELL, 64 << 10))
        backups, before = Backups(repository), list[int]()
        for seeds, way in history:
            data = data_of(seeds)
            changed = [n for n, seed in enumerate(seeds) if n >= len(before) or before[n] != seed]

            def feed(
                assembler: FileAssembler,
                data: bytes = data,
                way: str = way if before else "whole",
                changed: list[int] = changed,
                known: int = len(before),
            ) -> None:
                pages = len(data) // PAGE
                if way == "pages":
                    by_pages(assembler, PATH, data, min(pages, known), changed)
                elif way == "differs":
                    whole(assembler, PATH, data, np.isin(np.arange(pages), changed))
                else:
                    whole(assembler, PATH, data)

            manifest = backups.take(feed)
            assert backups.files() == {PATH: data}
            parent = ParentBackup(manifest, repository)
            entry = parent.entry(PATH)
            assert entry is not None
            # in a read of cells, each is judged by itself
            bound = MAX_FETCH + 1
            assert not len(unhealthy_cells(parent.extents(entry), 8, max_pieces=MAX_PIECES, max_fetch=bound))
            before = seeds


def test_an_unchanged_file_is_the_parents_entry_with_its_checksum(backups: Backups) -> None:
    """By pages, as pages that cannot differ, and compared; nothing of it is stored."""
    data = data_of(list(range(1, 30)))
    backups.take(reading(data))
    stored = sum(info.size for info in backups.repository.store.list("packs/data/"))
    for feed in (
        lambda assembler: by_pages(assembler, PATH, data, 29, []),
        lambda assembler: whole(assembler, PATH, data, np.zeros(29, bool)),
        lambda assembler: whole(assembler, PATH, data),
    ):
        backups.take(feed)
        assert backups.crc32c(PATH) == google_crc32c.value(data)
    assert sum(info.size for info in backups.repository.store.list("packs/data/")) == stored


def test_a_file_whose_changed_pages_alone_were_read_has_no_checksum(backups: Backups) -> None:
    seeds = list(range(1, 30))
    backups.take(reading(data_of(seeds)))
    seeds[3] = 99
    backups.take(lambda assembler: by_pages(assembler, PATH, data_of(seeds), 29, [3]))
    assert backups.crc32c(PATH) is None

    backups.take(lambda assembler: whole(assembler, PATH, data_of(seeds), np.arange(29) == 5))
    assert backups.crc32c(PATH) is None
    backups.take(reading(data_of(seeds)))
    assert backups.crc32c(PATH) == google_crc32c.value(data_of(seeds))


def test_pages_beyond_those_kept_are_zeros_and_not_the_parents(backups: Backups) -> None:
    """A relation that was cut off to 4 pages and grew again to 20, of which WAL tells one."""
    backups.take(reading(data_of(list(range(1, 21)))))
    expected = data_of([1, 2, 3, 4, *[0] * 6, 77, *[0] * 9])

    backups.take(lambda assembler: by_pages(assembler, PATH, expected, 4, [10]))

    assert backups.files() == {PATH: expected}


def test_one_changed_page_stores_one_page(backups: Backups) -> None:
    """Of a file that is read whole, too."""
    seeds = list(range(1, 81))
    backups.take(reading(data_of(seeds)))
    for feed in (
        lambda assembler: by_pages(assembler, PATH, data_of(seeds), 80, [20]),
        lambda assembler: whole(assembler, PATH, data_of(seeds)),
    ):
        seeds[20] += 100
        before = sum(info.size for info in backups.repository.store.list("packs/data/"))
        backups.take(feed)
        added = sum(info.size for info in backups.repository.store.list("packs/data/")) - before
        assert PAGE < added < 2 * PAGE
        assert backups.files() == {PATH: data_of(seeds)}


def test_what_differs_from_the_parent_is_watched_and_what_is_new_is_not(repository: Repository) -> None:
    """Only pages that were there before, and only where they were compared."""
    seen: list[tuple[bytes, list[int], bytes]] = []
    backups = Backups(repository, lambda path, pages, data: seen.append((path, pages.tolist(), data)))
    seeds = list(range(1, 12))
    backups.take(reading(data_of(seeds)))
    seeds[1], seeds[2] = 50, 51
    backups.take(lambda assembler: by_pages(assembler, PATH, data_of(seeds), 11, [1, 2]))
    assert seen == []
    seeds[9] = 52
    seeds.append(53)

    backups.take(reading(data_of(seeds)))

    assert seen == [(PATH, [9], page(52))]


def test_changes_of_a_file_that_the_parent_has_not_are_damage(backups: Backups) -> None:
    backups.take(reading(data_of([1, 2, 3])))

    with pytest.raises(DamageError, match="base/5/9 were sent, and its parent backup has no such file"):
        backups.take(lambda assembler: by_pages(assembler, b"base/5/9", data_of([1, 2]), 2, [0]))
