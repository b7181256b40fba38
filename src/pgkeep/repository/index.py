"""The index: content id -> pack, offset, sizes. A cache: packs describe themselves, so it can be made again.

Each index object covers some packs and is named by the SHA-256 of its bytes:

.. code-block:: text

    header   32 bytes   magic "pgkeepI1" · packs u32 · entries u32 · family (16)
    packs               per pack: SHA-256 of its bytes (32) · kind u8 · 7 zero bytes
    ids                 entries x 32 bytes, ascending
    places              entries x (pack number u32 · offset u32 · stored u32 · plain u32 · codec u32)
    check    32 bytes   keyed BLAKE3 of all before it, under the key "index"

Ids are keyed hashes and packs are named by their ciphertext, so an index tells a stranger sizes and nothing else. It is
memory-mapped and searched by bisection: memory does not grow with the repository.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import struct
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from blake3 import blake3

from pgkeep.errors import DamageError
from pgkeep.repository.codec import Codec
from pgkeep.repository.crypto import ID_SIZE, KeyRing
from pgkeep.repository.packs import PackEntry, PackKind, pack_name
from pgkeep.repository.store import Buffer, ObjectExists, Store

__all__ = ["Index", "IndexSegment", "Location", "write_index"]

_MAGIC = b"pgkeepI1"
_HEADER = struct.Struct("<8sII16s")
_PACK = struct.Struct("<32sB7x")
_PLACE = struct.Struct("<IIIII")
_CHECK_SIZE = 32


@dataclass(frozen=True, slots=True)
class Location:
    """Where a content is stored."""

    pack: str
    entry: PackEntry


class _Ids(Sequence[bytes]):
    """The ascending ids of an index segment, for bisect."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view) // ID_SIZE

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        return bytes(self.view[number * ID_SIZE : (number + 1) * ID_SIZE])


class IndexSegment:
    """One index object, opened. Raises DamageError where its bytes are not what was written."""

    def __init__(self, keys: KeyRing, name: str, data: Buffer) -> None:
        view = memoryview(data)
        if f"index/{hashlib.sha256(view).hexdigest()}" != name:
            raise _damaged(name, "its bytes do not match its name")
        check = blake3(view[:-_CHECK_SIZE], key=keys.derive(keys.family, "index")).digest()
        if len(view) < _HEADER.size + _CHECK_SIZE or check != view[-_CHECK_SIZE:]:
            raise _damaged(name, "it was not written with this repository's key")
        magic, pack_count, count, family = _HEADER.unpack_from(view)
        packs_end = _HEADER.size + pack_count * _PACK.size
        ids_end = packs_end + count * ID_SIZE
        places_end = ids_end + count * _PLACE.size
        if magic != _MAGIC or family != keys.family or places_end != len(view) - _CHECK_SIZE:
            raise _damaged(name, "it has no header of an index")
        self.name = name
        self.packs = [
            pack_name(PackKind(kind), digest.hex())
            for digest, kind in _PACK.iter_unpack(view[_HEADER.size : packs_end])
        ]
        self._ids = _Ids(view[packs_end:ids_end])
        self._places = view[ids_end:places_end]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, content_id: bytes) -> Location | None:
        """Where a content is, or None where this segment does not know it."""
        number = bisect.bisect_left(self._ids, content_id)
        if number == len(self._ids) or self._ids[number] != content_id:
            return None
        return self._location(number, content_id)

    def find_all(self, content_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Where those of the contents are that this segment knows."""
        import numpy as np

        if not len(self):
            return {}
        # compared as bytes, all 32 of them: what numpy takes from the end is zeros on both sides
        ids = np.frombuffer(self._ids.view, f"S{ID_SIZE}")
        wanted = np.array(content_ids, f"S{ID_SIZE}")
        numbers = np.searchsorted(ids, wanted)
        known = np.flatnonzero(ids[np.minimum(numbers, len(ids) - 1)] == wanted)
        found = zip(known.tolist(), numbers[known].tolist(), strict=True)
        return {content_ids[order]: self._location(number, content_ids[order]) for order, number in found}

    def contents_of(self, packs: Container[str]) -> Iterator[bytes]:
        """The ids of all that this segment places in these packs."""
        chosen = {number for number, name in enumerate(self.packs) if name in packs}
        if chosen:
            for number, place in enumerate(_PLACE.iter_unpack(self._places)):
                if place[0] in chosen:
                    yield self._ids[number]

    def _location(self, number: int, content_id: bytes) -> Location:
        pack, offset, stored, plain, codec = _PLACE.unpack_from(self._places, number * _PLACE.size)
        return Location(self.packs[pack], PackEntry(content_id, offset, stored, plain, Codec(codec)))


class Index:
    """All index segments of a repository, and what this process has added; safe for threads."""

    def __init__(self, store: Store, keys: KeyRing) -> None:
        self._store = store
        self._keys = keys
        self._lock = threading.Lock()
        self._segments: dict[str, IndexSegment] = {}
        self.refresh()

    @property
    def segments(self) -> list[IndexSegment]:
        """The segments known now, newest first."""
        return list(self._segments.values())

    def refresh(self) -> None:
        """Take notice of index objects that came since. Raises DamageError, StoreError."""
        with self._lock:
            infos = sorted(self._store.list("index/"), key=lambda info: info.modified, reverse=True)
            self._segments = {
                info.name: self._segments.get(info.name)
                or IndexSegment(self._keys, info.name, self._store.read_mapped(info.name))
                for info in infos
            }

    def adopt(self, name: str) -> None:
        """Take notice of one index object that was just written."""
        segment = IndexSegment(self._keys, name, self._store.read_mapped(name))
        with self._lock:
            self._segments = {name: segment, **self._segments}

    def find(self, content_id: bytes) -> Location | None:
        """Where a content is stored, or None."""
        for segment in self._segments.values():
            location = segment.find(content_id)
            if location is not None:
                return location
        return None

    def find_all(self, content_ids: Iterable[bytes]) -> dict[bytes, Location]:
        """Where many contents are stored; those that are nowhere are left out.

        Many times quicker than to ask for each of them where there are many segments, as after many small backups.
        """
        found: dict[bytes, Location] = {}
        left = list(dict.fromkeys(content_ids))
        for segment in self._segments.values():
            if not left:
                break
            there = segment.find_all(left)
            if there:
                found |= there
                left = [content_id for content_id in left if content_id not in there]
        return found

    def known_packs(self) -> set[str]:
        """Names of all packs that some segment covers."""
        return {pack for segment in self._segments.values() for pack in segment.packs}


def write_index(store: Store, keys: KeyRing, packs: Iterable[tuple[str, Sequence[PackEntry]]]) -> str:
    """Create the index object for packs that are durable already; returns its name."""
    pack_table, rows = [], []
    for number, (name, entries) in enumerate(packs):
        _, kind, _, digest = name.split("/")
        pack_table.append(_PACK.pack(bytes.fromhex(digest), PackKind[kind.upper()]))
        rows += [
            (entry.id, _PLACE.pack(number, entry.offset, entry.stored_size, entry.plain_size, entry.codec))
            for entry in entries
        ]
    rows.sort()
    data = b"".join(
        (
            _HEADER.pack(_MAGIC, len(pack_table), len(rows), keys.family),
            *pack_table,
            *(content_id for content_id, _ in rows),
            *(place for _, place in rows),
        )
    )
    check = blake3(data, key=keys.derive(keys.family, "index")).digest()
    name = f"index/{hashlib.sha256(data + check).hexdigest()}"
    with contextlib.suppress(ObjectExists):
        store.put(name, [data, check])
    return name


def _damaged(name: str, what: str) -> DamageError:
    return DamageError(
        f"{name} is damaged: {what}",
        object_name=name,
        hint=f"remove the object {name} and run: pgkeep repository reindex (the packs hold all that an index says)",
    )
