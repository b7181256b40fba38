"""Key slots: the root key, wrapped once for each way to open the repository.

A slot is one line of JSON, ``keys/<slot>.json``. Two kinds: a *key* (32 random bytes in a key file, or printed as the
recovery key: the same text serves as both) and a *passphrase* (Argon2id, RFC 9106). The root key is wrapped with
AES-256-GCM; the associated data binds family, slot and kind.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgkeep.errors import DamageError, KeyFailure, PgkeepError
from pgkeep.repository.crypto import derive_key
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import Store

__all__ = ["KeyFile", "Passphrase", "Secret", "add_slot", "unwrap_root_key"]

_ARGON2 = {"time_cost": 3, "memory_cost": 64 << 10, "parallelism": 4}
"""Argon2id with 3 passes over 64 MiB (in KiB here) in 4 lanes: RFC 9106's second recommendation."""

_PREFIX = "PGKEEP1"


@dataclass(frozen=True, repr=False)
class KeyFile:
    """32 secret bytes, kept in a file or on paper."""

    secret: bytes
    kind = "key"

    @classmethod
    def generate(cls, path: str | Path) -> KeyFile:
        """Create a key file, readable by its owner only. Raises KeyFailure where there is a file already."""
        key = cls(secrets.token_bytes(32))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeyFailure(
                f"cannot create the key file {path}: {error.strerror}",
                hint="a key file is never overwritten; name another path, or use the existing one",
            ) from None
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key.text() + "\n")
                file.flush()
                os.fsync(file.fileno())
            directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # without its key the repository is worth nothing: the file's name must be durable too
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            os.unlink(path)
            raise KeyFailure(
                f"cannot write the key file {path}: {error.strerror}", hint="name a path where it can be written"
            ) from None
        return key

    @classmethod
    def read(cls, path: str | Path) -> KeyFile:
        """The key in a file. Raises KeyFailure."""
        return cls.from_recovery_key(_read_secret_file(path), where=f"the key file {path}")

    @classmethod
    def from_recovery_key(cls, text: str, *, where: str = "the recovery key") -> KeyFile:
        """The key from its printed form; spaces, dashes and case do not matter. Raises KeyFailure."""
        compact = re.sub(r"[\s-]", "", text).upper()
        try:
            if not compact.startswith(_PREFIX):
                raise ValueError
            encoded = compact[len(_PREFIX) :]
            raw = base64.b32decode(encoded + "=" * (-len(encoded) % 8))
            if len(raw) != 36 or hashlib.sha256(raw[:32]).digest()[:4] != raw[32:]:
                raise ValueError
        except ValueError:
            raise KeyFailure(
                f"{where} does not hold a pgkeep key",
                hint=f"it reads {_PREFIX}-XXXX-XXXX-…; a mistyped letter is found by its check sum",
            ) from None
        return cls(raw[:32])

    def text(self) -> str:
        """The printed form: groups of four letters and digits, with a check sum."""
        raw = self.secret + hashlib.sha256(self.secret).digest()[:4]
        encoded = base64.b32encode(raw).decode().rstrip("=")
        return "-".join([_PREFIX, *(encoded[i : i + 4] for i in range(0, len(encoded), 4))])

    def wrapping_key(self, salt: bytes) -> bytes:
        """The key that wraps the root key in a slot."""
        return derive_key(self.secret, salt, "key slot")


@dataclass(frozen=True, repr=False)
class Passphrase:
    """A passphrase that a person remembers."""

    passphrase: str
    kind = "passphrase"

    @classmethod
    def read(cls, path: str | Path) -> Passphrase:
        """The passphrase in a file: its text without the line end. Raises KeyFailure."""
        passphrase = _read_secret_file(path).rstrip("\r\n")
        if not passphrase:
            raise KeyFailure(f"the passphrase file {path} is empty")
        return cls(passphrase)

    def wrapping_key(self, salt: bytes) -> bytes:
        """The key that wraps the root key in a slot."""
        from argon2.low_level import Type, hash_secret_raw

        return hash_secret_raw(self.passphrase.encode(), salt, hash_len=32, type=Type.ID, **_ARGON2)


Secret = KeyFile | Passphrase


def add_slot(store: Store, family: bytes, root_key: bytes, secret: Secret) -> str:
    """Wrap the root key for one more secret; returns the slot's name."""
    slot = secrets.token_hex(4)
    salt, nonce = os.urandom(32), os.urandom(12)
    wrapped = AESGCM(secret.wrapping_key(salt)).encrypt(nonce, root_key, _associated(family, slot, secret.kind))
    record: dict[str, object] = {
        "kind": secret.kind,
        "salt": salt.hex(),
        "nonce": nonce.hex(),
        "wrapped": wrapped.hex(),
    }
    if isinstance(secret, Passphrase):
        record["kdf"] = {"name": "argon2id", **_ARGON2}
    write_record(store, f"keys/{slot}.json", record)
    return slot


def unwrap_root_key(store: Store, family: bytes, secret: Secret) -> bytes:
    """The root key, by the first slot that the secret opens. Raises KeyFailure, DamageError."""
    damage: PgkeepError | None = None
    for info in list(store.list("keys/")):
        slot = info.name.removeprefix("keys/").removesuffix(".json")
        try:
            record = read_record(store, info.name)
            if record.get("kind") != secret.kind:
                continue
            salt, nonce, wrapped = (bytes.fromhex(str(record[field])) for field in ("salt", "nonce", "wrapped"))
            return AESGCM(secret.wrapping_key(salt)).decrypt(nonce, wrapped, _associated(family, slot, secret.kind))
        except InvalidTag:
            continue
        except DamageError as error:
            damage = error
        except (KeyError, ValueError):
            damage = DamageError(f"{info.name} is damaged: it is no key slot", object_name=info.name)
    if damage is not None:
        raise damage
    raise KeyFailure(
        f"this {secret.kind} does not open the repository at {store.url}",
        hint="name the right key in the configuration (key = …); the recovery key in a file serves as a key file",
    )


def _associated(family: bytes, slot: str, kind: str) -> bytes:
    return b"pgkeep/1 slot" + family + f"{slot} {kind}".encode()


def _read_secret_file(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise KeyFailure(
            f"cannot read {path}: {reason}", hint='name the key with key = "file:/path" in the configuration'
        ) from None
