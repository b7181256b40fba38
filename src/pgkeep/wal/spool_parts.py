"""The files that WAL waits in on this machine: sealed frames, one after the other, each with some bytes of WAL.

.. code-block:: text

    header   56 bytes   magic "pgkeepS1" · suite u8 · 3 zero bytes · timeline u32 · start LSN u64 · salt (32)
    frame i             magic "FRAM" · plain length u32 · durable LSN u64 · CRC-32C of these 16 bytes u32 · sealed bytes

Integers are little-endian. Frame ``i`` is sealed with nonce ``u32 0 · u64 i`` under a key of the part's own (HKDF of the
spool's key and the part's salt), with the associated data ``"pgkeep/1 spool" · family · header · frame header``. A process
that begins anew begins a new part, so no nonce is ever used twice.

The durable LSN says up to where WAL was durable when the frame was written. It tells a tail that a crash tore (nothing in
it was ever acknowledged) from damage: where a frame after the bad one says that the bad one was durable, it is damage.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.repository.crypto import SALT_SIZE, TAG_SIZE, KeyRing, Sealer

__all__ = ["PART_HEADER_SIZE", "PartScan", "PartWriter", "read_part", "scan_part"]

_MAGIC = b"pgkeepS1"
_HEADER = struct.Struct("<8sB3xIQ32s")
PART_HEADER_SIZE = _HEADER.size
_FRAME_MAGIC = b"FRAM"
_FRAME = struct.Struct("<4sIQI")
_CHECKED = 16
"""Bytes of a frame's header that its CRC covers."""

_MOST_PLAIN = 16 << 20
"""More than any frame holds: a length beyond it is damage, not a reason to read."""

_PURPOSE = "spool part"


@dataclass(frozen=True, slots=True)
class PartScan:
    """What a part holds: WAL up to ``end`` in the first ``size`` bytes of the file.

    ``damage`` says what is wrong behind them where that is more than the torn tail of a crash.
    """

    end: LSN
    size: int
    damage: DamageError | None


@dataclass(frozen=True, slots=True)
class _Frame:
    offset: int
    header: bytes
    plain_size: int
    durable: int

    @property
    def end(self) -> int:
        return self.offset + _FRAME.size + self.plain_size + TAG_SIZE


class PartWriter:
    """Writes one part; the file is new. ``end`` is the LSN after the last byte written, ``size`` the file's size."""

    def __init__(self, path: Path, keys: KeyRing, timeline: int, start: LSN) -> None:
        salt = os.urandom(SALT_SIZE)
        self._header = _HEADER.pack(_MAGIC, keys.suite, timeline, start, salt)
        self._sealer = keys.sealer(salt, _PURPOSE)
        self._associated = _associated(keys, self._header)
        self._number = 0
        self.path = path
        self.end = start
        self.size = len(self._header)
        # what is there was torn by a crash before anything in it counted
        path.unlink(missing_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._write([self._header], 0)

    def append(self, plain: Sequence[memoryview], durable: LSN) -> None:
        """Write one frame. Raises OSError; what was half written is gone then, or is seen as torn later."""
        joined = plain[0] if len(plain) == 1 else b"".join(plain)
        checked = struct.pack("<4sIQ", _FRAME_MAGIC, len(joined), durable)
        header = checked + struct.pack("<I", google_crc32c.value(checked))
        sealed = self._sealer.seal(_nonce(self._number), joined, self._associated + header)
        # counted before the write: a nonce whose frame failed half-way is not used again
        self._number += 1
        self._write([header, sealed], self.size)
        self.size += len(header) + len(sealed)
        self.end = LSN(self.end + len(joined))

    def sync(self) -> None:
        """Make it durable. Raises OSError."""
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        """Drop what stands behind ``size``."""
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """No more is written."""
        os.close(self._descriptor)

    def _write(self, parts: list[bytes], offset: int) -> None:
        data = memoryview(b"".join(parts))
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


def read_part(path: Path, keys: KeyRing, first: int, end: int) -> Iterator[bytes]:
    """The bytes ``[first, end)`` of a part, in pieces. Raises DamageError where they are not all there, OSError."""
    with path.open("rb") as file:
        _, start, header, sealer = _open_header(file.read(PART_HEADER_SIZE), keys, path)
        position, offset, number = start, PART_HEADER_SIZE, 0
        while position < end:
            file.seek(offset)
            frame = _read_frame(file.read(_FRAME.size), offset)
            if frame is None:
                raise DamageError(f"the spool file {path} is damaged at byte {offset}", path=str(path))
            if position + frame.plain_size > first:
                sealed = file.read(frame.plain_size + TAG_SIZE)
                plain = _open_frame(frame, number, sealed, sealer, _associated(keys, header), path)
                yield plain[max(first - position, 0) : end - position]
            position += frame.plain_size
            offset, number = frame.end, number + 1


def scan_part(path: Path, keys: KeyRing, timeline: int, start: LSN, *, thorough: bool) -> PartScan | None:
    """Go over the frames of a part; None where a crash tore it before its first frame.

    With ``thorough`` every byte is authenticated; else only the frames' headers are read. Raises DamageError where the
    header is another's, OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(PART_HEADER_SIZE)
        if len(head) < PART_HEADER_SIZE or not any(head):
            return None
        found_timeline, found_start, header, sealer = _open_header(head, keys, path)
        if (found_timeline, found_start) != (timeline, start):
            raise DamageError(f"the spool file {path} holds other WAL than its name says", path=str(path))
        position, offset, number = int(start), PART_HEADER_SIZE, 0
        associated = _associated(keys, header)
        while offset < size:
            file.seek(offset)
            frame = _read_frame(file.read(_FRAME.size), offset)
            if frame is None or frame.end > size:
                break
            if thorough:
                try:
                    _open_frame(frame, number, file.read(frame.plain_size + TAG_SIZE), sealer, associated, path)
                except DamageError:
                    break
            position += frame.plain_size
            offset, number = frame.end, number + 1
    damage = None
    if offset < size and _was_durable(path, offset, position):
        damage = DamageError(f"the spool file {path} is damaged at byte {offset}", path=str(path))
    return PartScan(LSN(position), offset, damage) if position > start or damage is not None else None


def _was_durable(path: Path, offset: int, lsn: int) -> bool:
    """Whether a frame behind ``offset`` says that the byte at ``lsn`` was durable when it was written."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = data.find(_FRAME_MAGIC, offset)
        while found >= 0:
            frame = _read_frame(data[found : found + _FRAME.size], found)
            if frame is not None and frame.durable > lsn:
                return True
            found = data.find(_FRAME_MAGIC, found + 1)
    return False


def _open_header(head: bytes, keys: KeyRing, path: Path) -> tuple[int, int, bytes, Sealer]:
    try:
        magic, suite, timeline, start, salt = _HEADER.unpack(head)
    except struct.error:
        magic, suite, timeline, start, salt = b"", 0, 0, 0, b""
    if magic != _MAGIC or suite != keys.suite:
        raise DamageError(f"{path} is not a file of this spool", path=str(path))
    return timeline, start, head, keys.sealer(salt, _PURPOSE)


def _read_frame(header: bytes, offset: int) -> _Frame | None:
    if len(header) < _FRAME.size:
        return None
    magic, plain_size, durable, check = _FRAME.unpack(header)
    if magic != _FRAME_MAGIC or check != google_crc32c.value(header[:_CHECKED]) or not 0 < plain_size <= _MOST_PLAIN:
        return None
    return _Frame(offset, header, plain_size, durable)


def _open_frame(frame: _Frame, number: int, sealed: bytes, sealer: Sealer, associated: bytes, path: Path) -> bytes:
    try:
        return sealer.open(_nonce(number), sealed, associated + frame.header)
    except DamageError:
        raise DamageError(f"the spool file {path} is damaged at byte {frame.offset}", path=str(path)) from None


def _associated(keys: KeyRing, header: bytes) -> bytes:
    return b"pgkeep/1 spool" + keys.family + header


def _nonce(number: int) -> bytes:
    return struct.pack("<IQ", 0, number)
