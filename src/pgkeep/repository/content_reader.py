"""Reading contents: found in the index, fetched in ranges, opened and checked.

A content that is damaged or gone where the index finds it is read in another pack, where there is one that has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from pgkeep.errors import DamageError
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.index import Index, Location
from pgkeep.repository.packs import PackEntry, PackReader, read_block_sums
from pgkeep.repository.store import Buffer, ObjectMissing, Store

__all__ = ["ContentReader", "IsWanted", "spans"]

_GAP = 64 << 10
_SPAN = 4 << 20
"""A read passes over gaps up to `_GAP` and fetches up to `_SPAN` bytes at once."""


T = TypeVar("T")

IsWanted = Callable[[bytes, int, int], bool]
"""Asked for a content's id, a first byte and an end: whether what lies between is needed."""


class ContentReader:
    """Reads contents by id; safe for threads."""

    def __init__(self, store: Store, keys: KeyRing, index: Index) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._packs: dict[str, PackReader] = {}
        self._left: set[str] = set()

    def locate(self, content_id: bytes) -> Location:
        """Where a content is stored. Raises DamageError where no index names it."""
        location = self._index.find(content_id)
        if location is None:
            raise DamageError(
                f"content {content_id.hex()[:16]} is in no index",
                hint="if an index object was lost, this brings it back: pgkeep repository reindex",
            )
        return location

    def get(self, content_id: bytes) -> bytes:
        """A content's plain bytes. Raises DamageError naming the pack."""
        location = self.locate(content_id)
        return next(plain for _, plain in self.read(location.pack, [location.entry]))

    def read(
        self, pack: str, entries: Sequence[PackEntry], *, elsewhere: bool = True
    ) -> Iterator[tuple[PackEntry, bytes]]:
        """The plain bytes of contents of one pack, given in order of offset, by one range read.

        One that is damaged, or gone, is read in another pack that has it, unless ``elsewhere`` is false. Raises DamageError naming the
        pack where there is none.
        """
        for entry, (_, plain) in self._read(pack, entries, PackReader.open_both, elsewhere=elsewhere):
            yield entry, plain

    def read_both(self, pack: str, entries: Sequence[PackEntry]) -> Iterator[tuple[PackEntry, bytes, bytes]]:
        """`read`, with the compressed bytes before the plain ones."""
        for entry, both in self._read(pack, entries, PackReader.open_both):
            yield entry, *both

    def read_into(
        self,
        room: Callable[[int], memoryview],
        pack: str,
        entries: Sequence[PackEntry],
        is_wanted: IsWanted | None = None,
    ) -> Iterator[tuple[PackEntry, memoryview]]:
        """`read`, each content into a room that is asked for with its size.

        With ``is_wanted``, asked for a content's id, a first byte and an end, there is anything where a content is not wanted.
        """

        def open_into(reader: PackReader, place: PackEntry, sealed: Buffer) -> memoryview:
            plain = room(place.plain_size)
            reader.open_into(plain, place, sealed, None if is_wanted is None else partial(is_wanted, place.id))
            return plain

        yield from self._read(pack, entries, open_into)

    def _read(
        self,
        pack: str,
        entries: Sequence[PackEntry],
        open_content: Callable[[PackReader, PackEntry, Buffer], T],
        *,
        elsewhere: bool = True,
    ) -> Iterator[tuple[PackEntry, T]]:
        """Each content with what came of opening it."""
        first, last = entries[0], entries[-1]
        failure: DamageError | None = None
        try:
            data = memoryview(self._store.get(pack, first.offset, last.offset + last.stored_size - first.offset))
            reader = self._pack(pack)
        except ObjectMissing:
            failure = DamageError(f"{pack} is gone", object_name=pack)
        except DamageError as error:
            failure = error
        for entry in entries:
            try:
                if failure is not None:
                    raise failure
                start = entry.offset - first.offset
                opened = open_content(reader, entry, data[start : start + entry.stored_size])
            except DamageError as error:
                if not elsewhere:
                    raise
                opened = self._read_elsewhere(pack, entry, open_content, error)
            yield entry, opened

    def _read_elsewhere(
        self,
        pack: str,
        entry: PackEntry,
        open_content: Callable[[PackReader, PackEntry, Buffer], T],
        error: DamageError,
    ) -> T:
        """A content that a collector has stored anew since the index was read, or that another writer has stored, too."""
        if pack not in self._left:
            self._left.add(pack)
            self._index.refresh()
        tried = {pack}
        while (location := self._index.find(entry.id, besides=tried)) is not None:
            tried.add(location.pack)
            place = location.entry
            with contextlib.suppress(ObjectMissing, DamageError):
                data = self._store.get(location.pack, place.offset, place.stored_size)
                return open_content(self._pack(location.pack), place, data)
        raise error

    def block_sums(self, pack: str) -> dict[int, bytes]:
        """The sums of the blocks of each content of a pack, by its offset; see `pgkeep.repository.packs.read_block_sums`."""
        try:
            return read_block_sums(self._store, self._keys, pack)
        except ObjectMissing:
            raise DamageError(f"{pack} is gone", object_name=pack) from None

    def _pack(self, name: str) -> PackReader:
        reader = self._packs.get(name)
        if reader is None:
            reader = self._packs[name] = PackReader.of(self._store, self._keys, name)
        return reader


def spans(locations: Sequence[Location]) -> Iterator[tuple[str, list[PackEntry]]]:
    """Group locations into range reads: same pack, small gaps, bounded size, each content once."""
    pack, entries = "", list[PackEntry]()
    for location in sorted(locations, key=lambda place: (place.pack, place.entry.offset)):
        entry = location.entry
        if entries and entries[-1].offset == entry.offset and location.pack == pack:
            continue
        end = entries[-1].offset + entries[-1].stored_size if entries else 0
        fits = entries and entry.offset - end <= _GAP and entry.offset + entry.stored_size - entries[0].offset <= _SPAN
        if entries and not (location.pack == pack and fits):
            yield pack, entries
            entries = []
        pack = location.pack
        entries.append(entry)
    if entries:
        yield pack, entries
