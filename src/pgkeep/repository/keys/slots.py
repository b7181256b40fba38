"""Key slots: the root keys, wrapped once for each way to open the repository.

A slot is a record ``keys/<slot>.json``, created once. Its secret (a key file, a passphrase, an OpenPGP recipient, a key of AWS KMS)
yields a wrapping key. With that, AES-256-GCM wraps the generations of the root key that there were when the slot was made. From
it also comes an X25519 pair, whose public half stands in the record: generations that come later are sealed to it
(`pgkeep.repository.keys.generations`), by people who do not know the slot's secret. A seal under a root key tells slots that
were made by someone with a key from those that someone with nothing but the store has put there.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgkeep.errors import DamageError
from pgkeep.repository.crypto import Generation, derive_key
from pgkeep.repository.keys.secret import Fields, Secret, hex_field
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import Store
from pgkeep.units import utc_now

__all__ = ["OpenSlot", "Slot", "create_slot", "open_slot", "read_slot", "seal_of", "slot_names"]

_SLOT_NAME = re.compile(r"keys/([0-9a-f]{8})\.json", re.ASCII)
_KEY_SIZE = 32
_PRIVATE, _PUBLIC = "private", "public"


@dataclass(frozen=True)
class Slot:
    """A slot as its record says it, without any key.

    ``generation`` is the newest root key when it was made. ``public`` is what later ones are sealed to, None in slots of before that
    was so. ``appends_only``: in sealed mode, it opens what a database host needs and no more.
    """

    name: str
    fields: Fields

    @property
    def object_name(self) -> str:
        """Its object."""
        return _object_name(self.name)

    @property
    def kind(self) -> str:
        """``key``, ``passphrase``, ``openpgp`` or ``aws-kms``."""
        return str(self.fields.get("kind"))

    @property
    def label(self) -> str:
        """What its maker called it."""
        return str(self.fields.get("label", ""))

    @property
    def created(self) -> str:
        """When it was made: ISO 8601, UTC; empty where nobody wrote it down."""
        return str(self.fields.get("created", ""))

    @property
    def whose(self) -> str:
        """The recipient's fingerprint or the key's ARN, for the kinds that have one."""
        return str(self.fields.get("recipient") or self.fields.get("key_id") or "")

    @property
    def generation(self) -> int:
        """See `Slot`."""
        value = self.fields.get("generation", 0)
        return value if isinstance(value, int) else 0

    @property
    def public(self) -> bytes | None:
        """See `Slot`. Raises ValueError."""
        return hex_field(self.fields, "public") if "public" in self.fields else None

    @property
    def replaces(self) -> str | None:
        """The slot whose place it has taken; one that is still there was left by a rotation that was broken off."""
        value = self.fields.get("replaces")
        return value if isinstance(value, str) else None

    @property
    def appends_only(self) -> bool:
        """See `Slot`."""
        return self.fields.get("sealing") == _PUBLIC

    def is_sealed_by(self, family: bytes, generation: Generation) -> bool:
        """Whether someone who held this generation made it."""
        unsealed = {name: value for name, value in self.fields.items() if name != "seal"}
        key = derive_key(generation.root, family, "slot record")
        return hmac.compare_digest(seal_of(key, self.object_name, unsealed), str(self.fields.get("seal", "")))


@dataclass(frozen=True, repr=False)
class OpenSlot:
    """A slot that a secret has opened: the generations wrapped in it, and its private key."""

    slot: Slot
    generations: tuple[Generation, ...]
    private: X25519PrivateKey


def slot_names(objects: Iterable[str]) -> list[str]:
    """The slots among names of objects."""
    return [found[1] for name in objects if (found := _SLOT_NAME.fullmatch(name))]


def read_slot(store: Store, name: str) -> Slot:
    """A slot's record. Raises ObjectMissing, DamageError."""
    return Slot(name, read_record(store, _object_name(name)))


def create_slot(
    store: Store,
    family: bytes,
    generations: Sequence[Generation],
    secret: Secret,
    *,
    label: str = "",
    appends_only: bool = False,
    name: str | None = None,
    replaces: str | None = None,
) -> OpenSlot:
    """Wrap all generations of the root key for a secret; ``replaces``: see `Slot`. Raises KeyFailure, StoreError."""
    name = name or secrets.token_hex(4)
    wrapping_key, found_by = secret.new_wrapping(family)
    nonce = os.urandom(12)
    private = _private_key(wrapping_key, found_by)
    fields: dict[str, object] = {
        **found_by,
        "kind": secret.kind,
        "nonce": nonce.hex(),
        "public": private.public_key().public_bytes_raw().hex(),
        "generation": len(generations) - 1,
        "label": label,
        "created": utc_now().isoformat(timespec="milliseconds"),
    }
    if replaces is not None:
        fields["replaces"] = replaces
    if generations[0].public is not None:
        fields["sealing"] = _PUBLIC if appends_only else _PRIVATE
    plain = b"".join(encode_generation(generation, appends_only=appends_only) for generation in generations)
    fields["wrapped"] = AESGCM(wrapping_key).encrypt(nonce, plain, _associated(family, name, fields)).hex()
    key = derive_key(generations[-1].root, family, "slot record")
    fields["seal"] = seal_of(key, _object_name(name), fields)
    write_record(store, _object_name(name), fields)
    slot = Slot(name, fields)
    return OpenSlot(slot, tuple(_decode(plain, slot)), private)


def open_slot(slot: Slot, family: bytes, secret: Secret) -> OpenSlot | None:
    """What a slot holds; None where the secret does not open it. Raises KeyFailure, DamageError."""
    if slot.kind != secret.kind:
        return None
    try:
        nonce, wrapped = hex_field(slot.fields, "nonce"), hex_field(slot.fields, "wrapped")
        wrapping_key = secret.wrapping_of(family, slot.fields)
        if wrapping_key is None:
            return None
        plain = AESGCM(wrapping_key).decrypt(nonce, wrapped, _associated(family, slot.name, slot.fields))
        return OpenSlot(slot, tuple(_decode(plain, slot)), _private_key(wrapping_key, slot.fields))
    except InvalidTag:
        return None
    except ValueError:
        raise DamageError(f"{slot.object_name} is damaged: it is no key slot", object_name=slot.object_name) from None


def encode_generation(generation: Generation, *, appends_only: bool) -> bytes:
    """A generation as a slot's holder gets it."""
    if generation.public is None:
        return generation.root
    if appends_only:
        return generation.root + generation.public
    # only who can open everything can let others do so
    assert generation.private is not None
    return generation.root + generation.private


def decode_generation(plain: bytes, slot: Slot) -> Generation:
    """The reverse. Raises ValueError."""
    root, half = plain[:_KEY_SIZE], plain[_KEY_SIZE:]
    if slot.fields.get("sealing") is None:
        if half or len(root) != _KEY_SIZE:
            raise ValueError("not a root key")
        return Generation(root)
    if len(half) != _KEY_SIZE:
        raise ValueError("not a root key and one half of a pair")
    if slot.appends_only:
        return Generation(root, public=half)
    public = X25519PrivateKey.from_private_bytes(half).public_key().public_bytes_raw()
    return Generation(root, public=public, private=half)


def seal_of(key: bytes, name: str, fields: Fields) -> str:
    """A MAC over a record and its name, in hex."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(key, name.encode() + b" " + canonical, hashlib.sha256).hex()


def _decode(plain: bytes, slot: Slot) -> list[Generation]:
    size = _KEY_SIZE if slot.fields.get("sealing") is None else 2 * _KEY_SIZE
    if not plain or len(plain) != size * (slot.generation + 1):
        raise ValueError("not as many root keys as there should be")
    return [decode_generation(plain[start : start + size], slot) for start in range(0, len(plain), size)]


def _private_key(wrapping_key: bytes, fields: Fields) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derive_key(wrapping_key, hex_field(fields, "salt"), "slot pair"))


def _associated(family: bytes, name: str, fields: Fields) -> bytes:
    words = [name, fields["kind"], *([fields["sealing"]] if "sealing" in fields else [])]
    return b"pgkeep/1 slot" + family + " ".join(str(word) for word in words).encode()


def _object_name(slot: str) -> str:
    return f"keys/{slot}.json"
