"""What was moved to another storage class: records that a reader with any credentials finds, and that spare him to ask for each object.

A plain record ``cold/<UTC time>-<random>``: ``class``, ``packs`` (the hex digests that name data packs), ``wal`` (for ``<system
identifier>/<timeline>`` the name of the last segment that was moved; those before it may be). It is written before the first of its
objects is moved, so that it may name more than was; the store itself knows what is so. Once all are, a record with ``done`` takes its
place. Where there is no record, nothing is cold.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pgkeep.errors import DamageError
from pgkeep.repository.packs import PackKind, pack_name
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.storage_classes import ARCHIVES
from pgkeep.repository.store import ObjectMissing, Store
from pgkeep.units import utc_now

__all__ = ["Cold", "read_cold", "write_cold"]


@dataclass
class Cold:
    """``packs``: names of packs and the class that each was moved to. ``wal``: see above; ``wal_done``: all before it are moved that can be.

    ``records`` are the objects that say so.
    """

    packs: dict[str, str] = field(default_factory=dict)
    wal: dict[str, str] = field(default_factory=dict)
    wal_done: dict[str, str] = field(default_factory=dict)
    records: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.records)

    @property
    def archived(self) -> set[str]:
        """The packs that take a thaw before they can be read."""
        return {name for name, storage_class in self.packs.items() if storage_class in ARCHIVES}


def read_cold(store: Store) -> Cold:
    """All that the records say, by one listing where there are none. Raises StoreError; a damaged record is passed over."""
    cold = Cold()
    for info in store.list("cold/"):
        try:
            fields = read_record(store, info.name)
        except (ObjectMissing, DamageError):
            continue
        packs, wal, storage_class = fields.get("packs"), fields.get("wal"), fields.get("class")
        if not isinstance(packs, list) or not isinstance(wal, dict):
            continue
        cold.records.append(info.name)
        for pack in (pack_name(PackKind.DATA, str(digest)) for digest in packs):
            if cold.packs.get(pack) not in ARCHIVES:
                cold.packs[pack] = str(storage_class)
        for place, name in wal.items():
            cold.wal[place] = max(str(name), cold.wal.get(place, ""))
            if fields.get("done"):
                cold.wal_done[place] = max(str(name), cold.wal_done.get(place, ""))
    return cold


def write_cold(
    store: Store, storage_class: str, packs: Sequence[str], wal: Mapping[str, str], *, done: bool = False
) -> str:
    """Create a record; returns its name. ``packs`` are names of packs. Raises StoreError."""
    name = f"cold/{utc_now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    digests = sorted(pack.rpartition("/")[2] for pack in packs)
    write_record(store, name, {"class": storage_class, "packs": digests, "wal": dict(wal), "done": done})
    return name
