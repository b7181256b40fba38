"""Contents for a restore out of several repositories: whole ranges from the first, and one by one what it cannot give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pgkeep.copies.several import SeveralRepositories, SeveralTree
from pgkeep.errors import DamageError, StoreError
from pgkeep.repository import Repository
from pgkeep.repository.block_sums import Sums
from pgkeep.repository.codec import Codec
from pgkeep.repository.contents import IsWanted, Location
from pgkeep.repository.packs import MAX_CONTENT_SIZE, PackEntry
from pgkeep.repository.tree import BackupTree, naming
from pgkeep.restore.source import ContentSource

__all__ = ["content_source"]

_ELSEWHERE = "elsewhere/"
"""In place of a pack's name, with the content's id: no index of the first repository names it."""


def content_source(repository: Repository, tree: BackupTree) -> ContentSource:
    """The contents of a backup, from whichever repository has them whole."""
    if isinstance(repository, SeveralRepositories) and isinstance(tree, SeveralTree):
        return _SeveralSource(repository, tree)
    return ContentSource(repository)


class _SeveralSource(ContentSource):
    def __init__(self, repository: SeveralRepositories, tree: SeveralTree) -> None:
        super().__init__(repository)
        self._repository = repository
        self._tree = tree

    def locate(self, shown_paths: Mapping[bytes, str]) -> dict[bytes, Location]:
        locations = self._index.find_all(shown_paths)
        for content_id in shown_paths:
            if content_id not in locations:
                # how long it is, the repository that has it knows
                entry = PackEntry(content_id, 0, 0, MAX_CONTENT_SIZE, Codec.RAW)
                locations[content_id] = Location(f"{_ELSEWHERE}{content_id.hex()}", entry)
        return locations

    def read(
        self,
        room: Callable[[int], memoryview],
        pack: str,
        entries: Sequence[PackEntry],
        shown_paths: Mapping[bytes, str],
        is_wanted: IsWanted | None = None,
    ) -> Iterator[tuple[PackEntry, memoryview]]:
        given = 0
        if not pack.startswith(_ELSEWHERE) and not self._repository.shuns(self._repository.repositories[0]):
            try:
                for content in self._reader.read_into(room, pack, entries, is_wanted):
                    yield content
                    given += 1
            except (DamageError, StoreError):
                # the tree asks once more, and tells who failed
                pass
        for entry in entries[given:]:
            shown = shown_paths[entry.id]
            with naming(shown):
                plain = self._tree.content(entry.id, shown.encode())
            place = room(len(plain))
            place[:] = plain
            yield entry, place

    def packs_without_sums(self, locations: Iterable[Location]) -> list[str]:
        return [pack for pack in super().packs_without_sums(locations) if not pack.startswith(_ELSEWHERE)]

    def read_sums(self, pack: str) -> None:
        try:
            super().read_sums(pack)
        except (DamageError, StoreError):
            # what has no sums is fetched, and told then
            self._sums[pack] = {}

    def sums_of(self, location: Location) -> Sums | None:
        return None if location.pack.startswith(_ELSEWHERE) else super().sums_of(location)
