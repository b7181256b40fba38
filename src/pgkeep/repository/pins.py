"""Pins: backups that must stay, why, and until when.

A sealed object ``clusters/<system identifier>/pins/<backup id>/<UTC time>-<random>``; its plain text is the MessagePack of `Pin`.
It is never changed: a pin is lengthened by another one, and taken back by deleting it, which takes the right to delete.
"""

from __future__ import annotations

import getpass
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import msgspec

from pgkeep.errors import DamageError, NotFoundError
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.manifests import BackupName
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed
from pgkeep.repository.store import ObjectMissing, Store
from pgkeep.units import utc_now

__all__ = ["Pin", "Pins", "StoredPin"]


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Times in UTC; ``until`` None: for ever. ``by`` is the account and the host that pinned it."""

    backup: str
    reason: str
    pinned: datetime
    until: datetime | None
    by: str

    def holds(self, now: datetime) -> bool:
        """Whether it has not ended."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class StoredPin:
    """A pin and the object that holds it. A pin that cannot be read holds for ever: nobody knows until when."""

    name: str
    pin: Pin


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Pin)


class Pins:
    """The pins of a repository."""

    def __init__(self, store: Store, keys: KeyRing) -> None:
        self._store = store
        self._keys = keys

    def all(self, system_identifier: int) -> Iterator[StoredPin]:
        """Those of one cluster, ended ones too, by backup and time. Raises StoreError."""
        for info in self._store.list(f"clusters/{system_identifier}/pins/"):
            try:
                yield StoredPin(info.name, self._read(info.name))
            except ObjectMissing:
                continue
            except DamageError as error:
                backup = info.name.split("/")[3]
                yield StoredPin(
                    info.name,
                    Pin(backup=backup, reason=f"({error})", pinned=info.modified, until=None, by="unknown"),
                )

    def in_force(self, now: datetime, clusters: Iterable[int] | None = None) -> dict[str, list[Pin]]:
        """Those that hold now, by backup; of all clusters, or of these."""
        found: dict[str, list[Pin]] = {}
        for cluster in self._clusters() if clusters is None else clusters:
            for stored in self.all(cluster):
                if stored.pin.holds(now):
                    found.setdefault(stored.pin.backup, []).append(stored.pin)
        return found

    def add(self, backup: BackupName, reason: str, until: datetime | None) -> Pin:
        """Pin a backup. Raises NotFoundError where it is gone, StoreError."""
        now = utc_now()
        pin = Pin(backup=backup.id, reason=reason, pinned=now, until=until, by=_who())
        name = f"{self._folder(backup)}{now:%Y%m%dT%H%M%S}Z-{secrets.token_hex(4)}"
        write_sealed(self._store, self._keys, name, ObjectType.PIN, _encoder.encode(pin))
        try:
            self._store.info(backup.object_name)
        except ObjectMissing:
            self._store.delete(name)
            raise NotFoundError(
                f"backup {backup.id} has just been removed", hint="pgkeep list shows what is there"
            ) from None
        return pin

    def remove(self, backup: BackupName) -> int:
        """Take a backup's pins back, ended ones too; returns how many there were."""
        names = [info.name for info in self._store.list(self._folder(backup))]
        for name in names:
            self._store.delete(name)
        return len(names)

    def _read(self, name: str) -> Pin:
        data = read_sealed(self._store, self._keys, name, ObjectType.PIN)
        try:
            return _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise DamageError(f"{name} cannot be read: {error}", object_name=name) from None

    def _clusters(self) -> Iterator[int]:
        return (int(cluster) for cluster in self._store.folders("clusters/"))

    @staticmethod
    def _folder(backup: BackupName) -> str:
        return f"clusters/{backup.system_identifier}/pins/{backup.id}/"


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        # an account without a name, in a container
        return socket.gethostname()
