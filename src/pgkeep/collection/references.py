"""What listings and page maps lead to: read from the repository once, many at a time, and remembered where the collector runs.

A listing or a map never changes under its id, so that what was read of it stays true; a run costs the requests for what is new.
The memory is an SQLite file on the collector's machine: nobody who can only add to the repository writes it. It holds ids, which are
keyed hashes and tell a stranger nothing, each row with a check sum. Without it, or where it is damaged, everything is read again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pgkeep.repository import Repository
from pgkeep.repository.content_reader import spans
from pgkeep.repository.crypto import ID_SIZE
from pgkeep.repository.maps import decode_listing
from pgkeep.repository.packs import PackEntry
from pgkeep.repository.page_map import decode_map

__all__ = ["Leads", "ReferenceMemory", "References"]

_AT_ONCE = 2048
"""Listings or maps that are looked up together."""

_READS_AT_ONCE = 8

Ids = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class Leads:
    """The ids of the maps and of the contents that a listing or a map names, each in one piece, 32 bytes an id."""

    maps: bytes = b""
    contents: bytes = b""

    def map_ids(self) -> list[bytes]:
        """The maps, one by one."""
        return [self.maps[start : start + ID_SIZE] for start in range(0, len(self.maps), ID_SIZE)]

    def content_ids(self) -> Ids:
        """The contents, as ``S32``."""
        return np.frombuffer(self.contents, f"S{ID_SIZE}")


class ReferenceMemory(AbstractContextManager["ReferenceMemory"]):
    """What earlier runs have read; use as a context manager. A file that cannot be used is as good as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> ReferenceMemory:
        with suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open()
        return self

    def _open(self) -> None:
        for attempt in range(2):
            self._connection = sqlite3.connect(self._path)
            try:
                self._connection.execute("PRAGMA synchronous = OFF")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS leads (id BLOB PRIMARY KEY, maps BLOB, contents BLOB, checked BLOB)"
                    " WITHOUT ROWID"
                )
            except sqlite3.DatabaseError:
                self._connection.close()
                self._connection = None
                if attempt:
                    raise
                self._path.unlink(missing_ok=True)
            else:
                return

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.commit()
            self._connection.close()

    def get(self, content_id: bytes) -> Leads | None:
        """What is remembered of a listing or a map."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(
                "SELECT maps, contents, checked FROM leads WHERE id = ?", [content_id]
            ).fetchone()
        except sqlite3.Error:
            return None
        if row is None or not all(isinstance(each, bytes) for each in row):
            return None
        leads = Leads(row[0], row[1])
        return leads if _check_of(content_id, leads) == row[2] else None

    def put(self, content_id: bytes, leads: Leads) -> None:
        """Remember; a disk that is full forgets."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute(
                    "INSERT OR REPLACE INTO leads VALUES (?, ?, ?, ?)",
                    [content_id, leads.maps, leads.contents, _check_of(content_id, leads)],
                )

    def keep(self, there: Collection[bytes]) -> None:
        """Forget all but these."""
        if self._connection is None:
            return
        with suppress(sqlite3.Error):
            ((rows,),) = self._connection.execute("SELECT count(*) FROM leads")
            if rows > len(there):
                self._connection.execute("CREATE TEMP TABLE there (id BLOB PRIMARY KEY) WITHOUT ROWID")
                self._connection.executemany("INSERT INTO there VALUES (?)", ([each] for each in there))
                self._connection.execute("DELETE FROM leads WHERE id NOT IN (SELECT id FROM there)")
                self._connection.execute("DROP TABLE there")


def _check_of(content_id: bytes, leads: Leads) -> bytes:
    head = content_id + len(leads.maps).to_bytes(8, "little")
    return hashlib.sha256(head + leads.maps + leads.contents).digest()


class References:
    """Reads listings and maps of a repository, or remembers them."""

    def __init__(self, repository: Repository, memory: ReferenceMemory | None = None) -> None:
        self._repository = repository
        self._reader = repository.reader()
        self._memory = memory
        self.read = 0
        """Listings and maps that were read from the repository."""

    def of_listings(self, ids: Sequence[bytes]) -> Iterator[Leads]:
        """What these listings lead to, in any order. Raises DamageError, StoreError."""
        return self._of(ids, _leads_of_listing)

    def of_maps(self, ids: Sequence[bytes]) -> Iterator[Leads]:
        """What these page maps lead to, in any order. Raises DamageError, StoreError."""
        return self._of(ids, lambda encoded: Leads(contents=_contents_of([encoded])))

    def forget_others(self, there: Collection[bytes]) -> None:
        """Remember these listings and maps alone."""
        if self._memory is not None:
            self._memory.keep(there)

    def _of(self, ids: Sequence[bytes], decode: Callable[[bytes], Leads]) -> Iterator[Leads]:
        remaining = iter(ids)
        while some := list(islice(remaining, _AT_ONCE)):
            new = []
            for content_id in some:
                leads = None if self._memory is None else self._memory.get(content_id)
                if leads is None:
                    new.append(content_id)
                else:
                    yield leads
            for content_id, encoded in self._read(new):
                leads = decode(encoded)
                if self._memory is not None:
                    self._memory.put(content_id, leads)
                yield leads

    def _read(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        places = self._repository.index.find_all(ids)
        for content_id in ids:
            if content_id not in places:
                places[content_id] = self._reader.locate(content_id)

        def fetch(span: tuple[str, list[PackEntry]]) -> list[tuple[bytes, bytes]]:
            return [(entry.id, plain) for entry, plain in self._reader.read(*span)]

        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="references") as executor:
            for found in executor.map(fetch, spans(list(places.values()))):
                self.read += len(found)
                yield from found


def _leads_of_listing(encoded: bytes) -> Leads:
    maps, extents = list[bytes](), list[bytes]()
    for entry in decode_listing(encoded):
        if entry.map_id is not None:
            maps.append(entry.map_id)
        elif entry.extents:
            extents.append(entry.extents)
    return Leads(b"".join(maps), _contents_of(extents))


def _contents_of(encoded: Sequence[bytes]) -> bytes:
    """Each id once."""
    ids = [decode_map(each)["id"].view(f"S{ID_SIZE}") for each in encoded]
    return np.unique(np.concatenate(ids)).tobytes() if ids else b""
