"""Many contents looked up at once: the same answers as one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.repository.codec import Codec
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.repository.index import Index, write_index
from pgkeep.repository.packs import PackEntry, PackKind, pack_name
from pgkeep.repository.posix import PosixStore

# zeros and 0xff at either end: where ids taken as text or as signed bytes would sort or compare otherwise
_bytes = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
ids = st.builds(
    lambda first, middle, last: bytes([first, middle]) + bytes(28) + bytes([middle, last]), _bytes, _bytes, _bytes
)


@given(segments=st.lists(st.lists(ids, max_size=12, unique=True), max_size=4), unknown=st.lists(ids, max_size=12))
def test_many_are_found_as_each_of_them_is(
    segments: list[list[bytes]], unknown: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = KeyRing(Suite.NONE, bytes(32), bytes(16))
    store = PosixStore(tmp_path_factory.mktemp("index"))
    for number, held in enumerate(segments):
        pack = pack_name(PackKind.DATA, bytes([number] * 32).hex())
        entries = [PackEntry(content, place, 1, 1, Codec.RAW) for place, content in enumerate(held)]
        write_index(store, keys, [(pack, entries)])
    index = Index(store, keys)
    wanted = [content for held in segments for content in held] + unknown

    found = index.find_all(wanted)

    assert found == {content: place for content in wanted if (place := index.find(content)) is not None}
