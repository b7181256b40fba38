"""Writing and reading contents: deduplicated, compressed, sealed, packed.

A `ContentWriter` turns plain bytes into contents of packs, many threads at a time, and makes them durable: packs first,
then their index, so that an index never names what is not there. A `ContentReader` brings contents back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

from pgkeep.errors import DamageError, PgkeepError
from pgkeep.repository.codec import FRAME_SIZE, Codec, compress
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.index import Index, Location, write_index
from pgkeep.repository.packs import (
    MAX_CONTENT_SIZE,
    PackBuilder,
    PackEntry,
    PackKind,
    PackReader,
    read_block_sums,
    read_pack_table,
)
from pgkeep.repository.parameters import Parameters
from pgkeep.repository.store import ObjectMissing, Store

__all__ = [
    "ContentReader",
    "ContentWriter",
    "IsWanted",
    "Location",
    "Parameters",
    "StoredContent",
    "adopt_orphans",
    "read_tables",
    "spans",
]

_INDEX_ENTRIES = 250_000
"""Entries after which an index object is written: some 50 MB of Python objects, 250 GB of cells of 1 MiB."""

_PACKS_WAITING = 1
"""Full packs that may wait beside those on their way to the store: they are the largest part of a backup's memory."""

_TABLES_AT_ONCE = 1000

_GAP = 64 << 10
_SPAN = 4 << 20
"""A read passes over gaps up to `_GAP` and fetches up to `_SPAN` bytes at once."""


IsWanted = Callable[[bytes, int, int], bool]
"""Asked for a content's id, a first byte and an end: whether what lies between is needed."""


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A content that the repository holds: its id, and the bytes it takes; ``new`` where this writer added it."""

    id: bytes
    stored_size: int
    new: bool


class ContentWriter:
    """Adds contents; `put` may be called from any thread. Use as a context manager.

    Leaving it without an error makes everything durable. Leaving it with one keeps the packs that are complete, and
    their index, so that a next run finds them.
    """

    def __init__(self, store: Store, keys: KeyRing, index: Index, parameters: Parameters) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._parameters = parameters
        self._lock = threading.Lock()
        self._seen: dict[bytes, int] = {}
        self._builders: dict[PackKind, PackBuilder] = {}
        self._finished: list[tuple[str, list[PackEntry]]] = []
        self._in_flight: list[Future[None]] = []
        self._failure: BaseException | None = None
        self._room = threading.BoundedSemaphore(store.parallel_puts + _PACKS_WAITING)
        self._executor = ThreadPoolExecutor(store.parallel_puts, thread_name_prefix="pack-writer")
        self._index_lock = threading.Lock()
        self.new_bytes = 0
        """Bytes of the packs that this writer has made durable."""

    def __enter__(self) -> ContentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.flush()
            else:
                self._keep_what_is_complete()
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def put(self, kind: PackKind, plain: bytes | bytearray | memoryview) -> StoredContent:
        """Store a content unless the repository has it. Raises StoreError, also for an earlier pack."""
        assert len(plain) <= MAX_CONTENT_SIZE
        content_id = self._keys.content_id(plain)
        known = self._known_or_claimed(content_id)
        if known is not None:
            return StoredContent(content_id, known, new=False)
        frame_size = FRAME_SIZE if kind is PackKind.DATA else None
        compressed, codec = compress(plain, self._parameters.compression_level, frame_size), Codec.ZSTD
        if len(compressed) >= len(plain):
            compressed, codec = bytes(plain), Codec.RAW
        return self._add(kind, content_id, compressed, plain, codec)

    def put_compressed(
        self, kind: PackKind, content_id: bytes, compressed: bytes, plain: bytes, codec: Codec
    ) -> StoredContent:
        """`put` a content that is compressed already, whose id `content_id` has said."""
        known = self._known_or_claimed(content_id)
        if known is not None:
            return StoredContent(content_id, known, new=False)
        return self._add(kind, content_id, compressed, plain, codec)

    def _known_or_claimed(self, content_id: bytes) -> int | None:
        """What a content takes that is there; None where it is the caller's to store now."""
        with self._lock:
            known = self._seen.get(content_id)
            if known is None:
                location = self._index.find(content_id)
                if location is None:
                    # claimed before it is compressed, so that a twin in another thread is not stored too
                    self._seen[content_id] = 0
                else:
                    known = location.entry.stored_size
        return known

    def _add(
        self,
        kind: PackKind,
        content_id: bytes,
        compressed: bytes,
        plain: bytes | bytearray | memoryview,
        codec: Codec,
    ) -> StoredContent:
        sums = self._keys.block_sums.of(plain).tobytes() if kind is PackKind.DATA else None
        full = None
        with self._lock:
            builder = self._builders.get(kind)
            if builder is None:
                builder = self._builders[kind] = PackBuilder(self._keys, kind)
            entry = builder.add(content_id, compressed, len(plain), codec, sums)
            self._seen[content_id] = entry.stored_size
            if builder.size >= self._parameters.pack_size:
                full = self._builders.pop(kind)
        if full is not None:
            self._send(full)
        return StoredContent(content_id, entry.stored_size, new=True)

    def content_id(self, plain: bytes | bytearray | memoryview) -> bytes:
        """The id that a content has, stored or not."""
        return self._keys.content_id(plain)

    @property
    def boxes(self) -> bool:
        """Whether the repository is in sealed mode: no byte of data may stand in metadata."""
        return self._keys.boxes

    def flush(self) -> None:
        """Return when every content given so far is durable and in the index. No `put` may run meanwhile."""
        for builder in list(self._builders.values()):
            self._send(builder)
        self._builders.clear()
        self._wait()
        self._write_index()

    def _send(self, builder: PackBuilder) -> None:
        self._room.acquire()
        if self._failure is not None:
            self._room.release()
            raise self._failure
        with self._lock:
            self._in_flight = [future for future in self._in_flight if not future.done()]
            self._in_flight.append(self._executor.submit(self._store_pack, builder))

    def _store_pack(self, builder: PackBuilder) -> None:
        try:
            name, parts = builder.finish()
            size = sum(len(part) for part in parts)
            self._store.put(name, parts)
            with self._lock:
                self._finished.append((name, builder.entries))
                self.new_bytes += size
                due = sum(len(entries) for _, entries in self._finished) >= _INDEX_ENTRIES
            if due:
                self._write_index()
        except BaseException as error:  # noqa: BLE001 - raised by whoever sends or waits next
            self._failure = self._failure or error
        finally:
            self._room.release()

    def _wait(self) -> None:
        with self._lock:
            waiting, self._in_flight = self._in_flight, []
        for future in waiting:
            future.result()
        if self._failure is not None:
            raise self._failure

    def _write_index(self) -> None:
        # one at a time: what a second one took would be what the first one is writing
        with self._index_lock:
            with self._lock:
                finished = list(self._finished)
            if not finished:
                return
            self._index.adopt(write_index(self._store, self._keys, finished))
            with self._lock:
                del self._finished[: len(finished)]
                for _, entries in finished:
                    for entry in entries:
                        self._seen.pop(entry.id, None)

    def _keep_what_is_complete(self) -> None:
        """After an error: the packs that reached the store stay useful; one that is broken is asked for the index only.

        What the store says now is passed over: the error that came first tells more.
        """
        with self._lock:
            builders, self._builders = list(self._builders.values()), {}
        with contextlib.suppress(PgkeepError):
            for builder in builders:
                self._send(builder)
        with contextlib.suppress(PgkeepError):
            self._wait()
        with contextlib.suppress(PgkeepError):
            self._write_index()


class ContentReader:
    """Reads contents by id; safe for threads."""

    def __init__(self, store: Store, keys: KeyRing, index: Index) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._packs: dict[str, PackReader] = {}

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

    def read(self, pack: str, entries: Sequence[PackEntry]) -> Iterator[tuple[PackEntry, bytes]]:
        """The plain bytes of contents of one pack, given in order of offset, by one range read."""
        reader, sealed = self._fetch(pack, entries)
        for entry in entries:
            yield entry, reader.open(entry, sealed(entry))

    def read_both(self, pack: str, entries: Sequence[PackEntry]) -> Iterator[tuple[PackEntry, bytes, bytes]]:
        """`read`, with the compressed bytes before the plain ones."""
        reader, sealed = self._fetch(pack, entries)
        for entry in entries:
            yield entry, *reader.open_both(entry, sealed(entry))

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
        reader, sealed = self._fetch(pack, entries)
        for entry in entries:
            place = room(entry.plain_size)
            reader.open_into(place, entry, sealed(entry), None if is_wanted is None else partial(is_wanted, entry.id))
            yield entry, place

    def _fetch(self, pack: str, entries: Sequence[PackEntry]) -> tuple[PackReader, Callable[[PackEntry], memoryview]]:
        first, last = entries[0], entries[-1]
        try:
            data = memoryview(self._store.get(pack, first.offset, last.offset + last.stored_size - first.offset))
            reader = self._pack(pack)
        except ObjectMissing:
            raise DamageError(f"{pack} is gone", object_name=pack) from None

        def sealed(entry: PackEntry) -> memoryview:
            start = entry.offset - first.offset
            return data[start : start + entry.stored_size]

        return reader, sealed

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


def adopt_orphans(store: Store, keys: KeyRing, index: Index) -> int:
    """Bring packs that no index covers (their writer was killed) into the index; returns how many there were."""
    index.refresh()
    known = index.known_packs()
    orphans = [info.name for info in store.list("packs/") if info.name not in known]
    tables, damaged = read_tables(store, keys, orphans)
    if damaged:
        # says what is wrong with it
        read_pack_table(store, keys, damaged[0])
    if tables:
        index.adopt(write_index(store, keys, tables))
    return len(tables)


def read_tables(
    store: Store, keys: KeyRing, packs: Iterable[str]
) -> tuple[list[tuple[str, list[PackEntry]]], list[str]]:
    """What packs say of themselves, in their order, and the names of those that are damaged. Raises StoreError."""

    def read(name: str) -> tuple[str, list[PackEntry] | None]:
        try:
            return name, read_pack_table(store, keys, name)
        except DamageError:
            return name, None

    tables, damaged = list[tuple[str, list[PackEntry]]](), list[str]()
    # each takes four questions: over a network they are asked side by side
    with ThreadPoolExecutor(4 * store.parallel_puts, thread_name_prefix="pack-reader") as executor:
        for batch in _batches(packs, _TABLES_AT_ONCE):
            for name, table in executor.map(read, batch):
                if table is None:
                    damaged.append(name)
                else:
                    tables.append((name, table))
    return tables, damaged


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(names)
    while batch := list(islice(iterator, size)):
        yield batch
