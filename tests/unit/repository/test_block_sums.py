"""Sums of blocks: the formula of the format, every change seen, kept in packs beside the contents."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository import Repository, open_store
from pgkeep.repository.block_sums import BLOCK_SIZE, BlockSums
from pgkeep.repository.codec import Codec, compress
from pgkeep.repository.contents import Parameters
from pgkeep.repository.keys import KeyFile
from pgkeep.repository.packs import PackBuilder, PackKind, read_block_sums, read_pack_table

KEY = bytes(range(32))
SUMS = BlockSums(KEY)


def sum_by_the_book(block: bytes) -> int:
    words = blake3(b"", key=KEY).digest(length=2 * BLOCK_SIZE)
    total = 0
    for place in range(0, BLOCK_SIZE, 8):
        word = int.from_bytes(block[place : place + 8], "little")
        total += int.from_bytes(words[place : place + 8], "little") * word
        total += int.from_bytes(words[BLOCK_SIZE + place : BLOCK_SIZE + place + 8], "little") * (word >> 32)
    return total % (1 << 64)


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 70 * BLOCK_SIZE + 123])
def test_a_sum_is_what_the_format_says(size: int) -> None:
    data = random.Random(size).randbytes(size)
    blocks = [data[first : first + BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0") for first in range(0, size, BLOCK_SIZE)]
    assert SUMS.of(data).tolist() == [sum_by_the_book(block) for block in blocks]


@given(st.integers(0, BLOCK_SIZE - 1), st.integers(1, 255), st.integers(0, 3))
def test_a_changed_byte_changes_the_sum_of_its_block_alone(place: int, difference: int, block: int) -> None:
    data = bytearray(random.Random(1).randbytes(4 * BLOCK_SIZE))
    before = SUMS.of(data)
    data[block * BLOCK_SIZE + place] ^= difference
    assert (SUMS.of(data) != before).tolist() == [number == block for number in range(4)]


def test_highest_bits_of_words_alone_change_it_too() -> None:
    """The worst case: of differences in highest bits, sums modulo 2^64 keep one bit, and their upper halves the rest."""
    chance = random.Random(2)
    data = bytearray(BLOCK_SIZE)
    seen = {int(SUMS.of(data)[0])}
    for count in range(1, 2000):
        data = bytearray(BLOCK_SIZE)
        for word in chance.sample(range(BLOCK_SIZE // 8), 2):
            data[8 * word + 7] = 0x80
        seen.add(int(SUMS.of(data)[0]))
        assert len(seen) > count * 0.99


def test_other_keys_make_other_sums() -> None:
    assert BlockSums(os.urandom(32)).of(bytes([1]) * BLOCK_SIZE) != SUMS.of(bytes([1]) * BLOCK_SIZE)


@pytest.mark.parametrize("key", [None, KeyFile(bytes(32))], ids=["plain", "encrypted"])
def test_a_pack_of_data_keeps_the_sums_of_its_contents(tmp_path: Path, key: KeyFile | None) -> None:
    parameters = Parameters(cell_size=4 * BLOCK_SIZE, pack_size=1 << 17)
    repository = Repository.create(open_store(str(tmp_path)), key, parameters)
    chance = random.Random(3)
    contents = [chance.randbytes(chance.randrange(1, 4 * BLOCK_SIZE)) for _ in range(40)]
    with repository.writer() as writer:
        ids = [writer.put(PackKind.DATA, content).id for content in contents]
        writer.put(PackKind.META, b"a map")

    reader = repository.reader()
    for content, content_id in zip(contents, ids, strict=True):
        location = reader.locate(content_id)
        sums = reader.block_sums(location.pack)[location.entry.offset]
        assert sums == repository.keys.block_sums.of(content).tobytes()
    packs = {reader.locate(content_id).pack for content_id in ids}
    assert len(packs) > 1
    for pack in packs:
        known = [entry.id for entry in read_pack_table(repository.store, repository.keys, pack)]
        assert set(known) <= set(ids), "what no index should name is not handed out"
    (meta,) = (info.name for info in repository.store.list("packs/meta/"))
    assert reader.block_sums(meta) == {}


def test_a_pack_in_which_one_content_has_no_sums_has_none(tmp_path: Path) -> None:
    repository = Repository.create(open_store(str(tmp_path)), None)
    builder = PackBuilder(repository.keys, PackKind.DATA)
    for number, sums in enumerate((b"12345678", None)):
        plain = bytes([number]) * 100
        builder.add(repository.keys.content_id(plain), compress(plain, 1), 100, Codec.ZSTD, sums)
    name, parts = builder.finish()
    repository.store.put(name, parts)
    assert read_block_sums(repository.store, repository.keys, name) == {}
    assert len(read_pack_table(repository.store, repository.keys, name)) == 2


def test_sums_that_are_not_those_of_the_contents_are_damage(tmp_path: Path) -> None:
    repository = Repository.create(open_store(str(tmp_path)), None)
    builder = PackBuilder(repository.keys, PackKind.DATA)
    builder.add(repository.keys.content_id(b"a"), b"a", 1, Codec.RAW, b"too many of them")
    name, parts = builder.finish()
    repository.store.put(name, parts)
    with pytest.raises(DamageError, match="its sums are not those of its contents"):
        read_block_sums(repository.store, repository.keys, name)
