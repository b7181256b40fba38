"""Sealing: how stored bytes are authenticated and, unless the repository says otherwise, encrypted.

Two suites share one layout, so that a repository without encryption differs in nothing but the tag:

* ``aes-256-gcm``: AES-256-GCM (NIST SP 800-38D) under a key of its own for each pack and object.
* ``none``: the plain bytes followed by 16 bytes of keyed BLAKE3 over associated data, nonce and bytes. The key is
  public (derived from the family), so this finds damage, not forgery.

Every key comes from the root key by HKDF-SHA256 (RFC 5869) with the salt of the pack or object and a purpose.
``docs/reference/format.md`` is the normative text.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgkeep.errors import DamageError
from pgkeep.repository.store import Buffer

if TYPE_CHECKING:
    from pgkeep.repository.block_sums import BlockSums

__all__ = ["ID_SIZE", "SALT_SIZE", "TAG_SIZE", "KeyRing", "Sealer", "Suite", "derive_key"]

ID_SIZE = 32
SALT_SIZE = 32
TAG_SIZE = 16


class Suite(IntEnum):
    """How bytes are sealed; the number stands in every header."""

    NONE = 0
    AES_256_GCM = 1


class Sealer(Protocol):
    """Seals and opens bytes under one key. A nonce (12 bytes) is used once for each key."""

    def seal(self, nonce: bytes, plain: Buffer, associated: bytes) -> bytes:
        """The sealed bytes: `TAG_SIZE` longer than the plain ones."""

    def open(self, nonce: bytes, sealed: Buffer, associated: bytes) -> bytes:
        """The plain bytes. Raises DamageError where anything differs from what was sealed."""


class _Aes256Gcm:
    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, nonce: bytes, plain: Buffer, associated: bytes) -> bytes:
        return self._cipher.encrypt(nonce, plain, associated)

    def open(self, nonce: bytes, sealed: Buffer, associated: bytes) -> bytes:
        try:
            return self._cipher.decrypt(nonce, sealed, associated)
        except InvalidTag:
            raise DamageError("the bytes are not what was sealed here") from None


class _Checksummed:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def _tag(self, nonce: bytes, plain: Buffer, associated: bytes) -> bytes:
        digest = blake3(struct.pack("<Q", len(associated)), key=self._key)
        return digest.update(associated).update(nonce).update(plain).digest(TAG_SIZE)

    def seal(self, nonce: bytes, plain: Buffer, associated: bytes) -> bytes:
        return b"".join((plain, self._tag(nonce, plain, associated)))

    def open(self, nonce: bytes, sealed: Buffer, associated: bytes) -> bytes:
        view = memoryview(sealed)
        plain, tag = view[:-TAG_SIZE], view[-TAG_SIZE:]
        if len(view) < TAG_SIZE or not hmac.compare_digest(tag, self._tag(nonce, plain, associated)):
            raise DamageError("the bytes are not what was written here")
        return bytes(plain)


def derive_key(key: bytes, salt: bytes, purpose: str) -> bytes:
    """32 bytes by HKDF-SHA256 (RFC 5869), ``info`` = ``"pgkeep/1 " + purpose``."""
    extracted = hmac.digest(salt, key, hashlib.sha256)
    return hmac.digest(extracted, b"pgkeep/1 " + purpose.encode() + b"\x01", hashlib.sha256)


@dataclass(frozen=True)
class KeyRing:
    """All keys of a repository, from its root key.

    ``family`` (16 bytes) names the root key and is bound into every seal; repositories that share a root key share it,
    so that objects can be copied between them unopened. Without encryption the root key is the family, hashed.
    """

    suite: Suite
    root_key: bytes = field(repr=False)
    family: bytes

    @classmethod
    def unencrypted(cls, family: bytes) -> KeyRing:
        """The keys of a repository whose owner chose no encryption: they find damage and hide nothing."""
        return cls(Suite.NONE, hashlib.sha256(b"pgkeep/1 unencrypted " + family).digest(), family)

    @cached_property
    def _id_key(self) -> bytes:
        return self.derive(self.family, "content-id")

    def derive(self, salt: bytes, purpose: str) -> bytes:
        """A key for one purpose."""
        return derive_key(self.root_key, salt, purpose)

    def content_id(self, plain: Buffer) -> bytes:
        """The keyed BLAKE3 of a content: its name, which tells nothing about it to those without the key."""
        return blake3(plain, key=self._id_key).digest()

    @cached_property
    def block_sums(self) -> BlockSums:
        """Sums of blocks under this repository's key for them."""
        from pgkeep.repository.block_sums import BlockSums

        return BlockSums(self.derive(self.family, "block-sums"))

    def sealer(self, salt: bytes, purpose: str) -> Sealer:
        """A sealer under the key of one pack or object."""
        key = self.derive(salt, purpose)
        return _Aes256Gcm(key) if self.suite is Suite.AES_256_GCM else _Checksummed(key)
