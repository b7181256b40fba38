"""Packs: objects of many contents, sealed one by one, so that any of them can be read alone.

.. code-block:: text

    header   44 bytes   magic "pgkeepP1" · kind u8 · suite u8 · key mode u8 · reserved u8 · salt (32)
    content             sealed bytes, one after the other
    table               sealed: one 48-byte entry a content: id (32) · offset u32 · stored u32 · plain u32 · codec u32
    footer   16 bytes   stored length of the table u32 · number of entries u32 · magic "pgkeepPE"

A pack is named by the SHA-256 of its bytes: anyone can scrub or mirror it without a key. Its key is derived from its
salt and the root key that the key mode names (see `pgkeep.repository.crypto`), and the nonce of a content (and of the
table) is its offset in the pack as 96 bits, so no pair is ever used twice and nothing can be moved. The associated data
binds the family, the kind, the id, the plain size and the codec.

The last content of a data pack may be one of id 1, which no index names: the sums of all blocks of the others
(`pgkeep.repository.block_sums`), content by content.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

from pgkeep.errors import DamageError
from pgkeep.repository.codec import Codec, decompress, decompress_into
from pgkeep.repository.crypto import BOXED, ID_SIZE, TAG_SIZE, KeyRing, Sealer, Suite
from pgkeep.repository.store import Buffer, Store

__all__ = [
    "MAX_CONTENT_SIZE",
    "PackBuilder",
    "PackEntry",
    "PackKind",
    "PackReader",
    "check_hash",
    "pack_name",
    "pack_table",
    "read_block_sums",
    "read_pack_table",
]

_MAGIC = b"pgkeepP1"
_END_MAGIC = b"pgkeepPE"
_HEADER = struct.Struct("<8sBBBB32s")
_ENTRY = struct.Struct("<32sIIII")
_FOOTER = struct.Struct("<II8s")
_TABLE_ID = bytes(ID_SIZE)
_SUMS_ID = (1).to_bytes(ID_SIZE, "little")
_READ_SIZE = 4 << 20

MAX_CONTENT_SIZE = 64 << 20
"""No content is larger: it bounds what a reader must hold, and offsets stay within 32 bits."""


class PackKind(IntEnum):
    """Data packs hold the cluster's bytes and may go to cold storage; meta packs hold maps and listings."""

    DATA = 1
    META = 2


@dataclass(frozen=True, slots=True)
class PackEntry:
    """Where a content lies in its pack; sizes and offset in bytes."""

    id: bytes
    offset: int
    stored_size: int
    plain_size: int
    codec: Codec


def pack_name(kind: PackKind, digest: str) -> str:
    """The object's name of a pack whose bytes hash to ``digest`` (hex)."""
    return f"packs/{kind.name.lower()}/{digest[:2]}/{digest}"


class PackBuilder:
    """A pack that grows in memory until `finish`. Not safe for threads: its owner holds a lock."""

    def __init__(self, keys: KeyRing, kind: PackKind) -> None:
        self.kind = kind
        self._keys = keys
        seal = keys.new_seal(_purpose(kind), boxed=kind is PackKind.DATA)
        self._sealer = seal.sealer
        self._table_sealer = _table_sealer(keys, kind, seal.mode, seal.salt)
        header = _HEADER.pack(_MAGIC, kind, keys.suite, seal.mode, 0, seal.salt)
        self._parts: list[bytes] = [header]
        self._entries: list[PackEntry] = []
        self._sums: list[bytes | None] = []
        self.size = len(header)

    @property
    def entries(self) -> list[PackEntry]:
        """What the pack holds, in order of offset."""
        return self._entries

    def add(
        self, content_id: bytes, compressed: Buffer, plain_size: int, codec: Codec, sums: bytes | None = None
    ) -> PackEntry:
        """Seal a content at the pack's end; ``sums`` are those of its blocks (`BlockSums`)."""
        entry = self._seal(content_id, compressed, plain_size, codec)
        self._entries.append(entry)
        self._sums.append(sums)
        return entry

    def _seal(self, content_id: bytes, compressed: Buffer, plain_size: int, codec: Codec) -> PackEntry:
        sealed = self._sealer.seal(
            _nonce(self.size), compressed, _associated(self._keys, self.kind, content_id, plain_size, codec)
        )
        entry = PackEntry(content_id, self.size, len(sealed), plain_size, codec)
        self._parts.append(sealed)
        self.size += len(sealed)
        return entry

    def finish(self) -> tuple[str, list[bytes]]:
        """The pack's name and its bytes in parts."""
        entries = self._entries
        sums = b"".join(sums for sums in self._sums if sums is not None)
        if sums and None not in self._sums:
            entries = [*entries, self._seal(_SUMS_ID, sums, len(sums), Codec.RAW)]
        table = b"".join(
            _ENTRY.pack(entry.id, entry.offset, entry.stored_size, entry.plain_size, entry.codec) for entry in entries
        )
        associated = _associated(self._keys, self.kind, _TABLE_ID, len(table), Codec.RAW)
        sealed = self._table_sealer.seal(_nonce(self.size), table, associated)
        parts = [*self._parts, sealed, _FOOTER.pack(len(sealed), len(entries), _END_MAGIC)]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return pack_name(self.kind, digest.hexdigest()), parts


class PackReader:
    """Opens contents of one pack, given its bytes; safe for threads."""

    def __init__(self, keys: KeyRing, name: str, header: bytes) -> None:
        self._keys = keys
        self._name = name
        self._kind, mode, salt = _read_header(name, header, keys.suite)
        try:
            self._sealer = keys.sealer(salt, _purpose(self._kind), mode)
        except DamageError as error:
            raise _damaged(name, str(error)) from None

    @classmethod
    def of(cls, store: Store, keys: KeyRing, name: str) -> PackReader:
        """A reader for a pack in a store. Raises ObjectMissing, DamageError."""
        return cls(keys, name, store.get(name, 0, _HEADER.size))

    def open_into(
        self, room: memoryview, entry: PackEntry, sealed: Buffer, is_wanted: Callable[[int, int], bool] | None = None
    ) -> None:
        """`open` into ``room``, which has the content's size.

        With ``is_wanted`` (see `decompress_into`) only what is wanted; what is stored is checked whole, and not what comes of it.
        """
        try:
            decompress_into(room, self._unsealed(entry, sealed), entry.codec, is_wanted)
        except DamageError as error:
            raise _damaged(self._name, f"{error} (at byte {entry.offset})") from None
        if is_wanted is None:
            self._check_id(entry, room)

    def _check_id(self, entry: PackEntry, plain: Buffer) -> None:
        if entry.id != _SUMS_ID and self._keys.content_id(plain) != entry.id:
            raise _damaged(self._name, f"the content at byte {entry.offset} is not what its id names")

    def _unsealed(self, entry: PackEntry, sealed: Buffer) -> bytes:
        associated = _associated(self._keys, self._kind, entry.id, entry.plain_size, entry.codec)
        return self._sealer.open(_nonce(entry.offset), sealed, associated)

    def open(self, entry: PackEntry, sealed: Buffer) -> bytes:
        """The plain bytes of a content, checked against its id. Raises DamageError naming the pack."""
        return self.open_both(entry, sealed)[1]

    def open_both(self, entry: PackEntry, sealed: Buffer) -> tuple[bytes, bytes]:
        """`open`, with the compressed bytes before the plain ones."""
        try:
            compressed = self._unsealed(entry, sealed)
            plain = decompress(compressed, entry.codec, entry.plain_size)
        except DamageError as error:
            raise _damaged(self._name, f"{error} (at byte {entry.offset})") from None
        if len(plain) != entry.plain_size:
            raise _damaged(self._name, f"the content at byte {entry.offset} is not as long as it says")
        self._check_id(entry, plain)
        return compressed, plain


def check_hash(store: Store, name: str) -> None:
    """Scrub an object that is named by the hash of its bytes, a pack or an index, without a key. Raises ObjectMissing, DamageError."""
    digest, position = hashlib.sha256(), 0
    # read, not mapped: a disk that cannot read a mapped page kills the process
    while data := store.get(name, position, _READ_SIZE):
        digest.update(data)
        position += len(data)
    if digest.hexdigest() != name.rpartition("/")[2]:
        raise _damaged(name, "its bytes do not match its name")


def read_pack_table(store: Store, keys: KeyRing, name: str) -> list[PackEntry]:
    """What a pack says of itself. Raises ObjectMissing, DamageError."""
    return _without_sums(_table_of(store, keys, name))


def pack_table(keys: KeyRing, name: str, data: Buffer) -> list[PackEntry]:
    """`read_pack_table` of a pack whose bytes are at hand."""
    view = memoryview(data)
    return _without_sums(_read_table(keys, name, len(view), lambda start, length: bytes(view[start : start + length])))


def read_block_sums(store: Store, keys: KeyRing, name: str) -> dict[int, bytes]:
    """The sums of the blocks of each content, by its offset in the pack; empty where the pack has none. Raises ObjectMissing, DamageError."""
    from pgkeep.repository.block_sums import sums_size

    entries = _table_of(store, keys, name)
    if not entries or entries[-1].id != _SUMS_ID:
        return {}
    last = entries.pop()
    sums = PackReader.of(store, keys, name).open(last, store.get(name, last.offset, last.stored_size))
    sizes = [sums_size(entry.plain_size) for entry in entries]
    if sum(sizes) != len(sums):
        raise _damaged(name, "its sums are not those of its contents")
    ends = accumulate(sizes)
    return {entry.offset: sums[end - size : end] for entry, size, end in zip(entries, sizes, ends, strict=True)}


def _without_sums(entries: list[PackEntry]) -> list[PackEntry]:
    return [entry for entry in entries if entry.id != _SUMS_ID]


def _table_of(store: Store, keys: KeyRing, name: str) -> list[PackEntry]:
    return _read_table(keys, name, store.info(name).size, lambda start, length: store.get(name, start, length))


def _read_table(keys: KeyRing, name: str, size: int, get: Callable[[int, int], bytes]) -> list[PackEntry]:
    if size < _HEADER.size + _FOOTER.size:
        raise _damaged(name, "it is cut off")
    kind, mode, salt = _read_header(name, get(0, _HEADER.size), keys.suite)
    sealed_size, count, magic = _FOOTER.unpack(get(size - _FOOTER.size, _FOOTER.size))
    offset = size - _FOOTER.size - sealed_size
    if magic != _END_MAGIC or offset < _HEADER.size or sealed_size != count * _ENTRY.size + TAG_SIZE:
        raise _damaged(name, "it is cut off")
    associated = _associated(keys, kind, _TABLE_ID, count * _ENTRY.size, Codec.RAW)
    try:
        table = _table_sealer(keys, kind, mode, salt).open(_nonce(offset), get(offset, sealed_size), associated)
    except DamageError as error:
        raise _damaged(name, f"in its table, {error}") from None
    return [
        PackEntry(content_id, start, stored, plain, Codec(codec))
        for content_id, start, stored, plain, codec in _ENTRY.iter_unpack(table)
    ]


def _purpose(kind: PackKind) -> str:
    return f"pack {kind.name.lower()}"


def _table_sealer(keys: KeyRing, kind: PackKind, mode: int, salt: bytes) -> Sealer:
    """Whoever adds to a repository must be able to read what packs say of themselves, and no more."""
    purpose = f"{_purpose(kind)} table" if mode & BOXED else _purpose(kind)
    return keys.sealer(salt, purpose, mode, boxed=False)


def _read_header(name: str, header: bytes, suite: Suite) -> tuple[PackKind, int, bytes]:
    """Kind, key mode and salt."""
    try:
        magic, kind, stored_suite, key_mode, reserved, salt = _HEADER.unpack(header)
        if magic != _MAGIC or stored_suite != suite or reserved != 0:
            raise ValueError
        return PackKind(kind), key_mode, salt
    except (struct.error, ValueError):
        raise _damaged(name, "it has no header of a pack") from None


def _nonce(offset: int) -> bytes:
    return offset.to_bytes(12, "little")


def _associated(keys: KeyRing, kind: PackKind, content_id: bytes, plain_size: int, codec: Codec) -> bytes:
    return b"".join((b"pgkeep/1 pack", keys.family, content_id, struct.pack("<BIB", kind, plain_size, codec)))


def _damaged(name: str, what: str) -> DamageError:
    return DamageError(f"{name} is damaged: {what}", object_name=name)
