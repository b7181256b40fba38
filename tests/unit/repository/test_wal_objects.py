from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pgkeep.errors import DamageError
from pgkeep.repository import Repository
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.store import ObjectMissing
from pgkeep.repository.wal_objects import DifferentWalError, WalArchive, piece_name, split_piece

SEGMENT = "0000000A0000000000000002"
WAL = random.Random(1).randbytes(700_000) + bytes(1 << 20)


@pytest.fixture
def archive(repository: Repository) -> WalArchive:
    """The WAL of one cluster."""
    return repository.wal(7123)


def test_a_segment_comes_back(store: PosixStore, archive: WalArchive) -> None:
    size = archive.put(SEGMENT, WAL)
    assert archive.get(SEGMENT) == b"".join(archive.stream(SEGMENT)) == WAL
    assert [(info.name, info.size) for info in store.list("clusters/")] == [
        (f"clusters/7123/wal/0000000A/{SEGMENT[8:16]}/{SEGMENT}", size)
    ]
    assert size < len(WAL) // 2


def test_a_segment_that_comes_in_pieces_is_the_same_segment(archive: WalArchive) -> None:
    sealer = archive.sealer(SEGMENT)
    for start in range(0, len(WAL), 99_999):
        sealer.write(WAL[start : start + 99_999])
    archive.keep(sealer)
    assert archive.get(SEGMENT) == WAL
    assert archive.put(SEGMENT, WAL) > 0


def test_the_same_segment_again_is_no_error_and_another_is(archive: WalArchive) -> None:
    first = archive.put(SEGMENT, WAL)
    assert archive.put(SEGMENT, WAL) == first
    for other in (WAL[:-1], WAL + b"\0", b"", WAL[:-1] + b"\1"):
        with pytest.raises(DifferentWalError, match=f"{SEGMENT} exists with other content") as caught:
            archive.put(SEGMENT, other)
        assert caught.value.hint
    assert archive.get(SEGMENT) == WAL


def test_a_damaged_segment_is_not_taken_for_the_same_one(
    archive: WalArchive, damage: Callable[[str, int], None]
) -> None:
    archive.put(SEGMENT, WAL)
    damage(archive.object_name(SEGMENT), 5000)
    with pytest.raises(DamageError, match=SEGMENT):
        archive.put(SEGMENT, WAL)


def test_a_segment_that_is_not_there_is_missing(archive: WalArchive) -> None:
    with pytest.raises(ObjectMissing):
        archive.get(SEGMENT)
    with pytest.raises(ObjectMissing):
        next(archive.stream(SEGMENT))


def test_a_piece_lies_beside_its_segment(archive: WalArchive) -> None:
    sealer = archive.sealer(SEGMENT)
    sealer.write(WAL[:1000])
    name = piece_name(SEGMENT, 0, 1000)
    archive.put(name, archive.unseal(sealer))
    archive.put("0000000B.history", b"10\t0/5000000\tno reason\n")
    assert archive.get(name) == WAL[:1000]
    assert [found for found, _ in archive.names()] == [f"{SEGMENT}.00000000-000003e8", "0000000B.history"]
    assert [found for found, _ in archive.names(10)] == [name]
    assert list(archive.names(12)) == []


def test_clusters_do_not_see_each_others_wal(repository: Repository, archive: WalArchive) -> None:
    archive.put(SEGMENT, WAL)
    other = repository.wal(7124)
    assert list(other.names()) == []
    other.put(SEGMENT, b"other")
    assert archive.get(SEGMENT) == WAL


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (SEGMENT, (SEGMENT, 0, None)),
        (f"{SEGMENT}.00000000-000003e8", (SEGMENT, 0, 1000)),
        (f"{SEGMENT}.000003e8-01000000", (SEGMENT, 1000, 16 << 20)),
        ("0000000B.history", ("0000000B.history", 0, None)),
        (f"{SEGMENT}.00000028.backup", (f"{SEGMENT}.00000028.backup", 0, None)),
    ],
)
def test_names_of_pieces_are_taken_apart(name: str, parts: tuple[str, int, int | None]) -> None:
    assert split_piece(name) == parts
    segment, start, end = parts
    assert end is None or piece_name(segment, start, end) == name
