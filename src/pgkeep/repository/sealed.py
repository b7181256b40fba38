"""Sealed objects: a document or a stream under one name, for manifests, WAL segments and records.

.. code-block:: text

    header   48 bytes   magic "pgkeepO1" · type u8 · suite u8 · key mode u8 · codec u8 · chunk size u32 · salt (32)
    chunk i             stored length u32 · sealed bytes
    digest   32 bytes   keyed BLAKE3 of the plain text; only where the key mode is that of sealed mode
    check    32 bytes   SHA-256 of all bytes before it, so that anyone can scrub without a key

Integers are little-endian. Chunk ``i`` is sealed with nonce ``u32 last · u64 i`` (``last`` is 1 for the final chunk,
else 0: cutting the object or adding to it fails) and with the associated data
``"pgkeep/1 object" · family · header · name``: an object moved to another name does not open. The digest is for those
who add and cannot open: by it they know whether an object holds what they would store under its name.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from blake3 import blake3

from pgkeep.errors import DamageError
from pgkeep.repository.codec import Codec, compress, decompress
from pgkeep.repository.crypto import BOXED, KeyRing, Sealer
from pgkeep.repository.store import Buffer, ObjectMissing, Store

__all__ = [
    "ObjectSealer",
    "ObjectType",
    "check_sealed",
    "check_sealed_bytes",
    "holds",
    "open_parts",
    "read_sealed",
    "stream_sealed",
    "write_sealed",
]

_MAGIC = b"pgkeepO1"
_HEADER = struct.Struct("<8sBBBBI32s")
_LENGTH = struct.Struct("<I")
_CHECK_SIZE = 32
_DIGEST_SIZE = 32
_CHUNK_SIZE = 1 << 20
"""Plain bytes in a chunk: what a reader holds beside the object."""


class ObjectType(IntEnum):
    """What a sealed object is; bound into its header and its key."""

    MANIFEST = 1
    WAL = 2
    SCRUB = 3
    WAL_TIMES = 4
    WAL_CLAIM = 5
    PIN = 6
    EXPIRY = 7
    DRILL = 8


@dataclass(frozen=True, slots=True)
class _Header:
    type: ObjectType
    suite: int
    key_mode: int
    codec: Codec
    chunk_size: int
    salt: bytes
    encoded: bytes


class ObjectSealer:
    """Seals one object piece by piece: it holds the compressed object and one plain chunk.

    ``boxed``: it is data, which only a reader opens in sealed mode.
    """

    def __init__(self, keys: KeyRing, name: str, type_: ObjectType, *, level: int = 3, boxed: bool = False) -> None:
        seal = keys.new_seal(_purpose(type_), boxed=boxed)
        header = _HEADER.pack(_MAGIC, type_, keys.suite, seal.mode, Codec.ZSTD, _CHUNK_SIZE, seal.salt)
        self.name = name
        self._sealer = seal.sealer
        self._associated = _associated(keys, header, name)
        self._level = level
        self._parts = [header]
        self._digest = hashlib.sha256(header)
        self._plain_digest = None
        if seal.mode & BOXED:
            self._plain_digest = blake3(key=keys.digest_key(seal.salt, _purpose(type_), seal.mode))
        self._pending = bytearray()
        self._number = 0

    def write(self, plain: Buffer) -> None:
        """Add bytes."""
        if self._plain_digest is not None:
            self._plain_digest.update(plain)
        self._pending += plain
        while len(self._pending) > _CHUNK_SIZE:
            self._seal(bytes(self._pending[:_CHUNK_SIZE]), last=False)
            del self._pending[:_CHUNK_SIZE]

    def finish(self) -> list[bytes]:
        """The object's parts; nothing can be added after it."""
        self._seal(bytes(self._pending), last=True)
        self._pending.clear()
        if self._plain_digest is not None:
            self._append(self._plain_digest.digest())
        return [*self._parts, self._digest.digest()]

    def plain(self) -> bytes:
        """What was written to a sealer that is finished; no other key opens it for who can only add."""
        data = memoryview(b"".join(self._parts))
        end = len(data) - (_DIGEST_SIZE if self._plain_digest is not None else 0)
        return b"".join(_open_each(data, end, Codec.ZSTD, _CHUNK_SIZE, self._sealer, self._associated))

    def _seal(self, plain: bytes, *, last: bool) -> None:
        sealed = self._sealer.seal(_nonce(self._number, last=last), compress(plain, self._level), self._associated)
        self._append(_LENGTH.pack(len(sealed)))
        self._append(sealed)
        self._number += 1

    def _append(self, part: bytes) -> None:
        self._digest.update(part)
        self._parts.append(part)


def write_sealed(store: Store, keys: KeyRing, name: str, type_: ObjectType, plain: Buffer) -> None:
    """Seal and create an object. Raises ObjectExists, StoreError."""
    sealer = ObjectSealer(keys, name, type_)
    sealer.write(plain)
    store.put(name, sealer.finish())


def read_sealed(store: Store, keys: KeyRing, name: str, type_: ObjectType) -> bytes:
    """The plain text of an object. Raises ObjectMissing; DamageError where a byte of it differs."""
    return open_parts([store.get(name)], keys, name, type_)


def stream_sealed(store: Store, keys: KeyRing, name: str, type_: ObjectType) -> Iterator[bytes]:
    """The plain text of an object, chunk by chunk; what was given is good even where a later chunk is damaged.

    Raises ObjectMissing; DamageError where a byte of it differs, or where it was cut off.
    """
    data = memoryview(store.get(name))
    try:
        yield from _open_chunks(data, keys, name, type_)
    except DamageError as error:
        raise _damaged(name, error) from None


def open_parts(parts: Sequence[Buffer], keys: KeyRing, name: str, type_: ObjectType) -> bytes:
    """The plain text of an object whose bytes are these. Raises DamageError where a byte of it differs."""
    data = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
    try:
        return b"".join(_open_chunks(data, keys, name, type_))
    except DamageError as error:
        raise _damaged(name, error) from None


def holds(store: Store, keys: KeyRing, name: str, type_: ObjectType, plain: Buffer) -> bool:
    """Whether an object is there and its plain text is this; takes no key that reads. Raises DamageError, StoreError."""
    try:
        data = memoryview(store.get(name))
    except ObjectMissing:
        return False
    try:
        _check(data)
        header = _read_header(data)
        if header.type is not type_ or not header.key_mode & BOXED:
            return b"".join(_open_chunks(data, keys, name, type_)) == plain
        key = keys.digest_key(header.salt, _purpose(type_), header.key_mode)
        return blake3(plain, key=key).digest() == data[-_CHECK_SIZE - _DIGEST_SIZE : -_CHECK_SIZE]
    except DamageError as error:
        raise _damaged(name, error) from None


def check_sealed(store: Store, name: str) -> int:
    """Scrub an object without a key: its bytes hash to its own check. Returns its size; raises DamageError."""
    data = store.get(name)
    check_sealed_bytes(name, data)
    return len(data)


def check_sealed_bytes(name: str, data: Buffer) -> None:
    """`check_sealed` of an object whose bytes are at hand. Raises DamageError."""
    view = memoryview(data)
    try:
        _check(view)
        _read_header(view)
    except DamageError as error:
        raise _damaged(name, error) from None


def _read_header(data: memoryview) -> _Header:
    magic, type_, suite, key_mode, codec, chunk_size, salt = _HEADER.unpack_from(data)
    try:
        if magic != _MAGIC:
            raise ValueError
        return _Header(ObjectType(type_), suite, key_mode, Codec(codec), chunk_size, salt, bytes(data[: _HEADER.size]))
    except ValueError:
        raise DamageError("it has no header of a sealed object") from None


def _check(data: memoryview) -> None:
    if len(data) < _HEADER.size + _CHECK_SIZE:
        raise DamageError("it is cut off")
    if hashlib.sha256(data[:-_CHECK_SIZE]).digest() != data[-_CHECK_SIZE:]:
        raise DamageError("its bytes do not match its check")


def _open_chunks(data: memoryview, keys: KeyRing, name: str, type_: ObjectType) -> Iterator[bytes]:
    _check(data)
    header = _read_header(data)
    if header.type is not type_ or header.suite != keys.suite:
        raise DamageError(f"it is not a {type_.name.lower()} of this repository")
    sealer = keys.sealer(header.salt, _purpose(type_), header.key_mode)
    associated = _associated(keys, header.encoded, name)
    end = len(data) - _CHECK_SIZE - (_DIGEST_SIZE if header.key_mode & BOXED else 0)
    yield from _open_each(data, end, header.codec, header.chunk_size, sealer, associated)


def _open_each(
    data: memoryview, end: int, codec: Codec, chunk_size: int, sealer: Sealer, associated: bytes
) -> Iterator[bytes]:
    position, number = _HEADER.size, 0
    while position < end or number == 0:
        start = position + _LENGTH.size
        if start > end:
            raise DamageError("a chunk is cut off")
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > end:
            raise DamageError("a chunk is cut off")
        compressed = sealer.open(_nonce(number, last=position == end), data[start:position], associated)
        yield decompress(compressed, codec, chunk_size)
        number += 1


def _purpose(type_: ObjectType) -> str:
    return f"object {type_.name.lower()}"


def _associated(keys: KeyRing, header: bytes, name: str) -> bytes:
    return b"pgkeep/1 object" + keys.family + header + name.encode()


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack("<IQ", last, number)


def _damaged(name: str, error: DamageError) -> DamageError:
    return DamageError(f"{name} is damaged: {error}", object_name=name, hint=error.hint)
