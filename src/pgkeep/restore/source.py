"""Contents for a restore: looked up many at once, read pack by pack, with the file that needs them named in errors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pgkeep.repository import Repository
from pgkeep.repository.block_sums import Sums
from pgkeep.repository.contents import IsWanted, Location
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import naming

__all__ = ["ContentSource"]

_PACKS_WITH_SUMS = 256
"""Packs whose sums are kept: 30 MB, 115 KB for each of 32 MiB that were compressed to a quarter."""


class ContentSource:
    """The contents of a repository; safe for threads. ``cell_size`` in bytes."""

    def __init__(self, repository: Repository) -> None:
        self._index = repository.index
        self._reader = repository.reader()
        self.cell_size = repository.parameters.cell_size
        self.block_sums = repository.keys.block_sums
        self._sums: OrderedDict[str, dict[int, bytes]] = OrderedDict()

    def locate(self, shown_paths: Mapping[bytes, str]) -> dict[bytes, Location]:
        """Where contents are, given with a file that needs them. Raises DamageError naming the file of one that no index names."""
        locations = self._index.find_all(shown_paths)
        for content, shown_path in shown_paths.items():
            if content not in locations:
                with naming(shown_path):
                    locations[content] = self._reader.locate(content)
        return locations

    def packs_without_sums(self, locations: Iterable[Location]) -> list[str]:
        """The packs of these contents whose sums must be read before `sums_of` knows them."""
        return sorted({location.pack for location in locations} - self._sums.keys())

    def read_sums(self, pack: str) -> None:
        """Read the sums of a pack's contents. Raises DamageError, StoreError."""
        self._sums[pack] = self._reader.block_sums(pack)

    def sums_of(self, location: Location) -> Sums | None:
        """The sums of the blocks of a content, None where there are none."""
        self._sums.move_to_end(location.pack)
        sums = self._sums[location.pack].get(location.entry.offset)
        return None if sums is None else np.frombuffer(sums, np.uint64)

    def forget_old_sums(self) -> None:
        """Keep the sums of those packs alone that were asked for last."""
        while len(self._sums) > _PACKS_WITH_SUMS:
            self._sums.popitem(last=False)

    def read(
        self,
        room: Callable[[int], memoryview],
        pack: str,
        entries: Sequence[PackEntry],
        shown_paths: Mapping[bytes, str],
        is_wanted: IsWanted | None = None,
    ) -> Iterator[tuple[PackEntry, memoryview]]:
        """The plain bytes of contents of one pack, in order of offset, by one read; see `ContentReader.read_into`.

        Raises DamageError naming a file that needs it.
        """
        contents = self._reader.read_into(room, pack, entries, is_wanted)
        for entry in entries:
            with naming(shown_paths[entry.id]):
                content = next(contents)
            yield content
