"""Which data directory archives a timeline: a clone with archiving left on has the same system identifier, and no right to.

A claim is a sealed JSON object ``clusters/<system identifier>/claims/<timeline, 8 hex digits>/<number, 8 digits>``; the highest
number counts. Whoever pushes a timeline first claims it. A data directory is known by the inode and the birth time of its ``global``
directory: they survive restarts, remounts and other host names, and a copy, file by file, has others. A snapshot of the whole file
system has the same ones: such a clone is not told apart.
"""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pgkeep.errors import BusyError, DamageError
from pgkeep.repository import Repository
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed
from pgkeep.repository.store import ObjectExists

__all__ = ["Claim", "ForeignServerError", "check_claim", "claim_timeline", "data_directory_claim"]

_AT_FDCWD = -100
_STATX_BTIME = 0x800
_STATX_SIZE = 256
_MASK_AT, _BTIME_AT = 0, 80
"""Offsets in struct statx (linux/stat.h): stx_mask, stx_btime (seconds as i64, nanoseconds as u32)."""


class ForeignServerError(BusyError):
    """Another data directory archives this timeline."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A data directory: ``birth`` in nanoseconds, 0 where the file system keeps none; ``host`` and ``path`` are for people."""

    inode: int
    birth: int
    host: str
    path: str

    def is_same(self, other: Claim) -> bool:
        """Whether both are one data directory, wherever it is mounted by now."""
        return (self.inode, self.birth) == (other.inode, other.birth)

    def __str__(self) -> str:
        return f"{self.path} on {self.host}"


def data_directory_claim(data_directory: Path) -> Claim:
    """The claim of a data directory on this machine. Raises OSError."""
    place = data_directory.resolve()
    return Claim((place / "global").stat().st_ino, _birth(place / "global"), os.uname().nodename, str(place))


def check_claim(repository: Repository, system_identifier: int, timeline: int, mine: Claim) -> None:
    """Return where the timeline is ours, having claimed it where nobody had. Raises ForeignServerError, StoreError."""
    while True:
        number, held = _newest(repository, system_identifier, timeline)
        if held is not None:
            break
        try:
            _write(repository, _name(system_identifier, timeline, number + 1), mine)
        except ObjectExists:
            continue
        return
    if not held.is_same(mine):
        raise ForeignServerError(
            f"timeline {timeline} is archived by the server in {held}, and this is {mine}",
            hint="if this is a clone, turn its archive_mode off; if the server moved here, run on it: pgkeep wal claim",
        )


def claim_timeline(repository: Repository, system_identifier: int, timeline: int, mine: Claim) -> Claim | None:
    """Claim a timeline whoever had it; returns who that was. Raises StoreError."""
    while True:
        number, held = _newest(repository, system_identifier, timeline)
        if held is not None and held.is_same(mine):
            return held
        try:
            _write(repository, _name(system_identifier, timeline, number + 1), mine)
        except ObjectExists:
            continue
        return held


def _newest(repository: Repository, system_identifier: int, timeline: int) -> tuple[int, Claim | None]:
    prefix = f"clusters/{system_identifier}/claims/{timeline:08X}/"
    names = [info.name for info in repository.store.list(prefix)]
    if not names:
        return 0, None
    plain = read_sealed(repository.store, repository.keys, names[-1], ObjectType.WAL_CLAIM)
    try:
        return int(names[-1].rpartition("/")[2]), Claim(**json.loads(plain))
    except (ValueError, TypeError) as error:
        raise DamageError(f"{names[-1]} cannot be read: {error}", object_name=names[-1]) from None


def _name(system_identifier: int, timeline: int, number: int) -> str:
    return f"clusters/{system_identifier}/claims/{timeline:08X}/{number:08}"


def _write(repository: Repository, name: str, claim: Claim) -> None:
    plain = json.dumps(asdict(claim), sort_keys=True).encode()
    write_sealed(repository.store, repository.keys, name, ObjectType.WAL_CLAIM, plain)


def _birth(path: Path) -> int:
    """When a file was made, by statx(2); Python's stat has it on no Linux."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, buffer) != 0:
        return 0
    mask = int.from_bytes(buffer.raw[_MASK_AT : _MASK_AT + 4], "little")
    if not mask & _STATX_BTIME:
        return 0
    seconds = int.from_bytes(buffer.raw[_BTIME_AT : _BTIME_AT + 8], "little", signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(buffer.raw[_BTIME_AT + 8 : _BTIME_AT + 12], "little")
