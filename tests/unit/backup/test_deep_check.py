"""Which differences the deep check takes for explained, and whose turn it is."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pgkeep.backup.deep_check import UnexplainedPages
from pgkeep.backup.incremental import is_deep_checked
from pgkeep.postgres.pages import PAGE_SIZE, page_checksums
from pgkeep.repository.manifests import DamagedPage
from support.manifests import plain_manifest

PATH = b"base/5/16384.1"
BLOCK = 131072 + 7
START = 0x5000028
OLD = 0x4000000


def page(lsn: int, *, block: int = BLOCK, content: bytes = b"x", torn: bool = False) -> bytes:
    """A page with this LSN, and a checksum that fits its place."""
    data = bytearray(PAGE_SIZE)
    struct.pack_into("<IIHHHHHH", data, 0, lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 100, 200, 8192, 0x2004)
    data[24 : 24 + len(content)] = content
    struct.pack_into("<H", data, 8, int(page_checksums(data, block)[0]) ^ torn)
    return bytes(data)


def watch() -> UnexplainedPages:
    return UnexplainedPages(plain_manifest(start_lsn=START, damaged_pages=[DamagedPage(b"base/5/3", 9)]))


def test_a_page_that_differs_and_whose_lsn_does_not_is_an_alarm() -> None:
    pages = watch()
    pages(PATH, np.array([6, 7], np.uint32), page(START, block=BLOCK - 1) + page(OLD))

    assert pages.found() == [DamagedPage(PATH, BLOCK)]
    (alarm,) = pages.alarms()
    assert alarm.startswith(
        f"base/5/16384.1 block {BLOCK} differs from backup 20261123T000000.000Z-00000000, and no WAL has changed it"
    )


@pytest.mark.parametrize(
    ("path", "number", "data"),
    [
        (PATH, 7, page(START)),
        (PATH, 7, page(START + 1)),
        (PATH, 7, page(0)),
        (PATH, 7, page(1)),
        (PATH, 7, page(OLD, torn=True)),
        (b"base/5/16384_vm", 7, page(OLD, block=7)),
        (b"base/5/16384_fsm", 7, page(OLD, block=7)),
        (b"pg_xact/0000", 7, page(OLD, block=7)),
        (b"base/5/3", 9, page(OLD, block=9)),
        (b"base/5/16384", 0, page(OLD, block=0, content=struct.pack("<I", 0xBA0BABEE))),
    ],
    ids=[
        "changed since the parent began",
        "changed later",
        "new",
        "of an index under construction",
        "torn",
        "visibility map",
        "free space map",
        "no relation",
        "known to be damaged",
        "cache of an SP-GiST index",
    ],
)
def test_a_difference_that_has_a_reason_is_none(path: bytes, number: int, data: bytes) -> None:
    pages = watch()
    pages(path, np.array([number], np.uint32), data)

    assert pages.found() == []
    assert pages.alarms() == []


@pytest.mark.parametrize(("share", "rounds"), [(1 / 30, 30), (0.5, 2), (1, 1)])
def test_every_file_has_its_turn_once_in_so_many_backups(share: float, rounds: int) -> None:
    paths = [b"base/5/%d" % number for number in range(16384, 17384)]
    turns = [{path for path in paths if is_deep_checked(path, number, share)} for number in range(7, 7 + rounds)]

    assert set.union(*turns) == set(paths)
    assert sum(map(len, turns)) == len(paths)
    assert max(map(len, turns)) < 2 * len(paths) / rounds


def test_without_a_share_no_file_has_a_turn() -> None:
    assert not any(is_deep_checked(b"base/5/%d" % number, 3, 0) for number in range(100))
