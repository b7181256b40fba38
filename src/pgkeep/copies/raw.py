"""Contents between repositories that share their keys: whole packs, as they are, and none of them opened.

A pack's name is the hash of its bytes, so that what arrives is what was stored, or is refused.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress

from pgkeep.copies.transfer import Transfer
from pgkeep.copies.walk import CommonBackup, changed_files
from pgkeep.errors import DamageError
from pgkeep.repository.index import write_index
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.maps import FileEntry
from pgkeep.repository.packs import PackEntry, pack_table
from pgkeep.repository.page_map import decode_map
from pgkeep.repository.store import ObjectExists, ObjectMissing

__all__ = ["copy_packs", "fetch_pack", "needed_packs", "size_of_packs"]

_BATCH = 8192
"""Contents that are looked up at once."""

_ASKED_SINGLY = 64
"""Packs up to which a question for each costs less than a listing of all."""

_INDEX_ENTRIES = 250_000
"""Entries after which an index object is written, as when they were stored."""


def needed_packs(transfer: Transfer, manifest: Manifest, common: CommonBackup | None) -> set[str]:
    """The packs of the source with contents of a backup that the destination lacks. Raises DamageError, StoreError."""
    packs: set[str] = set()
    there, here = transfer.destination.index, transfer.source.index
    reader = transfer.source.reader()
    for batch in _batches(transfer, manifest, common):
        lacking = batch - there.find_all(batch).keys()
        found = here.find_all(lacking)
        for content_id in lacking - found.keys():
            reader.locate(content_id)
        packs.update(location.pack for location in found.values())
    return packs


def size_of_packs(transfer: Transfer, packs: Collection[str]) -> int:
    """The bytes of packs in the source; what is gone has none. Raises StoreError."""
    store = transfer.source.store
    if len(packs) > _ASKED_SINGLY:
        return sum(info.size for info in store.list("packs/") if info.name in packs)
    size = 0
    for name in packs:
        with suppress(ObjectMissing):
            size += store.info(name).size
    return size


def copy_packs(transfer: Transfer, packs: Collection[str]) -> int:
    """Make packs durable in the destination, and then its index; returns their bytes.

    After an error what has arrived is in the index all the same, so that the next run goes on. Raises DamageError, StoreError.
    """
    arrivals = _Arrivals(transfer)
    try:
        with transfer.workers("copy") as workers:
            for pack in sorted(packs):
                workers.submit(arrivals.bring, pack)
            workers.drain()
    finally:
        arrivals.write_index()
    return arrivals.size


def fetch_pack(transfer: Transfer, name: str) -> bytes:
    """A pack's bytes from the source, proven by its name. Raises DamageError, StoreError."""
    try:
        data = transfer.source.store.get(name)
    except ObjectMissing:
        raise DamageError(f"{name} is gone from {transfer.source.store.url}", object_name=name) from None
    if hashlib.sha256(data).hexdigest() != name.rpartition("/")[2]:
        raise DamageError(
            f"{name} is damaged in {transfer.source.store.url}: its bytes do not match its name", object_name=name
        )
    return data


class _Arrivals:
    """Packs that have come, until their index is written; safe for threads."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._lock = threading.Lock()
        self._index_lock = threading.Lock()
        self._tables: list[tuple[str, list[PackEntry]]] = []
        self._entries = 0
        self.size = 0

    def bring(self, name: str) -> None:
        data = fetch_pack(self._transfer, name)
        table = pack_table(self._transfer.destination.keys, name, data)
        # a copy that was killed may have left it: its name says that it is the same
        with suppress(ObjectExists):
            self._transfer.destination.store.put(name, [data])
        with self._lock:
            self._tables.append((name, table))
            self._entries += len(table)
            self.size += len(data)
            due = self._entries >= _INDEX_ENTRIES
        if due:
            self.write_index()
        self._transfer.moved(len(data))

    def write_index(self) -> None:
        destination = self._transfer.destination
        with self._index_lock:
            with self._lock:
                tables, self._tables, self._entries = self._tables, [], 0
            if tables:
                destination.index.adopt(write_index(destination.store, destination.keys, tables))


def _batches(transfer: Transfer, manifest: Manifest, common: CommonBackup | None) -> Iterator[set[bytes]]:
    """The contents of a backup, many at a time, without what the common backup has in the same place."""
    reader = transfer.source.reader()
    batch: set[bytes] = set()
    for directory in manifest.directories:
        for listing, files in changed_files(directory, reader, common):
            batch.add(listing)
            for entry, known in files:
                if known is not None and _same_bytes(entry, known.mine):
                    continue
                encoded = entry.extents or b""
                if entry.map_id is not None:
                    batch.add(entry.map_id)
                    encoded = reader.get(entry.map_id)
                batch.update(content.tobytes() for content in decode_map(encoded)["id"])
                if len(batch) >= _BATCH:
                    yield batch
                    batch = set()
    if batch:
        yield batch


def _same_bytes(entry: FileEntry, other: FileEntry) -> bool:
    return (entry.inline, entry.extents, entry.map_id) == (other.inline, other.extents, other.map_id)
