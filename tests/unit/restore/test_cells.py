"""Cells put together from contents that they share: what a restore writes is what the maps say, however its windows fall."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.progress import Silent
from pgkeep.repository import Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.repository.maps import Extent, FileEntry, encode_extents
from pgkeep.repository.packs import PackKind
from pgkeep.repository.page_map import decode_map
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.restore import write
from pgkeep.restore.cells import FileCells
from pgkeep.restore.delta import DeltaWriter
from pgkeep.restore.pace import Pace
from pgkeep.restore.source import ContentSource
from pgkeep.restore.write import FileWriter

PAGE = 8192
CELL_PAGES = 4

Layout = list[tuple[int, int, int]]
"""For each page of a file: the content, its page there, and how likely the page is a hole."""


class _Tree(BackupTree):
    """Files with their maps in themselves need nothing of a backup but its page size."""

    def __init__(self) -> None:
        self.manifest = type("Manifest", (), {"page_size": PAGE})()


class Place:
    """A repository with contents of random pages, and a directory to write files into."""

    def __init__(self, directory: Path, pages_of_contents: list[int]) -> None:
        self.target = directory / "target"
        self.target.mkdir(parents=True)
        parameters = Parameters(cell_size=CELL_PAGES * PAGE, pack_size=1 << 17)
        self.repository = Repository.create(open_store(str(directory / "repository")), None, parameters)
        self.contents = [
            random.Random(number).randbytes(pages * PAGE) for number, pages in enumerate(pages_of_contents)
        ]
        with self.repository.writer() as writer:
            self.ids = [writer.put(PackKind.DATA, content).id for content in self.contents]

    def file(self, name: str, layout: Layout) -> tuple[BackupFile, bytes]:
        """A file with this layout, and what is to be in it."""
        extents, data = [], bytearray(len(layout) * PAGE)
        for page, (number, content_page, hole) in enumerate(layout):
            content = number % len(self.contents)
            source = content_page % (len(self.contents[content]) // PAGE)
            if hole:
                extents.append(Extent(page, 1, source, self.ids[content]))
                data[page * PAGE : (page + 1) * PAGE] = self.contents[content][source * PAGE : (source + 1) * PAGE]
        entry = FileEntry(name.encode(), len(data), 0o600, 0, None, extents=encode_extents(extents))
        return BackupFile(name.encode(), entry), bytes(data)

    def write(self, kind: type[FileWriter], *files: BackupFile) -> None:
        with kind(
            _Tree(),
            ContentSource(self.repository),
            lambda path: os.fsencode(self.target) + b"/" + path,
            jobs=3,
            owner=None,
            progress=Silent(),
            pace=Pace(),
        ) as writer:
            for file in files:
                writer.add(file)
            writer.finish()


layouts = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 5)), max_size=23), min_size=1, max_size=5
)


@settings(max_examples=60)
@given(layouts, st.lists(st.integers(1, CELL_PAGES), min_size=1, max_size=7), st.integers(1, 8), st.booleans())
def test_files_are_what_their_maps_say_however_the_windows_fall(
    tmp_path_factory: pytest.TempPathFactory, layouts: list[Layout], contents: list[int], window: int, over: bool
) -> None:
    """Into an empty directory, or over other bytes; with windows of a few cells, and room for a page or for all."""
    place = Place(tmp_path_factory.mktemp("cells"), contents)
    kind = DeltaWriter if over else FileWriter
    files = [place.file(f"f{number}", layout) for number, layout in enumerate(layouts)]
    chance = random.Random(window)
    if over:
        for file, data in files:
            spoiled = bytearray(data)
            for page in range(0, len(data), PAGE):
                if chance.random() < 0.5:
                    spoiled[page : page + PAGE] = chance.randbytes(PAGE)
            (place.target / file.shown_path).write_bytes(spoiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "window_cells", window)
        patch.setattr(write, "HELD", chance.choice([PAGE, 8 * PAGE, 1 << 20]))
        place.write(kind, *(file for file, _ in files))
    for file, data in files:
        assert (place.target / file.shown_path).read_bytes() == data


def test_cells_end_at_the_grid_at_holes_and_with_the_file() -> None:
    """Each names the content that most of it is in."""
    a, b = bytes([1]) * 32, bytes([2]) * 32
    extents = decode_map(
        encode_extents(
            [Extent(0, 3, 0, a), Extent(3, 2, 0, b), Extent(5, 1, 1, a), Extent(7, 1, 2, a), Extent(8, 1, 0, b)]
        )
    )
    cells = list(FileCells(CELL_PAGES * PAGE, PAGE).of(extents, b"f", "f", 8 * PAGE + 100, is_new=True))
    assert [(cell.position // PAGE, cell.size, cell.shared_pages, cell.own) for cell in cells] == [
        (0, 4 * PAGE, 1, a),
        (4, 2 * PAGE, 1, cells[1].own),
        (7, PAGE, 0, a),
        (8, 100, 0, b),
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_a_map_that_names_pages_which_a_content_does_not_have_is_damage(tmp_path: Path, shared: bool) -> None:
    place = Place(tmp_path, [2, 3])
    extents = [Extent(0, 3, 0, place.ids[0])]
    if shared:
        extents = [Extent(0, 3, 0, place.ids[1]), Extent(3, 1, 2, place.ids[0])]
    entry = FileEntry(b"f", 4 * PAGE, 0o600, 0, None, extents=encode_extents(extents))
    with pytest.raises(DamageError, match="f cannot be restored: its map names bytes that content"):
        place.write(FileWriter, BackupFile(b"f", entry))
