"""Tombstones: packs that a collector is going to delete, so that nobody lets anything new rest on them.

Plain records, each of which only its name's owner and time tell apart, so that whoever may only add can take part:

* ``doomed/<UTC time>-<random>``: ``packs``, the names of packs that no backup needed when a collector looked.
* the same with ``.writers``: ``leases``, the ids of the leases that were alive after the tombstone was there. Without it nothing is deleted.
* the same with ``.spared``: a writer that began before the tombstone has made a backup; nothing of it is deleted any more.
* the same with ``.deleting``: a collector is at it. Whoever spares it now comes too late.

Why that is safe stands in docs/explanation/collection.md.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.errors import BusyError, DamageError
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import ObjectExists, ObjectMissing, Store
from pgkeep.units import utc_now

__all__ = ["DoomWatch", "Tombstone", "read_tombstones", "spare", "write_tombstone"]

_WRITERS, _SPARED, _DELETING = ".writers", ".spared", ".deleting"


@dataclass(frozen=True)
class Tombstone:
    """``time`` is when it was written, by the store's clock; ``leases`` None where it is not known who wrote then."""

    name: str
    time: datetime
    packs: frozenset[str] = frozenset()
    leases: frozenset[str] | None = None
    spared: bool = False
    deleting: bool = False
    records: Sequence[str] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether its packs still are to go."""
        return not self.spared


def read_tombstones(store: Store) -> list[Tombstone]:
    """All of them, oldest first; by one listing where there is none. Raises StoreError. Damaged ones are as if spared."""
    infos = {info.name: info for info in store.list("doomed/")}
    tombstones = []
    for name in sorted(name for name in infos if "." not in name):
        packs, damaged = _read(store, name, "packs")
        leases, unknown = _read(store, name + _WRITERS, "leases") if name + _WRITERS in infos else ([], True)
        tombstones.append(
            Tombstone(
                name,
                infos[name].modified,
                frozenset(packs),
                None if unknown else frozenset(leases),
                spared=damaged or name + _SPARED in infos,
                deleting=name + _DELETING in infos,
                # the tombstone itself goes last
                records=[other for other in sorted(infos, reverse=True) if other.partition(".")[0] == name],
            )
        )
    return tombstones


def _read(store: Store, name: str, field_name: str) -> tuple[list[str], bool]:
    """A list of texts, and whether it cannot be read."""
    try:
        found = read_record(store, name).get(field_name)
    except (ObjectMissing, DamageError):
        return [], True
    return ([str(each) for each in found], False) if isinstance(found, list) else ([], True)


def write_tombstone(store: Store, packs: Iterable[str]) -> str:
    """Doom packs; returns the record's name. Raises StoreError."""
    name = f"doomed/{utc_now():%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(4)}"
    write_record(store, name, {"packs": sorted(packs)})
    return name


def write_writers(store: Store, name: str, leases: Iterable[str]) -> None:
    """Say who was at work once a tombstone was there. Raises StoreError."""
    write_record(store, name + _WRITERS, {"leases": sorted(leases)})


def write_deleting(store: Store, tombstone: Tombstone) -> None:
    """Say that a collector is at it. Raises StoreError."""
    with contextlib.suppress(ObjectExists):
        write_record(store, tombstone.name + _DELETING, {})


def spare(store: Store, name: str) -> None:
    """Take a tombstone's effect away. Raises StoreError."""
    with contextlib.suppress(ObjectExists):
        write_record(store, name + _SPARED, {})


class DoomWatch:
    """What a writer knew to be doomed when it began, under its lease; asked before anything that it made is listed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        tombstones = read_tombstones(store)
        self._known = {tombstone.name for tombstone in tombstones}
        self.packs: frozenset[str] = frozenset().union(
            *(tombstone.packs for tombstone in tombstones if tombstone.holds)
        )
        """Nothing new may rest on these."""

    def spare_later_ones(self) -> None:
        """Spare what was doomed since: the writer may rest on it. Raises StoreError."""
        for tombstone in read_tombstones(self._store):
            if tombstone.name not in self._known and tombstone.holds:
                spare(self._store, tombstone.name)

    def claim(self, pack: str) -> None:
        """Take a doomed pack in use again, before anything rests on it. Raises BusyError where it is being deleted, StoreError."""
        if pack not in self.packs:
            return
        for tombstone in read_tombstones(self._store):
            if pack in tombstone.packs:
                spare(self._store, tombstone.name)
        if any(pack in tombstone.packs and tombstone.deleting for tombstone in read_tombstones(self._store)):
            raise BusyError(
                f"a collection is deleting {pack}, which is needed again",
                hint="run it once more when pgkeep collect has ended",
            )
