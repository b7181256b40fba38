"""Backups of a few bytes, made in a moment: for what concerns packs and not PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pgkeep.repository.manifests import BackupName, new_backup_id
from pgkeep.repository.maps import Directory, Extent, FileEntry, cut_listings, encode_entry, encode_extents
from pgkeep.repository.packs import PackKind
from pgkeep.units import utc_now
from support.manifests import plain_manifest

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from pgkeep.repository.contents import ContentWriter
    from pgkeep.repository.doomed import DoomWatch
    from pgkeep.repository.manifests import Manifest

__all__ = ["PAGE", "contents_of", "expect_whole", "make_backup", "page", "remove_backup", "store_tree"]

PAGE = 8192


def store_tree(
    writer: ContentWriter, files: Mapping[bytes, bytes], kept: Sequence[FileEntry] = ()
) -> tuple[list[Directory], list[FileEntry]]:
    """One directory of files of a page or some, each a content with a map of its own; ``kept`` are entries of an earlier backup."""
    entries = {entry.name: entry for entry in kept}
    for name, plain in files.items():
        content = writer.put(PackKind.DATA, plain)
        encoded = encode_extents([Extent(0, len(plain) // PAGE, 0, content.id)])
        entries[name] = FileEntry(name, len(plain), 0o600, 0, None, map_id=writer.put(PackKind.META, encoded).id)
    listed = [entries[name] for name in sorted(entries)]
    listings = [writer.put(PackKind.META, piece).id for piece in cut_listings([encode_entry(each) for each in listed])]
    return [Directory(b"", 0o700, listings, len(listed), 0)], listed


def make_backup(
    repository: Repository,
    system: int,
    files: Mapping[bytes, bytes],
    kept: Sequence[FileEntry] = (),
    watch: DoomWatch | None = None,
) -> Manifest:
    """Take a backup as the real job does, but for its lease."""
    began = utc_now()
    watch = watch or repository.doom_watch()
    with repository.writer(watch) as writer:
        directories, _ = store_tree(writer, files, kept)
        writer.flush()
        manifest = plain_manifest(
            id=new_backup_id(began),
            cluster=f"c{system}",
            system_identifier=system,
            started=began,
            finished=utc_now(),
            directories=directories,
        )
        watch.spare_later_ones()
        repository.catalog.commit(manifest)
    return manifest


def contents_of(repository: Repository, manifest: Manifest) -> dict[bytes, bytes]:
    """The files of a backup, read and checked; raises DamageError where one is not there."""
    tree = repository.tree(manifest)
    return {file.path: b"".join(tree.read(file)) for file in tree.files()}


def expect_whole(repository: Repository) -> int:
    """Every listed backup can be read; returns how many there are."""
    names = repository.catalog.names()
    for name in names:
        contents_of(repository, repository.catalog.read(name))
    return len(names)


def page(text: str) -> bytes:
    """A page that is like no other."""
    return (text.encode() + secrets.token_bytes(16)).ljust(PAGE, b".")


def remove_backup(repository: Repository, manifest: Manifest) -> None:
    """What an expiry does with it at last."""
    repository.store.delete(BackupName(manifest.id, manifest.system_identifier).object_name)
