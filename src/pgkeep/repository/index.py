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
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, overload

from blake3 import blake3

from pgkeep.errors import DamageError
from pgkeep.repository.codec import Codec
from pgkeep.repository.crypto import ID_SIZE, KeyRing
from pgkeep.repository.packs import PackEntry, PackKind, pack_name
from pgkeep.repository.store import Buffer, ObjectExists, ObjectMissing, Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Index", "IndexSegment", "Location", "merge_segments", "write_index"]

_MAGIC = b"pgkeepI1"
_HEADER = struct.Struct("<8sII16s")
_PACK = struct.Struct("<32sB7x")
_PLACE = struct.Struct("<IIIII")
_CHECK_SIZE = 32

_REFRESHES = 20
"""Listings until one holds while its objects are read."""


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

    def find(self, content_id: bytes, besides: Collection[str] = ()) -> Location | None:
        """Where a content is, or None where this segment knows it in no pack but those of ``besides``."""
        number = bisect.bisect_left(self._ids, content_id)
        while number < len(self._ids) and self._ids[number] == content_id:
            location = self._location(number, content_id)
            if location.pack not in besides:
                return location
            number += 1
        return None

    def find_all(self, content_ids: Sequence[bytes], besides: Collection[str] = ()) -> dict[bytes, Location]:
        """`find` for many contents; those that it does not find are left out."""
        import numpy as np

        if not len(self):
            return {}
        # compared as bytes, all 32 of them: what numpy takes from the end is zeros on both sides
        ids = np.frombuffer(self._ids.view, f"S{ID_SIZE}")
        wanted = np.array(content_ids, f"S{ID_SIZE}")
        numbers = np.searchsorted(ids, wanted)
        known = np.flatnonzero(ids[np.minimum(numbers, len(ids) - 1)] == wanted)
        rows = zip(known.tolist(), numbers[known].tolist(), strict=True)
        found = {content_ids[order]: self._location(number, content_ids[order]) for order, number in rows}
        for content_id in [each for each, place in found.items() if place.pack in besides] if besides else []:
            other = self.find(content_id, besides)
            if other is None:
                del found[content_id]
            else:
                found[content_id] = other
        return found

    def contents_of(self, packs: Container[str]) -> Iterator[bytes]:
        """The ids of all that this segment places in these packs."""
        chosen = {number for number, name in enumerate(self.packs) if name in packs}
        if chosen:
            for number, place in enumerate(_PLACE.iter_unpack(self._places)):
                if place[0] in chosen:
                    yield self._ids[number]

    def rows_of(self, content_ids: npt.NDArray[np.bytes_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows of these ids (``S32``), and for each row the number of its id among them; an id has a row for each pack."""
        import numpy as np

        ids = self.ids()
        rows = np.searchsorted(ids, content_ids)
        numbers = np.arange(len(content_ids))
        all_rows, all_numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while len(numbers):
            numbers, rows = numbers[rows < len(ids)], rows[rows < len(ids)]
            same = ids[rows] == content_ids[numbers]
            numbers, rows = numbers[same], rows[same]
            all_rows.append(rows)
            all_numbers.append(numbers)
            rows = rows + 1
        return np.concatenate(all_rows), np.concatenate(all_numbers)

    def ids(self) -> npt.NDArray[np.bytes_]:
        """All ids, ascending, as ``S32``."""
        import numpy as np

        return np.frombuffer(self._ids.view, f"S{ID_SIZE}")

    def places(self) -> npt.NDArray[np.uint32]:
        """A row for each id: number of the pack in `packs`, offset, stored size, plain size, codec."""
        import numpy as np

        return np.frombuffer(self._places, "<u4").reshape(-1, 5)

    def location(self, number: int) -> Location:
        """What a row says."""
        return self._location(number, self._ids[number])

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
            read = dict(self._segments)
            for attempt in range(_REFRESHES):
                infos = sorted(self._store.list("index/"), key=lambda info: info.modified, reverse=True)
                try:
                    for name in (info.name for info in infos if info.name not in read):
                        read[name] = IndexSegment(self._keys, name, self._store.read_mapped(name))
                except ObjectMissing:
                    # a collector has put it together with others since the listing
                    if attempt + 1 == _REFRESHES:
                        raise
                else:
                    self._segments = {info.name: read[info.name] for info in infos}
                    return

    def adopt(self, name: str) -> None:
        """Take notice of one index object that was just written."""
        try:
            segment = IndexSegment(self._keys, name, self._store.read_mapped(name))
        except ObjectMissing:
            # a collector has put it together with others already
            self.refresh()
            return
        with self._lock:
            self._segments = {name: segment, **self._segments}

    def find(self, content_id: bytes, *, besides: Collection[str] = ()) -> Location | None:
        """Where a content is stored, or None; ``besides`` are packs that do not count."""
        for segment in self._segments.values():
            location = segment.find(content_id, besides)
            if location is not None:
                return location
        return None

    def find_all(self, content_ids: Iterable[bytes], *, besides: Collection[str] = ()) -> dict[bytes, Location]:
        """Where many contents are stored; those that are nowhere are left out. ``besides``: see `find`.

        Many times quicker than to ask for each of them where there are many segments, as after many small backups.
        """
        found: dict[bytes, Location] = {}
        left = list(dict.fromkeys(content_ids))
        for segment in self._segments.values():
            if not left:
                break
            there = segment.find_all(left, besides)
            if there:
                found |= there
                left = [content_id for content_id in left if content_id not in there]
        return found

    def known_packs(self) -> set[str]:
        """Names of all packs that some segment covers."""
        return {pack for segment in self._segments.values() for pack in segment.packs}


def write_index(store: Store, keys: KeyRing, packs: Iterable[tuple[str, Sequence[PackEntry]]]) -> str:
    """Create the index object for packs that are durable already; returns its name.

    Of a content that several packs hold, the first of them is where it is found.
    """
    pack_table, rows = [], []
    for number, (name, entries) in enumerate(packs):
        _, kind, _, digest = name.split("/")
        pack_table.append(_PACK.pack(bytes.fromhex(digest), PackKind[kind.upper()]))
        rows += [
            (entry.id, _PLACE.pack(number, entry.offset, entry.stored_size, entry.plain_size, entry.codec))
            for entry in entries
        ]
    rows.sort(key=itemgetter(0))
    ids, places = b"".join(content_id for content_id, _ in rows), b"".join(place for _, place in rows)
    return _write(store, keys, pack_table, len(rows), ids, places)


def merge_segments(store: Store, keys: KeyRing, segments: Sequence[IndexSegment], gone: Container[str]) -> str | None:
    """Create one index object for the packs of several but those that are ``gone``; its name, None where none is left."""
    import numpy as np

    number_of: dict[str, int] = {}
    ids, places = list["npt.NDArray[np.bytes_]"](), list["npt.NDArray[np.uint32]"]()
    for segment in segments:
        numbers = np.full(len(segment.packs), -1, np.int64)
        for position, name in enumerate(segment.packs):
            if name not in gone and name not in number_of:
                numbers[position] = number_of[name] = len(number_of)
        rows = segment.places()
        kept = np.flatnonzero(numbers[rows[:, 0]] >= 0) if len(rows) else np.empty(0, np.int64)
        chosen = rows[kept].copy()
        chosen[:, 0] = numbers[rows[kept, 0]]
        ids.append(segment.ids()[kept])
        places.append(chosen)
    if not number_of:
        return None
    all_ids, all_places = np.concatenate(ids), np.concatenate(places)
    order = np.argsort(all_ids, kind="stable")
    table = [
        _PACK.pack(bytes.fromhex(digest), PackKind[kind.upper()])
        for _, kind, _, digest in (name.split("/") for name in number_of)
    ]
    return _write(store, keys, table, len(order), all_ids[order].tobytes(), all_places[order].tobytes())


def _write(store: Store, keys: KeyRing, packs: Sequence[bytes], count: int, ids: bytes, places: bytes) -> str:
    data = b"".join((_HEADER.pack(_MAGIC, len(packs), count, keys.family), *packs, ids, places))
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
