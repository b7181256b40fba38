"""Holds what was stored against what the server says it sent: its ``backup_manifest``, line by line.

The manifest is JSON with one file a line (src/backend/backup/backup_manifest.c), so it need not be held whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import msgspec

from pgkeep.errors import DamageError
from pgkeep.postgres.backup_manifest import crc32c_of

__all__ = ["ServerManifestCheck"]

_SEAL = re.compile(rb'"Manifest-Checksum": "([0-9a-f]{64})"\}\n?')


class _Line(msgspec.Struct):
    size: int = msgspec.field(name="Size")
    path: str | None = msgspec.field(name="Path", default=None)
    encoded_path: str | None = msgspec.field(name="Encoded-Path", default=None)
    checksum: str | None = msgspec.field(name="Checksum", default=None)


_decoder = msgspec.json.Decoder(_Line)


class ServerManifestCheck:
    """Fed with the manifest's bytes, compares each file with the size and CRC-32C that ``lookup`` knows of its path.

    A path is that under which the file was sent: in an incremental backup, often one that begins with ``INCREMENTAL.``.
    """

    def __init__(self, lookup: Callable[[bytes], tuple[int, int | None] | None]) -> None:
        self._lookup = lookup
        self._rest = b""
        self._digest = hashlib.sha256()
        self._files = 0
        self._seal: str | None = None

    def feed(self, data: bytes) -> None:
        """More of the manifest. Raises DamageError for the first file that differs."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._take(line)

    def finish(self, files: int) -> None:
        """The manifest is complete: it must be whole, and name exactly as many files as were stored."""
        seal = _SEAL.fullmatch(self._rest)
        if seal is not None:
            self._seal = seal[1].decode()
        if self._seal is None or self._digest.hexdigest() != self._seal:
            raise DamageError("the backup_manifest that the server sent is not whole")
        if files != self._files:
            raise DamageError(f"the server sent {self._files} files and {files} were stored")

    def _take(self, line: bytes) -> None:
        seal = _SEAL.fullmatch(line)
        if seal is not None:
            self._seal = seal[1].decode()
            return
        self._digest.update(line + b"\n")
        if not line.startswith((b'{ "Path"', b'{ "Encoded-Path"')):
            return
        file = _decoder.decode(line.rstrip(b","))
        path = bytes.fromhex(file.encoded_path or "") if file.path is None else file.path.encode()
        self._files += 1
        size, crc32c = self._lookup(path) or (None, None)
        crc = None if file.checksum is None else crc32c_of(file.checksum)
        if size != file.size or crc not in {None, crc32c}:
            raise DamageError(
                f"{path.decode('utf-8', 'replace')} did not arrive as the server sent it",
                hint="the network or this machine's memory changed bytes; run the backup again",
                path=path.decode("utf-8", "replace"),
            )
