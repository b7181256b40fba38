"""What of a backup another repository may lack: the tree, without what a backup that both have says already.

A repository that has a backup has all its contents. So what a second backup shares with the first need not be asked for, one
content after the other: an unchanged listing is passed over whole, an unchanged file by its map. What is left is a matter of what
changed, not of the cluster's size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pgkeep.repository import Repository
from pgkeep.repository.content_reader import ContentReader
from pgkeep.repository.manifests import BackupName, Manifest
from pgkeep.repository.maps import Directory, FileEntry, decode_listing
from pgkeep.repository.page_map import Extents, decode_map, no_extents
from pgkeep.repository.store import ObjectMissing

__all__ = ["CommonBackup", "KnownFile", "changed_files", "find_common", "map_of"]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as the source has it and as the destination has it; only the ids differ, where the keys do."""

    mine: FileEntry
    theirs: FileEntry


class CommonBackup:
    """A backup that two repositories have. Methods that read raise DamageError, StoreError."""

    def __init__(self, mine: Manifest, my_reader: ContentReader, theirs: Manifest, their_reader: ContentReader) -> None:
        self._my_reader = my_reader
        self._their_reader = their_reader
        self._directories = {
            my.path: (my.listings, their.listings)
            for my, their in zip(mine.directories, theirs.directories, strict=True)
        }

    def listings(self, path: bytes) -> dict[bytes, bytes]:
        """The listings of a directory: the source's id -> the destination's."""
        mine, theirs = self._directories.get(path, ([], []))
        return dict(zip(mine, theirs, strict=True))

    def files(self, path: bytes, but: Collection[bytes]) -> Iterator[KnownFile]:
        """The files of a directory, sorted by name, without those of the listings ``but`` (ids of the source)."""
        for my_id, their_id in self.listings(path).items():
            if my_id not in but:
                mine = decode_listing(self._my_reader.get(my_id))
                if my_id == their_id:
                    yield from (KnownFile(entry, entry) for entry in mine)
                else:
                    theirs = decode_listing(self._their_reader.get(their_id))
                    yield from (KnownFile(my, their) for my, their in zip(mine, theirs, strict=True))

    def maps(self, known: KnownFile) -> tuple[Extents, Extents]:
        """A file's page map in the source and in the destination: extent for extent the same, but for the ids."""
        return map_of(known.mine, self._my_reader), map_of(known.theirs, self._their_reader)


def map_of(entry: FileEntry, reader: ContentReader) -> Extents:
    """A file's page map. Raises DamageError, StoreError."""
    if entry.map_id is not None:
        return decode_map(reader.get(entry.map_id))
    return decode_map(entry.extents) if entry.extents else no_extents()


def find_common(source: Repository, destination: Repository, manifest: Manifest) -> CommonBackup | None:
    """The backup nearest to ``manifest`` that both repositories have: the newest before it, else the oldest after it.

    One that cannot be read in either is passed over. Raises StoreError.
    """
    from pgkeep.errors import DamageError

    system = manifest.system_identifier
    here, there = (
        {name.id for name in repository.catalog.names() if name.system_identifier == system}
        for repository in (source, destination)
    )
    ids = sorted((here & there) - {manifest.id})
    before = [backup_id for backup_id in ids if backup_id < manifest.id]
    for backup_id in [*reversed(before), *ids[len(before) :]]:
        name = BackupName(backup_id, system)
        try:
            mine, theirs = source.catalog.read(name), destination.catalog.read(name)
        except (DamageError, ObjectMissing):
            continue
        if _same_shape(mine.directories, theirs.directories):
            return CommonBackup(mine, source.reader(), theirs, destination.reader())
    return None


def _same_shape(mine: list[Directory], theirs: list[Directory]) -> bool:
    return [(each.path, len(each.listings)) for each in mine] == [(each.path, len(each.listings)) for each in theirs]


def changed_files(
    directory: Directory, reader: ContentReader, common: CommonBackup | None
) -> Iterator[tuple[bytes, list[tuple[FileEntry, KnownFile | None]]]]:
    """The listings of a directory that the common backup does not have, each with its files and what is known of them.

    Raises DamageError, StoreError.
    """
    there = common.listings(directory.path) if common is not None else {}
    known = common.files(directory.path, directory.listings) if common is not None else iter(())
    candidate = next(known, None)
    for listing in directory.listings:
        if listing in there:
            continue
        files: list[tuple[FileEntry, KnownFile | None]] = []
        for entry in decode_listing(reader.get(listing)):
            # both are sorted by name
            while candidate is not None and candidate.mine.name < entry.name:
                candidate = next(known, None)
            is_known = candidate is not None and candidate.mine.name == entry.name
            files.append((entry, candidate if is_known else None))
        yield listing, files
