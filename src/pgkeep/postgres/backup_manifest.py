"""``backup_manifest``, the list of a base backup's files: read, and written byte for byte as a server writes it.

Written by src/backend/backup/backup_manifest.c, read by src/common/parse_manifest.c; PostgreSQL docs, chapter 77 "Backup
Manifest Format". Version 1 is that of servers before 17; version 2 adds the system identifier.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN

__all__ = [
    "BackupManifest",
    "ManifestFile",
    "ManifestWalRange",
    "crc32c_of",
    "crc32c_text",
    "format_manifest",
    "manifest_lines",
    "parse_manifest",
]

_NAME = "backup_manifest"
_VERSIONS = (1, 2)


class ManifestFile(msgspec.Struct, frozen=True, gc=False):
    """A file of the backup: path relative to the data directory (below ``pg_tblspc`` for a tablespace's), size in bytes.

    ``checksum`` is hexadecimal and None, with ``algorithm``, where the backup was taken without: NONE.
    """

    path: bytes
    size: int
    last_modified: datetime
    algorithm: str | None = None
    checksum: str | None = None


class ManifestWalRange(msgspec.Struct, frozen=True, gc=False):
    """WAL that the backup needs: the bytes from ``start_lsn`` up to ``end_lsn`` of a timeline."""

    timeline: int
    start_lsn: LSN
    end_lsn: LSN


class BackupManifest(msgspec.Struct, frozen=True):
    """A whole manifest; ``system_identifier`` is None in version 1."""

    version: int
    system_identifier: int | None
    files: list[ManifestFile]
    wal_ranges: list[ManifestWalRange]


class _FileLine(msgspec.Struct):
    size: int = msgspec.field(name="Size")
    last_modified: str = msgspec.field(name="Last-Modified")
    path: str | None = msgspec.field(name="Path", default=None)
    encoded_path: str | None = msgspec.field(name="Encoded-Path", default=None)
    algorithm: str | None = msgspec.field(name="Checksum-Algorithm", default=None)
    checksum: str | None = msgspec.field(name="Checksum", default=None)


class _WalRangeLine(msgspec.Struct):
    timeline: int = msgspec.field(name="Timeline")
    start_lsn: str = msgspec.field(name="Start-LSN")
    end_lsn: str = msgspec.field(name="End-LSN")


class _Document(msgspec.Struct):
    # The files stay as they are, slices of the document, until each is looked at: a manifest may list a million.
    version: int = msgspec.field(name="PostgreSQL-Backup-Manifest-Version")
    files: list[msgspec.Raw] = msgspec.field(name="Files")
    wal_ranges: list[_WalRangeLine] = msgspec.field(name="WAL-Ranges")
    system_identifier: int | None = msgspec.field(name="System-Identifier", default=None)


_document_decoder = msgspec.json.Decoder(_Document)
_file_decoder = msgspec.json.Decoder(_FileLine)


def parse_manifest(data: bytes) -> BackupManifest:
    """Read a manifest and check it against its own checksum; raises DamageError naming what is wrong."""
    _check_seal(data)
    try:
        document = _document_decoder.decode(data)
        if document.version not in _VERSIONS or (document.system_identifier is None) != (document.version == 1):
            raise ValueError(f"version {document.version} is not known")
        times: dict[str, datetime] = {}
        return BackupManifest(
            document.version,
            document.system_identifier,
            [_file(_file_decoder.decode(line), times) for line in document.files],
            [
                ManifestWalRange(line.timeline, LSN.parse(line.start_lsn), LSN.parse(line.end_lsn))
                for line in document.wal_ranges
            ],
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise DamageError(f"the {_NAME} cannot be read: {error}", path=_NAME) from None


def format_manifest(manifest: BackupManifest) -> bytes:
    """The whole file; see `manifest_lines` for one that is too large to hold."""
    return b"".join(
        manifest_lines(
            manifest.files,
            manifest.wal_ranges,
            version=manifest.version,
            system_identifier=manifest.system_identifier,
        )
    )


def manifest_lines(
    files: Iterable[ManifestFile],
    wal_ranges: Iterable[ManifestWalRange],
    *,
    version: int = 2,
    system_identifier: int | None = None,
    force_encode: bool = False,
) -> Iterator[bytes]:
    """The file piece by piece, its checksum at the end; ``force_encode`` writes every path in hexadecimal.

    Raises ValueError where version 2 has no system identifier, or version 1 has one.
    """
    if version not in _VERSIONS or (system_identifier is None) != (version == 1):
        raise ValueError(f"no manifest of version {version} with system identifier {system_identifier}")
    digest = hashlib.sha256()
    for piece in _body(files, wal_ranges, version, system_identifier, force_encode=force_encode):
        digest.update(piece)
        yield piece
    yield b'"Manifest-Checksum": "%s"}\n' % digest.hexdigest().encode()


def crc32c_text(value: int) -> str:
    """A CRC-32C as a manifest has it: the hexadecimal of its bytes as they lie in a little-endian server's memory."""
    return value.to_bytes(4, "little").hex()


def crc32c_of(checksum: str) -> int:
    """The CRC-32C that a manifest has as this text; raises ValueError for any other text."""
    data = bytes.fromhex(checksum)
    if len(data) != 4:
        raise ValueError(f"not a CRC-32C: {checksum!r}")
    return int.from_bytes(data, "little")


def _check_seal(data: bytes) -> None:
    """The last line is the SHA-256 of all lines before it."""
    end = data.rfind(b"\n", 0, len(data) - 1) + 1
    try:
        if not data.endswith(b"\n"):
            raise ValueError("its end is missing")
        last: Any = msgspec.json.decode(b"{" + data[end:])
        sealed = last["Manifest-Checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"the {_NAME} does not end with its checksum: {error}", path=_NAME) from None
    digest = hashlib.sha256(memoryview(data)[:end]).hexdigest()
    if not isinstance(sealed, str) or sealed.lower() != digest:
        raise DamageError(f"the {_NAME} was changed: its checksum is {digest}, not {sealed}", path=_NAME)


def _file(line: _FileLine, times: dict[str, datetime]) -> ManifestFile:
    if (line.path is None) == (line.encoded_path is None):
        raise ValueError("a file has no path, or two")
    if (line.algorithm is None) != (line.checksum is None):
        raise ValueError("a file has a checksum without its algorithm, or the other way round")
    path = line.path.encode() if line.path is not None else bytes.fromhex(line.encoded_path or "")
    time = times.get(line.last_modified)
    if time is None:
        time = times[line.last_modified] = _parse_time(line.last_modified)
    algorithm = None if line.algorithm is None else sys.intern(line.algorithm)
    return ManifestFile(path, line.size, time, algorithm, line.checksum)


def _parse_time(text: str) -> datetime:
    if not text.endswith(" GMT"):
        raise ValueError(f"not a time in GMT: {text!r}")
    return datetime.fromisoformat(text.removesuffix(" GMT")).replace(tzinfo=UTC)


def _body(
    files: Iterable[ManifestFile],
    wal_ranges: Iterable[ManifestWalRange],
    version: int,
    system_identifier: int | None,
    *,
    force_encode: bool,
) -> Iterator[bytes]:
    yield b'{ "PostgreSQL-Backup-Manifest-Version": %d,\n' % version
    if system_identifier is not None:
        yield b'"System-Identifier": %d,\n' % system_identifier
    yield b'"Files": ['
    separator = b"\n"
    for file in files:
        yield separator + _format_file(file, force_encode=force_encode)
        separator = b",\n"
    yield b'\n],\n"WAL-Ranges": [\n'
    yield b",\n".join(
        b'{ "Timeline": %d, "Start-LSN": "%s", "End-LSN": "%s" }'
        % (entry.timeline, str(entry.start_lsn).encode(), str(entry.end_lsn).encode())
        for entry in wal_ranges
    )
    yield b"\n],\n"


def _format_file(file: ManifestFile, *, force_encode: bool) -> bytes:
    path = b'"Encoded-Path": "%s"' % file.path.hex().encode()
    if not force_encode:
        with suppress(UnicodeDecodeError):
            path = b'"Path": %s' % json.dumps(file.path.decode(), ensure_ascii=False).encode()
    time = file.last_modified.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S GMT").encode()
    line = b'{ %s, "Size": %d, "Last-Modified": "%s"' % (path, file.size, time)
    if file.algorithm is not None and file.checksum is not None:
        line += b', "Checksum-Algorithm": "%s", "Checksum": "%s"' % (file.algorithm.encode(), file.checksum.encode())
    return line + b" }"
