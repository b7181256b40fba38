from __future__ import annotations

import functools
import hashlib
import itertools
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.sealed import (
    ObjectSealer,
    ObjectType,
    check_sealed,
    open_parts,
    read_sealed,
    stream_sealed,
    write_sealed,
)
from pgkeep.repository.store import ObjectExists, ObjectMissing

MIB = 1 << 20
reuse_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.cache
def plain(size: int) -> bytes:
    """Half of it noise, so that chunks are neither tiny nor large."""
    return random.Random(size).randbytes(size // 2) + bytes(size - size // 2)


def sealed(keys: KeyRing, text: bytes, name: str = "o", type_: ObjectType = ObjectType.WAL) -> bytes:
    sealer = ObjectSealer(keys, name, type_, level=1)
    sealer.write(text)
    return b"".join(sealer.finish())


def chunk_ends(data: bytes) -> list[int]:
    position, ends = 48, list[int]()
    while position < len(data) - 32:
        position += 4 + struct.unpack_from("<I", data, position)[0]
        ends.append(position)
    return ends


@pytest.mark.parametrize(
    ("size", "chunks"), [(0, 1), (1, 1), (MIB - 1, 1), (MIB, 1), (MIB + 1, 2), (3 * MIB, 3), (3 * MIB + 7, 4)]
)
def test_objects_come_back_at_sizes_around_the_chunks(store: PosixStore, keys: KeyRing, size: int, chunks: int) -> None:
    write_sealed(store, keys, "a/o", ObjectType.MANIFEST, plain(size))
    assert read_sealed(store, keys, "a/o", ObjectType.MANIFEST) == plain(size)
    pieces = list(stream_sealed(store, keys, "a/o", ObjectType.MANIFEST))
    assert b"".join(pieces) == plain(size)
    assert len(pieces) == len(chunk_ends(store.get("a/o"))) == chunks
    assert max(len(piece) for piece in pieces) <= MIB
    assert check_sealed(store, "a/o") == store.info("a/o").size


@reuse_fixtures
@given(cuts=st.lists(st.integers(0, 2 * MIB + 5), max_size=5))
def test_the_pieces_it_is_written_in_do_not_matter(keys: KeyRing, cuts: list[int]) -> None:
    text = plain(2 * MIB + 5)
    sealer = ObjectSealer(keys, "o", ObjectType.WAL, level=1)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True):
        sealer.write(memoryview(text)[start:end])
    parts = sealer.finish()
    assert open_parts(parts, keys, "o", ObjectType.WAL) == text
    assert len(chunk_ends(b"".join(parts))) == 3


def rehashed(data: bytes) -> bytes:
    """As a forger would leave it: with a check that fits."""
    return data + hashlib.sha256(data).digest()


def test_an_object_cut_at_a_chunk_does_not_open_even_with_a_new_check(keys: KeyRing) -> None:
    data = sealed(keys, plain(3 * MIB))
    for end in [48, *chunk_ends(data)[:-1]]:
        with pytest.raises(DamageError, match="o is damaged"):
            open_parts([rehashed(data[:end])], keys, "o", ObjectType.WAL)


def test_an_object_cut_anywhere_is_damage(keys: KeyRing) -> None:
    data = sealed(keys, b"some text")
    for length in range(len(data)):
        with pytest.raises(DamageError):
            open_parts([data[:length]], keys, "o", ObjectType.WAL)
        if 48 < length < len(data) - 32:
            with pytest.raises(DamageError):
                open_parts([rehashed(data[:length])], keys, "o", ObjectType.WAL)


def test_chunks_that_are_repeated_added_or_exchanged_do_not_open(keys: KeyRing) -> None:
    data = sealed(keys, plain(3 * MIB))
    ends = [48, *chunk_ends(data)]
    head, chunks = data[:48], [data[start:end] for start, end in itertools.pairwise(ends)]
    for order in ([1, 0, 2], [0, 0, 1, 2], [0, 1, 2, 2], [0, 2], [2], [0, 1, 1]):
        with pytest.raises(DamageError):
            open_parts([rehashed(head + b"".join(chunks[number] for number in order))], keys, "o", ObjectType.WAL)


def test_every_flipped_bit_is_found_by_readers_and_by_scrubs_without_a_key(store: PosixStore, keys: KeyRing) -> None:
    data = sealed(keys, b"some text")
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError) as caught:
            open_parts([changed], keys, "o", ObjectType.WAL)
        assert caught.value.object_name == "o"
        if bit % 8 == 0:
            store.put(f"o{bit}", [changed])
            with pytest.raises(DamageError, match=f"o{bit} is damaged"):
                check_sealed(store, f"o{bit}")


def test_every_forged_bit_is_found_even_with_a_new_check(keys: KeyRing) -> None:
    data = sealed(keys, b"some text")[:-32]
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError):
            open_parts([rehashed(bytes(changed))], keys, "o", ObjectType.WAL)


def test_an_object_under_another_name_or_of_another_type_does_not_open(keys: KeyRing) -> None:
    data = sealed(keys, b"text", "clusters/1/wal/00000001/A")
    for name, type_ in [
        ("clusters/1/wal/00000001/B", ObjectType.WAL),
        ("clusters/2/wal/00000001/A", ObjectType.WAL),
        ("clusters/1/wal/00000001/A", ObjectType.MANIFEST),
    ]:
        with pytest.raises(DamageError) as caught:
            open_parts([data], keys, name, type_)
        assert caught.value.object_name == name


def test_an_object_of_another_family_key_or_suite_does_not_open(keys: KeyRing) -> None:
    data = sealed(keys, b"text")
    for stranger in [
        KeyRing(keys.suite, keys.root_key, bytes(16)),
        KeyRing(keys.suite, bytes(32), keys.family),
        KeyRing(Suite(1 - keys.suite), keys.root_key, keys.family),
    ]:
        with pytest.raises(DamageError):
            open_parts([data], stranger, "o", ObjectType.WAL)


def test_what_a_stream_gave_before_a_damaged_chunk_is_good(store: PosixStore, keys: KeyRing) -> None:
    data = bytearray(sealed(keys, plain(3 * MIB)))
    data[chunk_ends(bytes(data))[1] - 1] ^= 1
    store.put("o", [rehashed(bytes(data[:-32]))])
    stream = stream_sealed(store, keys, "o", ObjectType.WAL)
    assert next(stream) == plain(3 * MIB)[:MIB]
    with pytest.raises(DamageError):
        next(stream)


def test_a_sealed_object_is_created_once_and_may_be_missing(store: PosixStore, keys: KeyRing) -> None:
    with pytest.raises(ObjectMissing):
        read_sealed(store, keys, "o", ObjectType.WAL)
    write_sealed(store, keys, "o", ObjectType.WAL, b"1")
    with pytest.raises(ObjectExists):
        write_sealed(store, keys, "o", ObjectType.WAL, b"2")
