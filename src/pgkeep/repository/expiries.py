"""What an expiry is about to remove, written before it does: the WAL of these backups stays for a while, for who reads them.

A sealed object ``clusters/<system identifier>/expiries/<UTC time>-<random>``; its plain text is the MessagePack of `Expiry`. It goes
with the last of that WAL.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime

import msgspec

from pgkeep.errors import DamageError
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed
from pgkeep.repository.store import ObjectMissing, Store

__all__ = ["ExpiredBackup", "Expiries", "Expiry"]


class ExpiredBackup(msgspec.Struct, frozen=True):
    """A backup, and the WAL that restores of it need: from start to stop, ``continuous`` all from start on."""

    id: str
    timeline: int
    start_lsn: int
    stop_lsn: int
    continuous: bool


class Expiry(msgspec.Struct, frozen=True):
    """``time`` in UTC."""

    time: datetime
    backups: list[ExpiredBackup]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Expiry)


class Expiries:
    """The expiries of one cluster whose WAL may still be there."""

    def __init__(self, store: Store, keys: KeyRing, system_identifier: int) -> None:
        self._store = store
        self._keys = keys
        self._prefix = f"clusters/{system_identifier}/expiries/"

    def all(self) -> Iterator[tuple[str, datetime, Expiry | None]]:
        """Name, time by the store's clock, and content, None where it cannot be read. Raises StoreError."""
        for info in self._store.list(self._prefix):
            try:
                yield info.name, info.modified, self._read(info.name)
            except ObjectMissing:
                continue

    def write(self, time: datetime, backups: Sequence[ExpiredBackup]) -> str:
        """Create a record; returns its object's name. Raises StoreError."""
        name = f"{self._prefix}{time:%Y%m%dT%H%M%S}Z-{secrets.token_hex(4)}"
        write_sealed(self._store, self._keys, name, ObjectType.EXPIRY, _encoder.encode(Expiry(time, list(backups))))
        return name

    def _read(self, name: str) -> Expiry | None:
        try:
            return _decoder.decode(read_sealed(self._store, self._keys, name, ObjectType.EXPIRY))
        except (DamageError, msgspec.MsgspecError):
            return None
