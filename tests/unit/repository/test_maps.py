from __future__ import annotations

import contextlib
import hashlib
import random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository.maps import (
    Extent,
    FileEntry,
    cut_listings,
    decode_extents,
    decode_listing,
    encode_entry,
    encode_extents,
)

numbers = st.integers(0, 2**32 - 1)
ids = st.binary(min_size=32, max_size=32)
extents = st.lists(st.builds(Extent, numbers, numbers, numbers, ids), max_size=20)
sizes = st.integers(0, 2**63 - 1)
entries = st.builds(
    FileEntry, st.binary(min_size=1, max_size=255), sizes, numbers, st.integers(-(2**40), 2**40), numbers,
    st.none() | st.binary(max_size=512), st.none() | st.binary(max_size=200), st.none() | ids,
)  # fmt: skip


def listings(names: set[bytes]) -> list[bytes]:
    return list(cut_listings([encode_entry(FileEntry(name, 1, 2, 3, 4, inline=b"x")) for name in sorted(names)]))


def is_cut(name: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "little") % 256 == 0


CUTS = [name for name in (str(number).encode() for number in range(20_000)) if is_cut(name)]
some_names = st.sets(
    st.integers(0, 2000).map(lambda number: str(number).encode()) | st.sampled_from(CUTS), max_size=300
)


@given(extents=extents)
def test_a_page_map_comes_back(extents: list[Extent]) -> None:
    encoded = encode_extents(extents)
    assert len(encoded) == 44 * len(extents)
    assert decode_extents(encoded) == extents


@pytest.mark.parametrize("length", [1, 43, 45, 87])
def test_a_page_map_that_is_cut_off_is_damage(length: int) -> None:
    with pytest.raises(DamageError, match="page map is cut off"):
        decode_extents(bytes(length))


@given(entries=st.lists(entries, max_size=10, unique_by=lambda entry: entry.name))
def test_a_listing_comes_back(entries: list[FileEntry]) -> None:
    entries.sort(key=lambda entry: entry.name)
    found = [decode_listing(listing) for listing in cut_listings([encode_entry(entry) for entry in entries])]
    assert [entry for listing in found for entry in listing] == entries
    assert all(found)


@settings(max_examples=200)
@given(names=some_names, data=st.data())
def test_one_more_name_changes_two_listings_at_most(names: set[bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CUTS) | st.binary(min_size=1, max_size=4))
    before, after = listings(names - {name}), listings(names | {name})
    new = set(after) - set(before)
    assert 1 <= len(new) <= 2
    assert len(set(before) - set(after)) <= 1


@given(names=some_names)
@example(set())
@example(set(CUTS))
def test_listings_end_where_the_hash_of_a_name_says_and_nowhere_else(names: set[bytes]) -> None:
    found = [[entry.name for entry in decode_listing(listing)] for listing in listings(names)]
    assert [name for listing in found for name in listing] == sorted(names)
    for listing in found:
        assert not any(is_cut(name) for name in listing[:-1])
    assert all(is_cut(listing[-1]) for listing in found[:-1])


def test_a_large_directory_has_listings_of_some_256_names() -> None:
    assert 20 <= len(listings({str(number).encode() for number in range(10_000)})) <= 60


def test_trailing_elements_of_an_entry_may_be_left_out_and_more_may_come() -> None:
    entry = FileEntry(b"n", 0, 0o600, 5, 6, inline=b"")
    fields = [b"n", 0, 0o600, 5, 6, b""]
    for written in (fields, [*fields, None], [*fields, None, None], [*fields, None, None, 0, "from a later version"]):
        assert decode_listing(msgspec.msgpack.encode([written])) == [entry]


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc0",
        b"\x91\xc0",
        b"\x91\x90",
        msgspec.msgpack.encode([[b"n", "size", 1, 1, 1]]),
        b"\x90\x90",
        b"\xdd\0\0\0\1",
    ],
)
def test_what_is_no_listing_is_damage(encoded: bytes) -> None:
    with pytest.raises(DamageError, match="a listing cannot be read"):
        decode_listing(encoded)


def test_random_bytes_are_never_worse_than_damage() -> None:
    chance = random.Random(1)
    for _ in range(500):
        with contextlib.suppress(DamageError):
            assert len(decode_listing(b"\x91" + chance.randbytes(chance.randrange(60)))) == 1
