"""The manifest that a server is given before an incremental base backup: which files the backup before has, and since when.

A server reads of it only the paths, the WAL ranges and the system identifier (src/backend/backup/basebackup_incremental.c),
so that sizes, times and checksums are left at nothing. A file that is not in it is sent whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

from pgkeep.postgres.lsn import LSN

__all__ = ["upload_manifest"]

_PIECE = 32 << 10


def upload_manifest(
    paths: Iterable[bytes], *, system_identifier: int, timeline: int, start_lsn: int, stop_lsn: int
) -> Iterator[bytes]:
    """The manifest, in pieces of some 32 KiB, of a backup with WAL from ``start_lsn`` to ``stop_lsn``.

    ``paths`` are relative to the data directory, each once.
    """
    digest = hashlib.sha256()
    lines = _lines(paths, system_identifier, timeline, LSN(start_lsn), LSN(stop_lsn))
    for piece in _in_pieces(lines):
        digest.update(piece)
        yield piece
    yield b'"Manifest-Checksum": "%s"}\n' % digest.hexdigest().encode()


def _lines(paths: Iterable[bytes], system_identifier: int, timeline: int, start: LSN, stop: LSN) -> Iterator[bytes]:
    yield b'{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": %d,\n"Files": [' % system_identifier
    separator = b"\n"
    for path in paths:
        yield b'%s{ %s, "Size": 0, "Last-Modified": "1970-01-01 00:00:00 GMT" }' % (separator, _path(path))
        separator = b",\n"
    text = f'"Timeline": {timeline}, "Start-LSN": "{start}", "End-LSN": "{stop}"'
    yield b'\n],\n"WAL-Ranges": [\n{ %s }\n],\n' % text.encode()


def _path(path: bytes) -> bytes:
    try:
        return b'"Path": %s' % json.dumps(path.decode(), ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return b'"Encoded-Path": "%s"' % path.hex().encode()


def _in_pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
