"""Contents for a restore: looked up many at once, read pack by pack, with the file that needs them named in errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pgkeep.repository import Repository
from pgkeep.repository.contents import Location
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import naming

__all__ = ["ContentSource"]


class ContentSource:
    """The contents of a repository; safe for threads. ``cell_size`` in bytes."""

    def __init__(self, repository: Repository) -> None:
        self._index = repository.index
        self._reader = repository.reader()
        self.cell_size = repository.parameters.cell_size
        self.content_id = repository.keys.content_id

    def locate(self, shown_paths: Mapping[bytes, str]) -> dict[bytes, Location]:
        """Where contents are, given with a file that needs them. Raises DamageError naming the file of one that no index names."""
        locations = self._index.find_all(shown_paths)
        for content, shown_path in shown_paths.items():
            if content not in locations:
                with naming(shown_path):
                    locations[content] = self._reader.locate(content)
        return locations

    def read(
        self, pack: str, entries: Sequence[PackEntry], shown_paths: Mapping[bytes, str]
    ) -> Iterator[tuple[PackEntry, bytes]]:
        """The plain bytes of contents of one pack, in order of offset, by one read. Raises DamageError naming a file that needs it."""
        contents = self._reader.read(pack, entries)
        for entry in entries:
            with naming(shown_paths[entry.id]):
                content = next(contents)
            yield content
