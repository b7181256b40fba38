from __future__ import annotations

import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from pgkeep.backup import parent as parent_module
from pgkeep.backup.overlay import decode_map
from pgkeep.backup.parent import ParentBackup
from pgkeep.backup.source import ParentUnreadable
from pgkeep.repository import Repository
from pgkeep.repository.contents import ContentWriter
from pgkeep.repository.manifests import Manifest, WalRange
from pgkeep.repository.maps import Directory, Extent, FileEntry, cut_listings, encode_entry, encode_extents
from pgkeep.repository.packs import PackKind

PAGE = 512
TIME = datetime(2026, 11, 23, tzinfo=UTC)


def manifest_of(repository: Repository, files: Mapping[bytes, FileEntry]) -> Manifest:
    """A backup of these files, by path."""
    directories: dict[bytes, list[FileEntry]] = {}
    for path, entry in files.items():
        directories.setdefault(os.path.dirname(path), []).append(entry)
    with repository.writer() as writer:
        tree = [
            Directory(path, 0o700, _listings(writer, entries), len(entries), 0)
            for path, entries in sorted(directories.items())
        ]
    return Manifest(
        id="20261123T000000.000Z-00000000", cluster="c", label="l", mode="stream", system_identifier=1,
        server_version=180000, from_standby=False, started=TIME, finished=TIME, timeline=1, start_lsn=1, stop_lsn=2,
        page_size=PAGE, block_size=PAGE, segment_blocks=1, data_checksums=True, backup_label=b"", tablespace_map=b"",
        tablespaces=[], directories=tree, wal=WalRange(1, 1, 2, 1 << 24, [], 0), logical_size=0, stored_size=0,
        new_size=0, files=len(files),
    )  # fmt: skip


def _listings(writer: ContentWriter, entries: list[FileEntry]) -> list[bytes]:
    encoded = [encode_entry(entry) for entry in sorted(entries, key=lambda entry: entry.name)]
    return [writer.put(PackKind.META, listing).id for listing in cut_listings(encoded)]


def small(name: bytes) -> FileEntry:
    return FileEntry(name, len(name), 0o600, 0, 0, inline=name)


def test_files_are_found_by_path(repository: Repository) -> None:
    files = {b"base/1/%d" % number: small(b"%d" % number) for number in range(16384, 16400)} | {
        b"PG_VERSION": small(b"PG_VERSION")
    }
    parent = ParentBackup(manifest_of(repository, files), repository)

    assert {path: parent.entry(path) for path in files} == files
    for missing in (b"base/1/1", b"base/1/16400", b"base/2/16384", b"base/1", b"", b"base/1/"):
        assert parent.entry(missing) is None
    assert list(parent.paths(b"base/1")) == sorted(files)[1:]
    assert list(parent.paths(b"base/2")) == []


def test_files_of_a_large_directory_are_found_in_any_order(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More listings than are kept in memory."""
    monkeypatch.setattr(parent_module, "_LISTINGS", 3)
    files = {b"base/1/%d" % number: small(b"%d" % number) for number in range(3000)}
    manifest = manifest_of(repository, files)
    assert len(manifest.directories[0].listings) > 6
    parent = ParentBackup(manifest, repository)

    for path in random.Random(1).sample(sorted(files), 300):
        assert parent.entry(path) == files[path]
        assert parent.entry(path + b"x") is None
    assert list(parent.entries(b"base/1")) == [files[path] for path in sorted(files)]
    assert len(parent._listings._values) <= 3


def test_pages_are_read_from_where_the_map_says(repository: Repository) -> None:
    """Zeros where it says nothing, and where a content ends before its last page does."""
    chance = random.Random(1)
    first, second = chance.randbytes(4 * PAGE), chance.randbytes(2 * PAGE + 10)
    with repository.writer() as writer:
        ids = [writer.put(PackKind.DATA, plain).id for plain in (first, second)]
        encoded = encode_extents([Extent(1, 2, 1, ids[0]), Extent(5, 3, 0, ids[1]), Extent(9, 1, 3, ids[0])])
        map_id = writer.put(PackKind.META, encoded).id
    whole = bytes(PAGE) + first[PAGE : 3 * PAGE] + bytes(2 * PAGE) + second.ljust(3 * PAGE, b"\0") + bytes(PAGE)
    whole += first[3 * PAGE :]
    inline = FileEntry(b"a", 10 * PAGE, 0o600, 0, None, extents=encoded)
    apart = FileEntry(b"b", 10 * PAGE, 0o600, 0, None, map_id=map_id)
    parent = ParentBackup(manifest_of(repository, {b"a": inline, b"b": apart}), repository)

    for entry in (inline, apart):
        extents = parent.extents(entry)
        assert extents.tobytes() == decode_map(encoded).tobytes()
        for start in range(10):
            for end in range(start, 11):
                assert parent.pages(extents, start, end - start) == whole[start * PAGE : end * PAGE]
    assert len(parent.extents(small(b"c"))) == 0


def test_a_parent_with_a_lost_listing_cannot_be_built_on(repository: Repository) -> None:
    """An error of its own kind, so that a backup can do without the parent; it names the pack."""
    manifest = manifest_of(repository, {b"base/1/2": small(b"2")})
    (pack,) = [info.name for info in repository.store.list("packs/meta/")]
    repository.store.delete(pack)
    parent = ParentBackup(manifest, repository)

    with pytest.raises(ParentUnreadable, match=f"cannot be built on: {pack} is gone"):
        parent.entry(b"base/1/2")
    with pytest.raises(ParentUnreadable, match=pack):
        list(parent.entries(b"base/1"))
