"""Who may be superuser in a data directory, read from its files: a server of our own is asked as somebody.

``pg_authid`` is a shared, mapped catalog: ``global/pg_filenode.map`` names its file (src/backend/utils/cache/relmapper.c).
Its pages and tuples are those of src/include/storage/bufpage.h, src/include/access/htup_details.h and
src/include/catalog/pg_authid.h, the same from PostgreSQL 15 to 18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from pgkeep.errors import DamageError, TargetError

__all__ = ["login_superusers"]

_MAP = "global/pg_filenode.map"
_MAP_MAGIC = 0x592717
_CRC_AT = {512: 504, 524: 520}
"""Where the checksum stands, by the file's size: PostgreSQL 15 has room for 62 mappings and padding, 16 and later for 64."""
_PG_AUTHID = 1260

_PAGE_HEADER = 24
_LOWER_AT, _SIZE_AT = 12, 18
_LP_NORMAL = 1
_HOFF_AT, _INFOMASK_AT, _XMAX_AT = 22, 20, 4
_XMIN_COMMITTED, _XMIN_INVALID, _XMAX_INVALID = 0x0100, 0x0200, 0x0800
_NAME_AT, _NAME_SIZE, _SUPER_AT, _LOGIN_AT, _ROW_SIZE = 4, 64, 68, 72, 76


@dataclass(frozen=True, slots=True)
class _Role:
    name: str
    superuser: bool
    login: bool
    rank: int
    """0 for a row that is surely there, more for one that may be gone, or may never have been committed."""


def login_superusers(data_directory: Path) -> list[str]:
    """Names of superusers that may log in, the likeliest first; each row version on disk counts.

    What the rows say of themselves decides the order only, since a commit may be known in ``pg_xact`` alone, and the files
    of a running server are older than its buffers: the caller tries one after the other. Raises DamageError, TargetError.
    """
    try:
        number = _filenode((data_directory / _MAP).read_bytes())
        roles: list[_Role] = []
        for path in _segments(data_directory / "global" / str(number)):
            roles += _roles(path.read_bytes())
    except OSError as error:
        raise TargetError(f"the roles in {data_directory} cannot be read: {error}") from None
    roles.sort(key=lambda role: role.rank)
    return list(dict.fromkeys(role.name for role in roles if role.superuser and role.login))


def _filenode(data: bytes) -> int:
    """The number of pg_authid's file."""
    crc_at = _CRC_AT.get(len(data))
    if crc_at is None or struct.unpack_from("<I", data)[0] != _MAP_MAGIC:
        raise DamageError(f"{_MAP} is not a relation map of PostgreSQL 15 to 18", path=_MAP)
    (crc,) = struct.unpack_from("<I", data, crc_at)
    if google_crc32c.value(data[:crc_at]) != crc:
        raise DamageError(f"the checksum of {_MAP} does not fit its contents", path=_MAP)
    (count,) = struct.unpack_from("<i", data, 4)
    for index in range(min(count, (crc_at - 8) // 8)):
        oid, number = struct.unpack_from("<II", data, 8 + 8 * index)
        if oid == _PG_AUTHID:
            return int(number)
    raise DamageError(f"{_MAP} has no entry for pg_authid", path=_MAP)


def _segments(first: Path) -> Iterator[Path]:
    yield first
    number = 1
    while (path := first.with_name(f"{first.name}.{number}")).exists():
        yield path
        number += 1


def _roles(data: bytes) -> Iterator[_Role]:
    """The row versions in a file's pages; a page that makes no sense is passed over, as a torn one may."""
    position = 0
    while position + _PAGE_HEADER <= len(data):
        (size_and_version,) = struct.unpack_from("<H", data, position + _SIZE_AT)
        size = size_and_version & 0xFF00 or 8192
        page = data[position : position + size]
        position += size
        (lower,) = struct.unpack_from("<H", page, _LOWER_AT)
        for at in range(_PAGE_HEADER, min(lower, len(page) - 3), 4):
            (item,) = struct.unpack_from("<I", page, at)
            offset, flags, length = item & 0x7FFF, item >> 15 & 3, item >> 17
            if flags == _LP_NORMAL and offset + length <= len(page):
                role = _role(page[offset : offset + length])
                if role is not None:
                    yield role


def _role(row: bytes) -> _Role | None:
    if len(row) <= _HOFF_AT or len(row) < row[_HOFF_AT] + _ROW_SIZE:
        return None
    (infomask,) = struct.unpack_from("<H", row, _INFOMASK_AT)
    (xmax,) = struct.unpack_from("<I", row, _XMAX_AT)
    values = row[row[_HOFF_AT] :]
    name = values[_NAME_AT : _NAME_AT + _NAME_SIZE].split(b"\0")[0]
    frozen_or_committed = bool(infomask & _XMIN_COMMITTED)
    never_committed = bool(infomask & _XMIN_INVALID) and not frozen_or_committed
    replaced = xmax != 0 and not infomask & _XMAX_INVALID
    return _Role(
        # a superuser's name is in the encoding of whichever database it was made in
        name=name.decode("utf-8", "surrogateescape"),
        superuser=values[_SUPER_AT] == 1,
        login=values[_LOGIN_AT] == 1,
        rank=4 * never_committed + 2 * replaced + (not frozen_or_committed),
    )
