"""Files of incremental base backups, and the manifest that a server is given for one."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.backup_manifest import parse_manifest
from pgkeep.postgres.incremental_file import PREFIX_SIZE, format_header, header_size, parse_header, real_path
from pgkeep.postgres.upload_manifest import upload_manifest

BLOCK = 8192


@given(truncation=st.integers(0, 1 << 17), blocks=st.lists(st.integers(0, (1 << 17) - 1), unique=True, max_size=5000))
def test_a_header_reads_back(truncation: int, blocks: list[int]) -> None:
    data = format_header(truncation, sorted(blocks), BLOCK)

    assert header_size(data[:PREFIX_SIZE], BLOCK) == len(data)
    header = parse_header(data, BLOCK)
    assert (header.truncation_blocks, header.count, header.size) == (truncation, len(blocks), len(data))
    assert list(memoryview(header.blocks).cast("I")) == sorted(blocks)
    assert len(data) % BLOCK == (0 if blocks else PREFIX_SIZE)


def test_a_file_without_changes_is_twelve_bytes() -> None:
    assert format_header(100, [], BLOCK) == struct.pack("<III", 0xD3AE1F0D, 0, 100)


@pytest.mark.parametrize(
    "data", [bytes(12), struct.pack("<III", 0xD3AE1F0E, 1, 1), struct.pack("<III", 0xD3AE1F0D, 1 << 31, 1)]
)
def test_what_is_no_header_is_damage(data: bytes) -> None:
    with pytest.raises(DamageError, match="does not begin as one"):
        header_size(data, BLOCK)


def test_a_header_that_is_cut_off_is_damage() -> None:
    with pytest.raises(DamageError, match="cut off in its header"):
        parse_header(format_header(1, [0, 1], BLOCK)[:-1], BLOCK)


def test_the_file_behind_a_member_is_known_by_its_name() -> None:
    assert real_path(b"base/5/INCREMENTAL.16384.1") == b"base/5/16384.1"
    assert real_path(b"base/5/16384") is None


@given(names=st.lists(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name), unique=True))
def test_the_manifest_names_every_file_and_is_sealed(names: list[bytes]) -> None:
    """Our own reader of PostgreSQL's manifests takes it."""
    pieces = list(
        upload_manifest(
            iter(names), system_identifier=7711184473974533568, timeline=2, start_lsn=0x28, stop_lsn=0x1_0000_0158
        )
    )

    text = b"".join(pieces)
    body, seal = text.rsplit(b'"Manifest-Checksum": "', 1)
    assert hashlib.sha256(body).hexdigest() == seal[:64].decode()
    manifest = parse_manifest(text)
    assert [file.path for file in manifest.files] == names
    assert manifest.system_identifier == 7711184473974533568
    (wal,) = manifest.wal_ranges
    assert (wal.timeline, int(wal.start_lsn), int(wal.end_lsn)) == (2, 0x28, 0x1_0000_0158)


def test_a_large_manifest_comes_in_small_pieces() -> None:
    paths = (b"base/5/%d" % number for number in range(16384, 30000))
    pieces = list(upload_manifest(paths, system_identifier=1, timeline=1, start_lsn=1, stop_lsn=2))

    assert len(pieces) > 20
    assert max(map(len, pieces)) < 33 << 10
