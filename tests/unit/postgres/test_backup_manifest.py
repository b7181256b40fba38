from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.backup_manifest import (
    BackupManifest,
    ManifestFile,
    ManifestWalRange,
    crc32c_of,
    crc32c_text,
    format_manifest,
    manifest_lines,
    parse_manifest,
)
from pgkeep.postgres.lsn import LSN

SMALL = BackupManifest(
    2,
    7711184473974533568,
    [
        ManifestFile(b"backup_label", 225, datetime(2026, 11, 23, 2, 14, 7, tzinfo=UTC), "CRC32C", "1b2c3d4e"),
        ManifestFile(b"caf\xe9", 0, datetime(2026, 1, 2, tzinfo=UTC)),
    ],
    [ManifestWalRange(1, LSN.parse("0/A000028"), LSN.parse("0/A000120"))],
)
SMALL_BODY = b"""{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 7711184473974533568,
"Files": [
{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-23 02:14:07 GMT", \
"Checksum-Algorithm": "CRC32C", "Checksum": "1b2c3d4e" },
{ "Encoded-Path": "636166e9", "Size": 0, "Last-Modified": "2026-01-02 00:00:00 GMT" }
],
"WAL-Ranges": [
{ "Timeline": 1, "Start-LSN": "0/A000028", "End-LSN": "0/A000120" }
],
"""

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(
    lambda time: time.replace(microsecond=0, tzinfo=UTC)
)
PATHS = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).map(str.encode),
)
CHECKSUMS = st.one_of(
    st.just((None, None)),
    st.tuples(st.just("CRC32C"), st.binary(min_size=4, max_size=4).map(bytes.hex)),
    st.tuples(st.sampled_from(["SHA224", "SHA256", "SHA512"]), st.binary(min_size=28, max_size=64).map(bytes.hex)),
)
FILES = st.builds(
    lambda path, size, time, checksum: ManifestFile(path, size, time, *checksum),
    PATHS,
    st.integers(0, (1 << 63) - 1),
    TIMES,
    CHECKSUMS,
)
LSNS = st.integers(0, (1 << 64) - 1).map(LSN)
WAL_RANGES = st.builds(ManifestWalRange, st.integers(1, (1 << 32) - 1), LSNS, LSNS)


def sealed(body: bytes) -> bytes:
    return body + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(body).hexdigest().encode()


@given(
    st.sampled_from([(1, None), (2, (1 << 64) - 1), (2, 0)]),
    st.lists(FILES, max_size=5),
    st.lists(WAL_RANGES, max_size=3),
)
def test_what_is_written_is_read_back(
    head: tuple[int, int | None], files: list[ManifestFile], wal_ranges: list[ManifestWalRange]
) -> None:
    manifest = BackupManifest(*head, files, wal_ranges)
    assert parse_manifest(format_manifest(manifest)) == manifest


def test_a_manifest_is_written_as_a_server_writes_it() -> None:
    assert format_manifest(SMALL) == sealed(SMALL_BODY)


def test_a_manifest_of_version_1_has_no_system_identifier() -> None:
    text = format_manifest(BackupManifest(1, None, [], []))
    assert text.startswith(b'{ "PostgreSQL-Backup-Manifest-Version": 1,\n"Files": [\n],\n"WAL-Ranges": [\n')


def test_every_path_can_be_encoded() -> None:
    text = b"".join(manifest_lines(SMALL.files, [], version=1, force_encode=True))
    assert b'"Path"' not in text
    assert parse_manifest(text).files == SMALL.files


@pytest.mark.parametrize(("version", "identifier"), [(2, None), (1, 7), (3, 7)])
def test_a_version_that_no_server_writes_is_refused(version: int, identifier: int | None) -> None:
    with pytest.raises(ValueError, match=f"no manifest of version {version}"):
        list(manifest_lines([], [], version=version, system_identifier=identifier))


@given(st.data())
def test_a_changed_manifest_is_noticed(data: st.DataObject) -> None:
    whole = sealed(SMALL_BODY)
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(SMALL_BODY) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamageError):
        parse_manifest(bytes(changed))


@given(st.integers(0, len(sealed(SMALL_BODY)) - 1))
def test_a_cut_manifest_is_noticed(size: int) -> None:
    with pytest.raises(DamageError):
        parse_manifest(sealed(SMALL_BODY)[:size])


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (b'Version": 2', b'Version": 3', "version 3 is not known"),
        (b'"Size": 225', b'"Size": "many"', "many|int"),
        (b'"Path": "backup_label", ', b"", "no path, or two"),
        (b'"Path": "backup_label"', b'"Path": "a", "Encoded-Path": "61"', "no path, or two"),
        (b'"Checksum-Algorithm": "CRC32C", ', b"", "without its algorithm"),
        (b"02:14:07 GMT", b"02:14:07 CET", "not a time in GMT"),
        (b"636166e9", b"63616", "hexadecimal"),
        (b"0/A000028", b"somewhere", "not an LSN"),
    ],
)
def test_a_manifest_that_cannot_be_is_named(old: bytes, new: bytes, named: str) -> None:
    with pytest.raises(DamageError, match=named):
        parse_manifest(sealed(SMALL_BODY.replace(old, new)))


def test_a_crc32c_is_printed_in_memory_order() -> None:
    value = google_crc32c.value(b"123456789")
    assert value == 0xE3069283
    assert crc32c_text(value) == "839206e3"
    assert crc32c_of("839206e3") == value


@pytest.mark.parametrize("text", ["", "839206", "839206e3e3", "nonsense"])
def test_what_is_no_crc32c_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        crc32c_of(text)
