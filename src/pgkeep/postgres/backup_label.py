"""``backup_label`` and ``tablespace_map``, the two files that make a copy of a data directory a backup.

Written by build_backup_content in src/backend/access/transam/xlogbackup.c and do_pg_backup_start in xlog.c, read by
read_backup_label and read_tablespace_map in xlogrecovery.c; PostgreSQL docs, 25.3.4 "Making a Base Backup".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN

__all__ = [
    "BackupLabel",
    "format_tablespace_map",
    "parse_backup_label",
    "parse_tablespace_map",
    "strip_incremental_lines",
]

_LINE = re.compile(r"([A-Z][A-Z ]*): (.*)", re.ASCII)
_START = re.compile(r"([0-9A-F/]+) \(file ([0-9A-F]{24})\)", re.ASCII)
_INCREMENTAL_LINE = re.compile(rb"^INCREMENTAL FROM (?:LSN|TLI): .*\n?", re.MULTILINE)
_ESCAPED = re.compile(rb"[\n\r\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupLabel:
    """The fields of a ``backup_label``.

    ``start_time`` is the server's text, in its log time zone. The last two are set in an incremental backup only: where
    the backup began that it rests on.
    """

    start_lsn: LSN
    start_segment: str
    checkpoint: LSN
    backup_method: str
    backup_from: str
    start_time: str
    label: str
    start_timeline: int
    incremental_from_lsn: LSN | None = None
    incremental_from_timeline: int | None = None


def parse_backup_label(data: bytes) -> BackupLabel:
    """The fields of a ``backup_label``; raises DamageError naming the one that is missing or unreadable.

    Text that is not UTF-8 survives as surrogates. Where a line comes twice, the first counts, as for the server.
    """
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        match = _LINE.fullmatch(line.removesuffix("\r"))
        if match is not None:
            fields.setdefault(match[1], match[2])
    try:
        start = _START.fullmatch(fields["START WAL LOCATION"])
        if start is None:
            raise ValueError(f"START WAL LOCATION: {fields['START WAL LOCATION']!r}")
        incremental_lsn, incremental_timeline = (fields.get(f"INCREMENTAL FROM {name}") for name in ("LSN", "TLI"))
        return BackupLabel(
            start_lsn=LSN.parse(start[1]),
            start_segment=start[2],
            checkpoint=LSN.parse(fields["CHECKPOINT LOCATION"]),
            backup_method=fields["BACKUP METHOD"],
            backup_from=fields["BACKUP FROM"],
            start_time=fields["START TIME"],
            label=fields["LABEL"],
            start_timeline=int(fields["START TIMELINE"]),
            incremental_from_lsn=None if incremental_lsn is None else LSN.parse(incremental_lsn),
            incremental_from_timeline=None if incremental_timeline is None else int(incremental_timeline),
        )
    except KeyError as error:
        raise DamageError(f"the backup_label has no line {error.args[0]}", path="backup_label") from None
    except ValueError as error:
        raise DamageError(f"the backup_label has an unreadable line: {error}", path="backup_label") from None


def strip_incremental_lines(data: bytes) -> bytes:
    """A ``backup_label`` without the lines that mark an incremental backup: a server refuses to start with them.

    For a backup whose files have been made whole, as pg_combinebackup does it.
    """
    return _INCREMENTAL_LINE.sub(b"", data)


def parse_tablespace_map(data: bytes) -> dict[int, bytes]:
    """OID -> location of each tablespace, in the file's order; raises DamageError for anything but OID, space, path.

    A backslash takes the character after it as it is; an unescaped newline or carriage return ends a line.
    """
    tablespaces: dict[int, bytes] = {}
    line, escaped = bytearray(), False
    for byte in data:
        if escaped or byte not in b"\n\r\\":
            line.append(byte)
            escaped = False
        elif byte == ord("\\"):
            escaped = True
        elif line:
            oid, _, location = bytes(line).partition(b" ")
            if not (oid.isdigit() and location):
                raise _damaged_map(line)
            tablespaces[int(oid)] = location
            line.clear()
    if line or escaped:
        raise _damaged_map(line)
    return tablespaces


def format_tablespace_map(tablespaces: Iterable[tuple[int, bytes]]) -> bytes:
    """The file for these OIDs and locations, as a server writes it: newline, carriage return and backslash escaped."""
    return b"".join(b"%d %s\n" % (oid, _ESCAPED.sub(rb"\\\g<0>", location)) for oid, location in tablespaces)


def _damaged_map(line: bytes | bytearray) -> DamageError:
    text = bytes(line).decode("utf-8", "replace")
    return DamageError(f"the tablespace_map has a line that is no tablespace: {text!r}", path="tablespace_map")
