"""Secrets that are text in a file: a key file, which may be a recovery key too, and a passphrase."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pgkeep.errors import KeyFailure
from pgkeep.repository.crypto import SALT_SIZE, derive_key
from pgkeep.repository.keys.secret import Fields, hex_field

__all__ = ["KeyFile", "Passphrase"]

_ARGON2 = {"time_cost": 3, "memory_cost": 64 << 10, "parallelism": 4}
"""Argon2id with 3 passes over 64 MiB (in KiB here) in 4 lanes: RFC 9106's second recommendation."""

_PREFIX = "PGKEEP1"


@dataclass(frozen=True, repr=False)
class KeyFile:
    """32 secret bytes, kept in a file or on paper."""

    secret: bytes
    kind: ClassVar[str] = "key"

    @classmethod
    def new(cls) -> KeyFile:
        """Random bytes, written nowhere."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def generate(cls, path: str | Path) -> KeyFile:
        """Create a key file, readable by its owner only. Raises KeyFailure where there is a file already."""
        key = cls.new()
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

    def new_wrapping(self, _family: bytes) -> tuple[bytes, Fields]:
        """See `Secret.new_wrapping`."""
        salt = os.urandom(SALT_SIZE)
        return self._wrapping_key(salt), {"salt": salt.hex()}

    def wrapping_of(self, _family: bytes, fields: Fields) -> bytes | None:
        """See `Secret.wrapping_of`."""
        return self._wrapping_key(hex_field(fields, "salt"))

    def identity(self) -> bytes:
        """See `Secret.identity`."""
        return self.text().encode()

    def _wrapping_key(self, salt: bytes) -> bytes:
        return derive_key(self.secret, salt, "key slot")


@dataclass(frozen=True, repr=False)
class Passphrase:
    """A passphrase that a person remembers."""

    passphrase: str
    kind: ClassVar[str] = "passphrase"

    @classmethod
    def read(cls, path: str | Path) -> Passphrase:
        """The passphrase in a file: its text without the line end. Raises KeyFailure."""
        passphrase = _read_secret_file(path).rstrip("\r\n")
        if not passphrase:
            raise KeyFailure(f"the passphrase file {path} is empty")
        return cls(passphrase)

    def new_wrapping(self, _family: bytes) -> tuple[bytes, Fields]:
        """See `Secret.new_wrapping`."""
        salt = os.urandom(SALT_SIZE)
        return self._wrapping_key(salt), {"salt": salt.hex(), "kdf": {"name": "argon2id", **_ARGON2}}

    def wrapping_of(self, _family: bytes, fields: Fields) -> bytes | None:
        """See `Secret.wrapping_of`."""
        return self._wrapping_key(hex_field(fields, "salt"))

    def identity(self) -> bytes:
        """See `Secret.identity`."""
        return self.passphrase.encode()

    def _wrapping_key(self, salt: bytes) -> bytes:
        from argon2.low_level import Type, hash_secret_raw

        return hash_secret_raw(self.passphrase.encode(), salt, hash_len=32, type=Type.ID, **_ARGON2)


def _read_secret_file(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise KeyFailure(
            f"cannot read {path}: {reason}", hint='name the key with key = "file:/path" in the configuration'
        ) from None
