"""The directories that a restore makes: whether they may be touched, what is moved aside, and the room they need."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from pgkeep.errors import TargetError, UsageError
from pgkeep.postgres.account import server_account
from pgkeep.postgres.running import owner_of
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.units import format_size, utc_now

__all__ = [
    "INCOMPLETE_MARKER",
    "Locator",
    "aside",
    "is_occupied",
    "marked_identifier",
    "marker_text",
    "needed_room",
    "refuse_overlap",
    "refuse_owner",
    "refuse_repository",
    "refuse_unusable",
]

INCOMPLETE_MARKER = "pgkeep.restore-incomplete"
"""Stands in a data directory and in its tablespaces from a restore's first byte to its last."""

_MARKED = re.compile(r"system identifier (\d{1,20}) ", re.ASCII)
_TABLESPACES = b"pg_tblspc/"

_MARGIN = 64 << 20
"""Room that a server wants to start at all: WAL it writes, control and log files."""


class Locator:
    """Where a path of a backup lies on this machine; ``tablespaces`` maps OIDs to their places."""

    def __init__(self, target: Path, tablespaces: Mapping[int, str]) -> None:
        self._target = os.fsencode(target)
        self._tablespaces = {b"%d" % oid: os.fsencode(place) for oid, place in tablespaces.items()}

    def __call__(self, path: bytes) -> bytes:
        if path.startswith(_TABLESPACES):
            oid, _, tail = path[len(_TABLESPACES) :].partition(b"/")
            place = self._tablespaces.get(oid)
            if place is not None:
                return os.path.join(place, tail) if tail else place
        return os.path.join(self._target, path) if path else self._target

    def link(self, oid: int) -> bytes:
        """Where the link to a tablespace stands."""
        return os.path.join(self._target, _TABLESPACES, b"%d" % oid)


def marker_text(system_identifier: int) -> bytes:
    """What the marker says: of which cluster the half is that it stands in."""
    return f"pgkeep is restoring system identifier {system_identifier} here, or has not come to the end\n".encode()


def marked_identifier(place: Path) -> int | None:
    """The system identifier in a marker; 0 where it says none, None where there is no marker."""
    try:
        text = (place / INCOMPLETE_MARKER).read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    match = _MARKED.search(text)
    return int(match[1]) if match else 0


def refuse_overlap(places: Sequence[Path]) -> None:
    """No two of the directories may be one, or lie in each other. Raises UsageError."""
    for number, place in enumerate(places):
        for other in places[number + 1 :]:
            if place == other or place in other.parents or other in place.parents:
                raise UsageError(
                    f"{place} and {other} lie within each other", hint="give each tablespace a place of its own"
                )


def refuse_repository(place: Path, repository: Repository) -> None:
    """A target may not be the repository, nor hold it, nor lie in it: it would be moved aside. Raises TargetError."""
    scheme, _, path = repository.store.url.partition("://")
    if scheme != "file":
        return
    root, real = Path(unquote(path)).resolve(), place.resolve()
    if root == real or root in real.parents or real in root.parents:
        raise TargetError(f"{place} and the repository at {root} lie within each other", hint="name another directory")


def refuse_unusable(place: Path) -> None:
    """A directory that a server uses, or that cannot be written or moved aside. Raises TargetError."""
    if place.exists() and not place.is_dir():
        raise TargetError(f"{place} is not a directory", hint="name another --target-dir")
    pid_file = place / "postmaster.pid"
    if pid_file.exists() and _is_live(pid_file):
        raise TargetError(
            f"a PostgreSQL server runs on {place}",
            hint=f"stop it first: pg_ctl -D {place} stop; or name another --target-dir",
        )
    directory = _first_written(place)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise TargetError(
            f"{directory} cannot be written by this user", hint=f"run as its owner, or: chown <user> {directory}"
        )
    if is_occupied(place) and os.path.ismount(place):
        raise TargetError(
            f"{place} is a mount point with something in it, which cannot be moved aside",
            hint="empty it yourself, or restore into a directory below it",
        )


def refuse_owner(directory: Path) -> None:
    """What is restored must belong to whom the old data belongs to, or its server cannot start on it. Raises TargetError."""
    owner, account = owner_of(directory), server_account()
    ours = os.geteuid() if account is None else account.uid
    if owner is not None and owner.uid != ours:
        raise TargetError(
            f"{directory} belongs to {owner.name}, and what this user restores would not",
            hint=f"run pgkeep as {owner.name}"
            if account is None
            else f"set PGKEEP_SERVER_ACCOUNT={owner.name} in the environment",
        )


def _is_live(pid_file: Path) -> bool:
    """Whether the process that postmaster.pid names is there (its first line: src/include/utils/pidfile.h)."""
    try:
        os.kill(int(pid_file.read_text().split("\n")[0]), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True


def is_occupied(place: Path) -> bool:
    """Whether there is anything that a restore must not touch; a restore that broke off is nothing of the kind."""
    try:
        names = os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise TargetError(
            f"{place} cannot be read: {error.strerror}", hint="run as its owner, or name another directory"
        ) from None
    return bool(names) and INCOMPLETE_MARKER not in names


def aside(place: Path) -> Path:
    """A name that nothing has: rename(2) would silently replace an empty directory."""
    name = f"{place.name}.before-{utc_now():%Y%m%dT%H%M%SZ}"
    candidates = (place.with_name(name + suffix) for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(path for path in candidates if not os.path.lexists(path))


def _first_written(place: Path) -> Path:
    """The directory that a restore writes in first: the place itself where it is there and free, else its nearest parent."""
    if place.is_dir() and not is_occupied(place):
        return place
    return _existing_parent(place)


def _existing_parent(place: Path) -> Path:
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    return parent


def needed_room(
    manifest: Manifest,
    target: Path,
    tablespaces: Mapping[int, str],
    wal_bytes: int,
    reused: Mapping[int, int] | None = None,
) -> dict[str, tuple[int, int]]:
    """For each file system: one of the places there, with what is free and what is needed, in bytes.

    ``tablespaces`` maps OIDs to new places; ``wal_bytes`` is the most WAL that lies in the target at once; ``reused`` maps
    devices to the bytes of files there that are overwritten or removed. Raises TargetError where there is not enough.
    """
    sizes = {b"pg_tblspc/%d" % oid: 0 for oid in tablespaces}
    own = wal_bytes + _MARGIN
    for directory in manifest.directories:
        root = b"/".join(directory.path.split(b"/")[:2])
        if root in sizes:
            sizes[root] += directory.size
        else:
            own += directory.size
    needs = [(target, own)]
    needs += [(Path(new), sizes[b"pg_tblspc/%d" % oid]) for oid, new in tablespaces.items()]
    by_device: dict[int, tuple[Path, int]] = {}
    for place, size in needs:
        device = os.stat(_first_written(place)).st_dev
        first, before = by_device.get(device, (place, 0))
        by_device[device] = first, before + size
    room = {}
    for device, (place, needed) in by_device.items():
        needed = max(needed - (reused or {}).get(device, 0), 0)
        free = shutil.disk_usage(_first_written(place)).free
        if free < needed:
            raise TargetError(
                f"no room at {place}: {format_size(needed)} are needed, {format_size(free)} are free",
                hint="free room there, or name another --target-dir",
            )
        room[str(place)] = free, needed
    return room
