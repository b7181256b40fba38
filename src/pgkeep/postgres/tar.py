"""The tar archives of base backups: read as they stream in, and written as a server writes them.

Format: POSIX ustar with GNU's base-256 numbers (src/port/tar.c, src/include/pgtar.h). Since 15 a server ends each archive
with two blocks of zeros.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import Enum

from pgkeep.errors import DamageError

__all__ = [
    "BLOCK_SIZE",
    "END_OF_ARCHIVE",
    "EndOfMember",
    "Event",
    "MemberType",
    "TarMember",
    "TarReader",
    "padding",
    "tar_header",
]

BLOCK_SIZE = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_SIZE)
_LONGEST_NAME = 99
"""Bytes; a server refuses longer ones."""
_OWNER = b"postgres"


class MemberType(Enum):
    """What a member is; a server sends nothing else. The value is the header's type flag."""

    FILE = b"0"
    DIRECTORY = b"5"
    SYMLINK = b"2"


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member's header. ``name`` is without the slash that ends a directory's; ``mtime`` in seconds, ``mode`` the permissions."""

    name: bytes
    size: int
    mode: int
    mtime: int
    uid: int
    gid: int
    type: MemberType
    linkname: bytes


class EndOfMember:
    """The member is complete; follows the last piece of each, directories and links included."""

    __slots__ = ()


Event = TarMember | memoryview | EndOfMember

_END = EndOfMember()
_ZERO_BLOCK = bytes(BLOCK_SIZE)
_TYPES = {**{kind.value: kind for kind in MemberType}, b"\0": MemberType.FILE}


class TarReader:
    """Cuts one archive, fed in chunks of any size, into its members; nothing but split headers is ever copied."""

    def __init__(self) -> None:
        self._header = b""
        self._in_member = False
        self._left = 0
        self._padding = 0
        self._ended = False

    def feed(self, chunk: bytes | memoryview) -> list[Event]:
        """What the next bytes of the archive bring, in order: for each member its header, its data and its end.

        Data come as slices of ``chunk``, which must not change as long as they are used. Bytes after the end of the
        archive are ignored. Raises DamageError where a header is not one, or of a type that no server sends.
        """
        view = memoryview(chunk)
        size = len(view)
        events: list[Event] = []
        position = 0
        while not self._ended:
            if self._left:
                if position == size:
                    break
                piece = view[position : position + self._left]
                events.append(piece)
                position += len(piece)
                self._left -= len(piece)
            if self._in_member:
                if self._left:
                    break
                events.append(_END)
                self._in_member = False
            if self._padding:
                skipped = min(self._padding, size - position)
                position += skipped
                self._padding -= skipped
            wanted = BLOCK_SIZE - len(self._header)
            if size - position < wanted:
                self._header += view[position:]
                break
            block = self._header + view[position : position + wanted]
            self._header = b""
            position += wanted
            if block == _ZERO_BLOCK:
                self._ended = True
                break
            member = _parse_header(block)
            events.append(member)
            self._in_member = True
            self._left = member.size
            self._padding = -member.size % BLOCK_SIZE
        return events

    def finish(self) -> None:
        """The stream is over: raises DamageError where the archive is not."""
        if not self._ended:
            raise DamageError(
                "a tar archive of the base backup ends too early",
                hint="the connection broke off, or the file was cut; take the backup again",
            )


def tar_header(
    name: bytes,
    *,
    size: int = 0,
    mode: int,
    mtime: int,
    type: MemberType = MemberType.FILE,  # noqa: A002 - the word for it, as in TarMember
    linkname: bytes = b"",
    uid: int = 0,
    gid: int = 0,
) -> bytes:
    """A member's header block, as the server's tarCreateHeader makes it, owned by ``postgres``.

    Follow it with the data and `padding`. Raises ValueError for a name or link of more than 99 bytes: a server refuses
    them too.
    """
    for text in (name, linkname):
        if len(text) > _LONGEST_NAME:
            raise ValueError(f"too long for a tar archive: {text.decode('utf-8', 'replace')!r}")
    is_file = type is MemberType.FILE
    parts = (
        (name if is_file else name.rstrip(b"/") + b"/").ljust(100, b"\0"),
        _format_number(stat.S_IMODE(mode), 8),
        _format_number(uid, 8),
        _format_number(gid, 8),
        _format_number(size if is_file else 0, 12),
        _format_number(mtime, 12),
        b" " * 8,
        type.value,
        linkname.ljust(100, b"\0"),
        b"ustar\x0000",
        _OWNER.ljust(32, b"\0"),
        _OWNER.ljust(32, b"\0"),
        _format_number(0, 8),
        _format_number(0, 8),
    )
    header = b"".join(parts).ljust(BLOCK_SIZE, b"\0")
    return header[:148] + _format_number(sum(header), 8) + header[156:]


def padding(size: int) -> bytes:
    """The zeros that follow a member's data of ``size`` bytes."""
    return bytes(-size % BLOCK_SIZE)


def _parse_header(block: bytes) -> TarMember:
    name = block[:100].split(b"\0", 1)[0]
    if _parse_number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise DamageError(f"the tar header of {name.decode('utf-8', 'replace')!r} does not fit its checksum")
    kind = _TYPES.get(block[156:157])
    if kind is None:
        raise DamageError(
            f"{name.decode('utf-8', 'replace')} is a tar member of type {block[156:157]!r}, which no server sends",
            hint="is this the archive of another program?",
        )
    if block[257:262] == b"ustar" and block[262] == 0 and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return TarMember(
        name=name.rstrip(b"/"),
        size=_parse_number(block[124:136]) if kind is MemberType.FILE else 0,
        mode=_parse_number(block[100:108]),
        mtime=_parse_number(block[136:148]),
        uid=_parse_number(block[108:116]),
        gid=_parse_number(block[116:124]),
        type=kind,
        linkname=block[157:257].split(b"\0", 1)[0],
    )


def _parse_number(field: bytes) -> int:
    """Octal up to a space or NUL, or, after 0x80, the number in base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise DamageError(f"a tar header holds {field!r} where a number should be") from None


def _format_number(number: int, width: int) -> bytes:
    if number < 1 << 3 * (width - 1):
        return b"%0*o " % (width - 1, number)
    return b"\x80" + number.to_bytes(width - 1)
