"""Contents for a restore: looked up many at once, read pack by pack, with the file that needs them named in errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pgkeep.repository import Repository
from pgkeep.repository.contents import Location
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.tree import naming
from pgkeep.restore.runs import Piece

__all__ = ["ContentSource"]


class ContentSource:
    """The contents of a repository; safe for threads. ``cell_size`` in bytes."""

    def __init__(self, repository: Repository) -> None:
        self._index = repository.index
        self._reader = repository.reader()
        self.cell_size = repository.parameters.cell_size
        self.content_id = repository.keys.content_id

    def locate(self, pieces: Sequence[Piece]) -> dict[bytes, Location]:
        """Where the contents of the pieces are. Raises DamageError naming the file of one that no index names."""
        locations = self._index.find_all(piece.content for piece in pieces)
        for piece in pieces:
            if piece.content not in locations:
                with naming(piece.shown_path):
                    locations[piece.content] = self._reader.locate(piece.content)
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
