from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository.codec import Codec, compress, decompress
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.repository.packs import PackBuilder, PackEntry, PackKind, PackReader, read_pack_table
from pgkeep.repository.posix import PosixStore

FAMILY = bytes(range(16))
RINGS = {
    Suite.AES_256_GCM: KeyRing(Suite.AES_256_GCM, bytes(range(32)), FAMILY),
    Suite.NONE: KeyRing.unencrypted(FAMILY),
}
rings = st.sampled_from(list(RINGS.values()))
contents = st.lists(st.binary(max_size=200) | st.integers(0, 2000).map(bytes), max_size=6)


def build(keys: KeyRing, plains: list[bytes], kind: PackKind = PackKind.DATA) -> tuple[str, bytes, list[PackEntry]]:
    builder = PackBuilder(keys, kind)
    for plain in plains:
        packed = compress(plain, 1)
        if len(packed) < len(plain):
            builder.add(keys.content_id(plain), packed, len(plain), Codec.ZSTD)
        else:
            builder.add(keys.content_id(plain), plain, len(plain), Codec.RAW)
    name, parts = builder.finish()
    return name, b"".join(parts), builder.entries


def sealed_bytes(pack: bytes, entry: PackEntry) -> bytes:
    return pack[entry.offset : entry.offset + entry.stored_size]


@given(ring=rings, plains=contents, kind=st.sampled_from(PackKind), data=st.data())
def test_contents_come_back_in_any_order(
    ring: KeyRing, plains: list[bytes], kind: PackKind, data: st.DataObject
) -> None:
    name, pack, entries = build(ring, plains, kind)
    digest = hashlib.sha256(pack).hexdigest()
    assert name == f"packs/{kind.name.lower()}/{digest[:2]}/{digest}"
    reader = PackReader(ring, name, pack[:44])
    for number in data.draw(st.permutations(range(len(plains)))):
        assert reader.open(entries[number], sealed_bytes(pack, entries[number])) == plains[number]


@settings(max_examples=400)
@given(ring=rings, position=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_never_gives_wrong_bytes(ring: KeyRing, position: float) -> None:
    plains = [b"first" * 40, random.Random(1).randbytes(60), b"", bytes(500)]
    name, pack, entries = build(ring, plains)
    bit = int(position * len(pack) * 8)
    changed = bytearray(pack)
    changed[bit // 8] ^= 1 << bit % 8
    assert hashlib.sha256(changed).hexdigest() != name.rpartition("/")[2]
    in_header = bit // 8 < 44
    for entry, plain in zip(entries, plains, strict=True):
        covered = entry.offset <= bit // 8 < entry.offset + entry.stored_size
        if covered or in_header:
            with pytest.raises(DamageError) as caught:
                PackReader(ring, name, bytes(changed[:44])).open(entry, sealed_bytes(bytes(changed), entry))
            assert caught.value.object_name == name
        else:
            reader = PackReader(ring, name, bytes(changed[:44]))
            assert reader.open(entry, sealed_bytes(bytes(changed), entry)) == plain


def test_every_flipped_bit_of_the_table_and_footer_is_found(keys: KeyRing, store: PosixStore) -> None:
    _, pack, entries = build(keys, [b"one", b"two"])
    start = entries[-1].offset + entries[-1].stored_size
    for bit in [*range(44 * 8), *range(start * 8, len(pack) * 8)]:
        changed = bytearray(pack)
        changed[bit // 8] ^= 1 << bit % 8
        path = f"packs/data/x/{bit}"
        store.put(path, [changed])
        with pytest.raises(DamageError) as caught:
            read_pack_table(store, keys, path)
        assert caught.value.object_name == path
        (store.root / path).unlink()


def test_a_pack_says_what_it_holds(keys: KeyRing, store: PosixStore) -> None:
    name, pack, entries = build(keys, [b"one", b"", bytes(1000)], PackKind.META)
    store.put(name, [pack])
    assert read_pack_table(store, keys, name) == entries
    assert [entry.plain_size for entry in entries] == [3, 0, 1000]
    assert [entry.codec for entry in entries] == [Codec.RAW, Codec.RAW, Codec.ZSTD]
    reader = PackReader.of(store, keys, name)
    assert reader.open(entries[0], sealed_bytes(pack, entries[0])) == b"one"


def test_an_empty_pack_has_an_empty_table(keys: KeyRing, store: PosixStore) -> None:
    name, pack, _ = build(keys, [])
    store.put(name, [pack])
    assert read_pack_table(store, keys, name) == []


def test_a_pack_cut_off_anywhere_has_no_table(keys: KeyRing, store: PosixStore) -> None:
    _, pack, _ = build(keys, [b"one", b"two"])
    for length in range(len(pack)):
        store.put(f"packs/{length}", [pack[:length]])
        with pytest.raises(DamageError, match="is damaged"):
            read_pack_table(store, keys, f"packs/{length}")


Change = Callable[[PackEntry, PackEntry], PackEntry]


@pytest.mark.parametrize(
    "change",
    [
        lambda one, two: PackEntry(two.id, one.offset, one.stored_size, one.plain_size, one.codec),
        lambda one, two: PackEntry(one.id, two.offset, one.stored_size, one.plain_size, one.codec),
        lambda one, two: PackEntry(one.id, one.offset, one.stored_size, one.plain_size + 1, one.codec),
        lambda one, two: PackEntry(one.id, one.offset, one.stored_size, one.plain_size, Codec.ZSTD),
        lambda one, two: PackEntry(one.id, one.offset, one.stored_size - 1, one.plain_size, one.codec),
    ],
    ids=["id", "offset", "plain size", "codec", "stored size"],
)
def test_swapped_or_changed_entries_are_damage(keys: KeyRing, change: Change) -> None:
    name, pack, entries = build(keys, [b"one", b"two"])
    entry = change(entries[0], entries[1])
    with pytest.raises(DamageError):
        PackReader(keys, name, pack[:44]).open(entry, sealed_bytes(pack, entry))


def test_contents_swapped_between_places_of_a_pack_are_damage(keys: KeyRing) -> None:
    name, pack, entries = build(keys, [b"one", b"two"])
    with pytest.raises(DamageError):
        PackReader(keys, name, pack[:44]).open(entries[0], sealed_bytes(pack, entries[1]))


def test_a_pack_of_another_family_or_kind_or_key_does_not_open(keys: KeyRing) -> None:
    name, pack, entries = build(keys, [b"one"])
    sealed = sealed_bytes(pack, entries[0])
    strangers = [
        KeyRing(keys.suite, keys.root_key, bytes(16)),
        KeyRing(keys.suite, bytes(32), keys.family),
        KeyRing(Suite(1 - keys.suite), keys.root_key, keys.family),
    ]
    for stranger in strangers:
        with pytest.raises(DamageError):
            PackReader(stranger, name, pack[:44]).open(entries[0], sealed)
    as_meta = pack[:8] + bytes([PackKind.META]) + pack[9:44]
    with pytest.raises(DamageError):
        PackReader(keys, name, as_meta).open(entries[0], sealed)


def test_a_content_that_is_not_what_its_id_names_is_damage(keys: KeyRing) -> None:
    builder = PackBuilder(keys, PackKind.DATA)
    entry = builder.add(keys.content_id(b"one"), b"two", 3, Codec.RAW)
    _, parts = builder.finish()
    with pytest.raises(DamageError, match="is not what its id names"):
        PackReader(keys, "p", parts[0]).open(entry, parts[1])


def test_two_packs_of_the_same_contents_share_no_key(keys: KeyRing) -> None:
    assert build(keys, [b"one"])[0] != build(keys, [b"one"])[0]


@given(plain=st.binary(max_size=2000) | st.integers(0, 1 << 20).map(bytes), level=st.integers(1, 5))
def test_what_is_compressed_comes_back(plain: bytes, level: int) -> None:
    packed = compress(memoryview(plain), level)
    assert decompress(packed, Codec.ZSTD, len(plain) or 1) == plain
    assert decompress(memoryview(plain), Codec.RAW, 0) == plain


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"x",
        compress(b"plain", 1)[:-1],
        compress(b"plain", 1) + b"x",
        compress(bytes(1001), 1),
        struct.pack("<I", 0xFD2FB528),
    ],
    ids=["empty", "no frame", "cut off", "longer", "more than allowed", "magic alone"],
)
def test_a_frame_that_does_not_fit_is_damage(stored: bytes) -> None:
    with pytest.raises(DamageError, match="a compressed content"):
        decompress(stored, Codec.ZSTD, 1000)
