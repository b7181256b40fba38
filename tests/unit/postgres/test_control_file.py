from __future__ import annotations

import struct

import google_crc32c
import pytest

from pgkeep.errors import DamageError
from pgkeep.postgres.control_file import CONTROL_FILE_SIZE, ClusterState, parse_control_file

STATE_OFFSET = 16
# Where the checksum of ControlFileData lies, by PG_CONTROL_VERSION.
CRC_OFFSETS = {1300: 288, 1700: 288, 1800: 292}


def control_file(version: int = 1800, state: int = 6) -> bytes:
    """A control file whose fields are 0, but for these and the checksum."""
    data = bytearray(CONTROL_FILE_SIZE)
    struct.pack_into("<QII", data, 0, 7711184473974533568, version, 202506291)
    struct.pack_into("<I", data, STATE_OFFSET, state)
    end = CRC_OFFSETS[version]
    struct.pack_into("<I", data, end, google_crc32c.value(bytes(data[:end])))
    return bytes(data)


@pytest.mark.parametrize("version", CRC_OFFSETS)
def test_each_version_is_read(version: int) -> None:
    control = parse_control_file(control_file(version))
    assert (control.system_identifier, control.control_version) == (7711184473974533568, version)
    assert control.state is ClusterState.IN_PRODUCTION
    assert not control.data_checksums


@pytest.mark.parametrize("version", CRC_OFFSETS)
@pytest.mark.parametrize("byte", [0, 15, 40, 200, 287])
def test_a_flipped_bit_is_noticed(version: int, byte: int) -> None:
    data = bytearray(control_file(version))
    data[byte] ^= 4
    with pytest.raises(DamageError, match="checksum of global/pg_control does not fit"):
        parse_control_file(bytes(data))


def test_an_unknown_version_is_named() -> None:
    data = bytearray(control_file())
    struct.pack_into("<I", data, 8, 1900)
    with pytest.raises(DamageError, match="version 1900, and only 1300, 1700, 1800 are known"):
        parse_control_file(bytes(data))


@pytest.mark.parametrize("size", [0, 11, 295])
def test_a_cut_file_is_damage(size: int) -> None:
    with pytest.raises(DamageError, match=f"has only {size} bytes"):
        parse_control_file(control_file()[:size])


def test_an_unknown_state_is_damage() -> None:
    with pytest.raises(DamageError, match="unknown state: 7"):
        parse_control_file(control_file(state=7))
