"""Sealing: how stored bytes are authenticated and, unless the repository says otherwise, encrypted.

Two suites share one layout, so that a repository without encryption differs in nothing but the tag:

* ``aes-256-gcm``: AES-256-GCM (NIST SP 800-38D) under a key of its own for each pack and object.
* ``none``: the plain bytes followed by 16 bytes of keyed BLAKE3 over associated data, nonce and bytes. The key is
  public (derived from the family), so this finds damage, not forgery.

Every key comes from a root key by HKDF-SHA256 (RFC 5869) with the salt of the pack or object and a purpose. A repository
has one or more root keys, its *generations*: what is new is sealed under the newest. The *key mode* in every header says
which one: the number of the generation, plus `BOXED` where a shared secret of X25519 (RFC 7748) goes into the key too, so
that who only has the public half can seal and not open. ``docs/reference/format.md`` is the normative text.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgkeep.errors import DamageError, KeyFailure
from pgkeep.repository.store import Buffer

if TYPE_CHECKING:
    from pgkeep.repository.block_sums import BlockSums

__all__ = [
    "BOXED",
    "ID_SIZE",
    "SALT_SIZE",
    "TAG_SIZE",
    "Generation",
    "Generations",
    "KeyRing",
    "NewSeal",
    "Sealer",
    "Suite",
    "derive_key",
]

ID_SIZE = 32
SALT_SIZE = 32
TAG_SIZE = 16

BOXED = 0x80
"""Added to the key mode where the salt is an X25519 public key, made for this one pack or object."""


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


@dataclass(frozen=True, repr=False)
class Generation:
    """A root key, and the pair of X25519 keys that goes with it where the repository is in sealed mode.

    ``public`` is None without sealed mode; ``private`` too, and where this holder may add to the repository only.
    """

    root: bytes
    public: bytes | None = None
    private: bytes | None = None


class Generations(Protocol):
    """The generations of root keys, from 0; safe for threads."""

    def get(self, number: int) -> Generation:
        """A generation. Raises KeyFailure where it is not known or this key does not open it."""

    def newest(self) -> tuple[int, Generation]:
        """The one that new things are sealed under, and its number. Raises KeyFailure where this key does not open it."""


@dataclass(frozen=True, slots=True)
class NewSeal:
    """A sealer for one new pack or object, with what stands in its header. ``mode`` is the key mode."""

    mode: int
    salt: bytes
    sealer: Sealer


@dataclass(frozen=True)
class KeyRing:
    """All keys of a repository, from its root keys.

    ``family`` (16 bytes) names the first root key and is bound into every seal; repositories that share it share that key, so
    that objects can be copied between them unopened (see `same_keys`). Without encryption the root key is the family, hashed.
    ``root_key`` is the first one: ids, the index and the root record stay with it, so that what is stored already is found.
    ``generations`` None: there is only that one.
    """

    suite: Suite
    root_key: bytes = field(repr=False)
    family: bytes
    generations: Generations | None = field(default=None, repr=False, compare=False)

    @classmethod
    def unencrypted(cls, family: bytes) -> KeyRing:
        """The keys of a repository whose owner chose no encryption: they find damage and hide nothing."""
        return cls(Suite.NONE, hashlib.sha256(b"pgkeep/1 unencrypted " + family).digest(), family)

    @cached_property
    def _id_key(self) -> bytes:
        return self.derive(self.family, "content-id")

    def derive(self, salt: bytes, purpose: str) -> bytes:
        """A key for one purpose, from the first root key."""
        return derive_key(self.root_key, salt, purpose)

    def content_id(self, plain: Buffer) -> bytes:
        """The keyed BLAKE3 of a content: its name, which tells nothing about it to those without the key."""
        return blake3(plain, key=self._id_key).digest()

    @cached_property
    def block_sums(self) -> BlockSums:
        """Sums of blocks under this repository's key for them."""
        from pgkeep.repository.block_sums import BlockSums

        return BlockSums(self.derive(self.family, "block-sums"))

    @property
    def boxes(self) -> bool:
        """Whether the repository is in sealed mode: data and WAL open with a private key that this holder may not have."""
        return self._newest()[1].public is not None

    @property
    def opens_boxes(self) -> bool:
        """Whether this holder can read data and WAL back."""
        generation = self._newest()[1]
        return generation.public is None or generation.private is not None

    def require_reading(self) -> None:
        """Raises KeyFailure where this holder cannot read data and WAL back, for jobs that would find out late."""
        if not self.opens_boxes:
            raise _cannot_read()

    def new_seal(self, purpose: str, *, boxed: bool = False) -> NewSeal:
        """A fresh salt and the sealer that goes with it, under the newest root key.

        ``boxed``: as data and WAL are sealed; the same as without it where the repository is not in sealed mode.
        """
        number, generation = self._newest()
        if not boxed or generation.public is None:
            salt = os.urandom(SALT_SIZE)
            return NewSeal(number, salt, self._sealer(derive_key(generation.root, salt, purpose)))
        pair = X25519PrivateKey.generate()
        salt = pair.public_key().public_bytes_raw()
        shared = pair.exchange(X25519PublicKey.from_public_bytes(generation.public))
        return NewSeal(number | BOXED, salt, self._boxed_sealer(generation, shared, salt, purpose))

    def sealer(self, salt: bytes, purpose: str, mode: int = 0, *, boxed: bool = True) -> Sealer:
        """The sealer of one pack or object, by what stands in its header.

        ``boxed`` False: of a part that never is, such as a pack's table. Raises KeyFailure where this holder may not open it.
        """
        generation = self._generation(mode & ~BOXED)
        if not mode & BOXED or not boxed:
            return self._sealer(derive_key(generation.root, salt, purpose))
        if generation.public is None:
            raise DamageError("it names a key of sealed mode, and this repository has none")
        if generation.private is None:
            raise _cannot_read()
        private = X25519PrivateKey.from_private_bytes(generation.private)
        try:
            shared = private.exchange(X25519PublicKey.from_public_bytes(salt))
        except ValueError:
            raise DamageError("its salt is no public key") from None
        return self._boxed_sealer(generation, shared, salt, purpose)

    def digest_key(self, salt: bytes, purpose: str, mode: int) -> bytes:
        """The key under which who cannot open an object tells whether it holds bytes that he has himself."""
        return derive_key(self._generation(mode & ~BOXED).root, salt, f"{purpose} digest")

    def _boxed_sealer(self, generation: Generation, shared: bytes, salt: bytes, purpose: str) -> Sealer:
        # the root key goes in, so that only who holds it can seal; the public key, so that the key is for this pair alone
        assert generation.public is not None
        return self._sealer(derive_key(shared + generation.root, salt + generation.public, f"boxed {purpose}"))

    def _sealer(self, key: bytes) -> Sealer:
        return _Aes256Gcm(key) if self.suite is Suite.AES_256_GCM else _Checksummed(key)

    def _newest(self) -> tuple[int, Generation]:
        return (0, Generation(self.root_key)) if self.generations is None else self.generations.newest()

    def _generation(self, number: int) -> Generation:
        if self.generations is not None:
            return self.generations.get(number)
        if number:
            raise DamageError(f"it names generation {number} of the root key, and there is only one")
        return Generation(self.root_key)


def _cannot_read() -> KeyFailure:
    return KeyFailure(
        "this key adds to the repository and does not read data or WAL back",
        hint="give one that does: --key-file FILE with the recovery key, or another key",
    )
