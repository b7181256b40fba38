"""Generations of the root key: what is stored from now on is sealed under a new one, and the old ones go on opening the old.

A generation is there once ``keys/root-<number>.json`` is. That record holds the new root key sealed to each slot's public key
(X25519, then AES-256-GCM under a key that is used once), so that the people behind the slots need not be there. For a slot that was
made at the same moment, ``keys/root-<number>-<slot>.json`` holds it. Both are sealed under the generation before and the new
one together: who only has the store cannot slip in a root key of his own, and who has but an old root key cannot follow.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgkeep.errors import DamageError, KeyFailure, StoreError
from pgkeep.repository.crypto import BOXED, Generation, derive_key
from pgkeep.repository.keys.slots import OpenSlot, Slot, decode_generation, encode_generation, seal_of
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import ObjectExists, Store
from pgkeep.units import utc_now

__all__ = [
    "MAX_GENERATION",
    "HeldGenerations",
    "give_to",
    "granted_slots",
    "new_generation",
    "root_object",
    "write_generation",
]

MAX_GENERATION = BOXED - 1
"""The key mode has seven bits for it."""

_LOOK_EVERY = 300.0
"""Seconds after which a writer that runs for months looks for a new generation."""

_ROOT_NAME = re.compile(r"keys/root-(\d{1,3})(?:-([0-9a-f]{8}))?\.json", re.ASCII)


class HeldGenerations:
    """The generations that one opened slot gives; see `pgkeep.repository.crypto.Generations`.

    One that was not there when the repository was opened is looked for when it is met, and by writers every few minutes.
    """

    def __init__(self, store: Store, family: bytes, opened: OpenSlot) -> None:
        self._store = store
        self._family = family
        self._private = opened.private
        self.slot = opened.slot
        self._lock = threading.Lock()
        self._held = list(opened.generations)
        self._newest = len(self._held) - 1
        self._looked = time.monotonic()

    def get(self, number: int) -> Generation:
        """See `Generations.get`. Raises StoreError where it has to look and cannot."""
        with self._lock:
            if number >= len(self._held):
                self._look(self._names())
            if number < len(self._held):
                return self._held[number]
            if number <= self._newest:
                raise self._not_given()
        raise DamageError(f"it names generation {number} of the root key, which the repository does not have")

    def newest(self) -> tuple[int, Generation]:
        """See `Generations.newest`."""
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK_EVERY:
                self._looked = time.monotonic()
                # a store that does not answer now will say so when it is written to
                with contextlib.suppress(StoreError):
                    self._look(self._names())
            if self._newest >= len(self._held):
                raise self._not_given()
            return self._newest, self._held[self._newest]

    def refresh(self, names: Sequence[str] | None = None) -> list[Generation]:
        """Look for new generations now (``names``: all objects below ``keys/``); all of them, from 0.

        Raises KeyFailure where this slot was not given one, DamageError, StoreError.
        """
        with self._lock:
            self._look(self._names() if names is None else names)
            if self._newest >= len(self._held):
                raise self._not_given()
            return list(self._held)

    def look(self, names: Sequence[str]) -> None:
        """`refresh`, for who can do with the generations that there are for this slot."""
        with self._lock:
            self._look(names)

    def _names(self) -> list[str]:
        return [info.name for info in self._store.list("keys/")]

    def _look(self, names: Sequence[str]) -> None:
        records = _root_records(names)
        self._newest = max([len(self._held) - 1, *(number for number, slot in records if slot is None)])
        for number in range(len(self._held), self._newest + 1):
            generation = self._open(number, records)
            if generation is None:
                return
            self._held.append(generation)

    def _open(self, number: int, records: Mapping[tuple[int, str | None], str]) -> Generation | None:
        for key in ((number, None), (number, self.slot.name)):
            name = records.get(key)
            if name is None:
                continue
            fields = read_record(self._store, name)
            grants = fields.get("slots")
            sealed = grants.get(self.slot.name) if isinstance(grants, dict) else None
            if sealed is not None:
                return self._unseal(number, name, fields, sealed)
        return None

    def _unseal(self, number: int, name: str, fields: dict[str, object], sealed: object) -> Generation:
        try:
            data = bytes.fromhex(str(sealed))
            ephemeral, wrapped = data[:32], data[32:]
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
            key = _grant_key(shared, ephemeral, self._private.public_key().public_bytes_raw())
            plain = AESGCM(key).decrypt(bytes(12), wrapped, _associated(self._family, number, self.slot.name))
            generation = decode_generation(plain, self.slot)
            seal = _seal(self._held[-1], generation, self._family, name, fields)
            if not hmac.compare_digest(seal, str(fields.get("seal", ""))):
                raise ValueError
        except (ValueError, InvalidTag):
            raise DamageError(
                f"{name} was not written by someone who holds this repository's keys",
                object_name=name,
                hint="bring the object back from a copy of the repository; nothing is written until then",
            ) from None
        return generation

    def _not_given(self) -> KeyFailure:
        return KeyFailure(
            f"the key slot {self.slot.name} was not given the newest root key",
            hint="open the repository with another key: pgkeep key list shows them all",
        )


def new_generation(*, sealed: bool) -> Generation:
    """Random keys; ``sealed``: with a pair for sealed mode."""
    root = secrets.token_bytes(32)
    if not sealed:
        return Generation(root)
    pair = X25519PrivateKey.generate()
    return Generation(root, pair.public_key().public_bytes_raw(), pair.private_bytes_raw())


def write_generation(
    store: Store, family: bytes, before: Generation, new: Generation, number: int, slots: Iterable[Slot]
) -> None:
    """Make a generation exist, for these slots. Raises ObjectExists where somebody else has made it."""
    fields: dict[str, object] = {
        "generation": number,
        "created": utc_now().isoformat(timespec="seconds"),
        "slots": {slot.name: _grant(family, number, new, slot) for slot in slots},
    }
    _write(store, family, before, new, root_object(number), fields)


def give_to(store: Store, family: bytes, before: Generation, generation: Generation, number: int, slot: Slot) -> None:
    """Give a generation that exists to a slot that was not there when it was made; no error where it has it."""
    fields: dict[str, object] = {
        "generation": number,
        "slots": {slot.name: _grant(family, number, generation, slot)},
    }
    with contextlib.suppress(ObjectExists):
        _write(store, family, before, generation, f"keys/root-{number}-{slot.name}.json", fields)


def granted_slots(store: Store, names: Iterable[str], family: bytes, held: Sequence[Generation]) -> list[set[str]]:
    """For each generation but the first: the slots that it was given to. Raises DamageError for a forged record."""
    granted: list[set[str]] = [set() for _ in held[1:]]
    for (number, _), name in _root_records(names).items():
        if not 0 < number < len(held):
            continue
        fields = read_record(store, name)
        seal = _seal(held[number - 1], held[number], family, name, fields)
        if not hmac.compare_digest(seal, str(fields.get("seal", ""))) or not isinstance(fields.get("slots"), dict):
            raise DamageError(f"{name} was not written by someone who holds this repository's keys", object_name=name)
        grants = fields["slots"]
        assert isinstance(grants, dict)
        granted[number - 1] |= set(grants)
    return granted


def root_object(number: int) -> str:
    """The object that makes a generation exist."""
    return f"keys/root-{number}.json"


def _root_records(names: Iterable[str]) -> dict[tuple[int, str | None], str]:
    """(number, slot or None) -> object."""
    found = ((_ROOT_NAME.fullmatch(name), name) for name in names)
    return {(int(match[1]), match[2]): name for match, name in found if match}


def _write(
    store: Store, family: bytes, before: Generation, new: Generation, name: str, fields: dict[str, object]
) -> None:
    write_record(store, name, {**fields, "seal": _seal(before, new, family, name, fields)})


def _seal(before: Generation, new: Generation, family: bytes, name: str, fields: Mapping[str, object]) -> str:
    unsealed = {field: value for field, value in fields.items() if field != "seal"}
    return seal_of(derive_key(before.root + new.root, family, "root generation"), name, unsealed)


def _grant(family: bytes, number: int, generation: Generation, slot: Slot) -> str:
    assert slot.public is not None
    pair = X25519PrivateKey.generate()
    ephemeral = pair.public_key().public_bytes_raw()
    key = _grant_key(pair.exchange(X25519PublicKey.from_public_bytes(slot.public)), ephemeral, slot.public)
    plain = encode_generation(generation, appends_only=slot.appends_only)
    # the key is used once, so the nonce may be fixed
    wrapped = AESGCM(key).encrypt(bytes(12), plain, _associated(family, number, slot.name))
    return (ephemeral + wrapped).hex()


def _grant_key(shared: bytes, ephemeral: bytes, public: bytes) -> bytes:
    return derive_key(shared, ephemeral + public, "root grant")


def _associated(family: bytes, number: int, slot: str) -> bytes:
    return b"pgkeep/1 root" + family + f"{number} {slot}".encode()
