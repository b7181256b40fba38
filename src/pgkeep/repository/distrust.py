"""Packs that were found damaged: nothing new rests on them, so that what they held is stored anew where it is met again.

Plain records ``distrust/<UTC time>-<random>`` with ``damaged`` and ``whole``, names of packs, so that a scrub without a key can write
them. Read in order of names; the last word on a pack counts.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from datetime import datetime

from pgkeep.errors import DamageError
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import ObjectMissing, Store
from pgkeep.units import utc_now

__all__ = ["forget_distrusted", "note_distrusted", "read_distrusted"]

_FOLDER = "distrust/"


def read_distrusted(store: Store) -> dict[str, datetime]:
    """The packs that are distrusted now, each with the time when it was found damaged (UTC). Raises StoreError."""
    return _read(store)[1]


def note_distrusted(store: Store, *, damaged: Collection[str] = (), whole: Collection[str] = ()) -> None:
    """Write down what was found, where it is news. Raises StoreError."""
    known = _read(store)[1].keys()
    found = {"damaged": sorted(set(damaged) - known), "whole": sorted(set(whole) & known - set(damaged))}
    if any(found.values()):
        write_record(store, _name(utc_now()), found)


def forget_distrusted(store: Store, gone: Collection[str]) -> None:
    """Remove the records that name nothing but packs that are whole again or ``gone``. Raises StoreError."""
    names, known = _read(store)
    if names and not known.keys() - set(gone):
        for name in names:
            store.delete(name)


def _read(store: Store) -> tuple[list[str], dict[str, datetime]]:
    """The names of the records, and the packs that they leave damaged."""
    names, packs = list[str](), dict[str, datetime]()
    for info in sorted(store.list(_FOLDER), key=lambda info: info.name):
        names.append(info.name)
        try:
            fields = read_record(store, info.name)
        except (ObjectMissing, DamageError):
            # what it said is found again by the next verification
            continue
        for whole in _texts(fields.get("whole")):
            packs.pop(whole, None)
        packs.update(dict.fromkeys(_texts(fields.get("damaged")), info.modified))
    return names, packs


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _name(time: datetime) -> str:
    return f"{_FOLDER}{time:%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(4)}"
