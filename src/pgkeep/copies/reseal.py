"""Contents between repositories with keys of their own: opened here, sealed anew there, their compressed bytes kept.

The id of a content is a hash under the repository's key, so that the same content has another id in the destination, and every map and
listing is written anew with those. Nothing else changes: the copy has the same files in the same extents, and what one repository has
of a backup can be found in the other by its place.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

import msgspec
import numpy as np

from pgkeep.copies.transfer import Transfer
from pgkeep.copies.walk import CommonBackup, KnownFile, changed_files, map_of
from pgkeep.repository.contents import ContentReader, ContentWriter, spans
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.maps import Directory, FileEntry, cut_listings, encode_entry
from pgkeep.repository.packs import PackEntry, PackKind
from pgkeep.repository.page_map import Extents, no_extents
from pgkeep.workers import Workers

__all__ = ["ContentMover", "TreeMover"]

_BATCH = 4096
"""Contents that are on their way together: what is looked up and sorted by place at once."""

_REMEMBERED = 200_000
"""Contents whose new ids are remembered: some 50 MB. One that was forgotten is read again, and not stored again."""


class ContentMover:
    """Stores contents of one repository in another, and knows their new ids; `move` is for one thread."""

    def __init__(self, transfer: Transfer, writer: ContentWriter) -> None:
        self._transfer = transfer
        self._writer = writer
        self._reader = transfer.source.reader()
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def move(self, kind: PackKind, contents: set[bytes]) -> dict[bytes, bytes]:
        """The new ids of contents, stored where they were not. Raises DamageError, StoreError."""
        moved = {}
        for content_id in contents:
            new_id = self._known.get(content_id)
            if new_id is not None:
                self._known.move_to_end(content_id)
                moved[content_id] = new_id
        lacking = contents - moved.keys()
        locations = self._transfer.source.index.find_all(lacking)
        for content_id in lacking - locations.keys():
            self._reader.locate(content_id)
        with Workers(self._transfer.jobs, "reseal", waiting=2) as workers:
            for pack, entries in spans(list(locations.values())):
                workers.submit(self._move_span, kind, pack, entries, moved)
            workers.drain()
        self._known.update((content_id, moved[content_id]) for content_id in lacking)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return moved

    def _move_span(self, kind: PackKind, pack: str, entries: list[PackEntry], moved: dict[bytes, bytes]) -> None:
        size = 0
        for entry, compressed, plain in self._reader.read_both(pack, entries):
            new_id = self._writer.content_id(plain)
            self._writer.put_compressed(kind, new_id, compressed, plain, entry.codec)
            with self._lock:
                moved[entry.id] = new_id
            size += entry.stored_size
        self._transfer.moved(size)


class TreeMover:
    """Writes the tree of a backup anew in the destination. Raises DamageError, StoreError."""

    def __init__(self, transfer: Transfer, writer: ContentWriter, common: CommonBackup | None) -> None:
        self._writer = writer
        self._common = common
        self._reader: ContentReader = transfer.source.reader()
        self._mover = ContentMover(transfer, writer)

    def move(self, manifest: Manifest) -> list[Directory]:
        """The directories of a backup, as the destination has them; what they name is given to the writer."""
        return [self._move_directory(directory) for directory in manifest.directories]

    def _move_directory(self, directory: Directory) -> Directory:
        new = self._common.listings(directory.path) if self._common is not None else {}
        for listing, files in changed_files(directory, self._reader, self._common):
            entries = [encode_entry(entry) for entry in self._move_files(files)]
            # the cut follows from the names, so that each listing stays one, as the copy's place in the tree must
            pieces = list(cut_listings(entries))
            encoded = pieces[0] if len(pieces) == 1 else msgspec.msgpack.encode([msgspec.Raw(each) for each in entries])
            new[listing] = self._writer.put(PackKind.META, encoded).id
        return msgspec.structs.replace(directory, listings=[new[listing] for listing in directory.listings])

    def _move_files(self, files: list[tuple[FileEntry, KnownFile | None]]) -> Iterator[FileEntry]:
        """The entries of files, in order, with the ids that their contents have in the destination."""
        waiting: list[tuple[FileEntry, Extents, dict[bytes, bytes]]] = []
        lacking: set[bytes] = set()
        for entry, known in files:
            if known is not None and (entry.extents, entry.map_id) == (known.mine.extents, known.mine.map_id):
                same = msgspec.structs.replace(entry, extents=known.theirs.extents, map_id=known.theirs.map_id)
                waiting.append((same, no_extents(), {}))
                continue
            extents, new_ids = self._known_ids(entry, known)
            waiting.append((entry, extents, new_ids))
            lacking.update({content.tobytes() for content in np.unique(extents["id"])} - new_ids.keys())
            if len(lacking) >= _BATCH:
                yield from self._written(waiting, lacking)
                waiting, lacking = [], set()
        yield from self._written(waiting, lacking)

    def _known_ids(self, entry: FileEntry, known: KnownFile | None) -> tuple[Extents, dict[bytes, bytes]]:
        extents = map_of(entry, self._reader)
        if known is None or self._common is None or not len(extents):
            return extents, {}
        mine, theirs = self._common.maps(known)
        if not np.array_equal(mine["first_page"], theirs["first_page"]):
            return extents, {}
        pairs = zip(mine["id"], theirs["id"], strict=True)
        return extents, {my_id.tobytes(): their_id.tobytes() for my_id, their_id in pairs}

    def _written(
        self, waiting: list[tuple[FileEntry, Extents, dict[bytes, bytes]]], lacking: set[bytes]
    ) -> Iterator[FileEntry]:
        moved = self._mover.move(PackKind.DATA, lacking)
        for entry, extents, new_ids in waiting:
            yield self._with_ids(entry, extents, new_ids, moved)

    def _with_ids(
        self, entry: FileEntry, extents: Extents, new_ids: dict[bytes, bytes], moved: dict[bytes, bytes]
    ) -> FileEntry:
        if not len(extents):
            return entry
        ids, number = np.unique(extents["id"], return_inverse=True)
        old = [content.tobytes() for content in ids]
        new = b"".join([new_ids.get(content_id) or moved[content_id] for content_id in old])
        extents = extents.copy()
        extents["id"] = np.frombuffer(new, "V32")[number]
        encoded = extents.tobytes()
        if entry.map_id is None:
            return msgspec.structs.replace(entry, extents=encoded)
        return msgspec.structs.replace(entry, map_id=self._writer.put(PackKind.META, encoded).id)
