"""The plan of a restore: everything that can be known before the disk is touched."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import msgspec

from pgkeep.errors import NotFoundError, StoreError, TargetError, UsageError
from pgkeep.postgres.binaries import find_binaries
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.units import format_size, format_time, utc_now

__all__ = ["INCOMPLETE_MARKER", "RestorePlan", "RestoreRequest", "TablespacePlan", "make_plan", "refuse_repository"]

INCOMPLETE_MARKER = "pgkeep.restore-incomplete"
"""Stands in a data directory and in its tablespaces from a restore's first byte to its last."""

_HIGHEST_PORT = 65535

_MARGIN = 64 << 20
"""Room that a server wants to start at all: WAL it writes, control and log files."""


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore is to do.

    ``tablespaces`` maps old locations to new ones. ``keep_archiving`` leaves the origin's archiving and standby settings
    on. ``settings`` are written into the copy. ``jobs`` worker threads, all processors where None.
    """

    cluster: str | None = None
    backup: str = "latest"
    target: str
    tablespaces: dict[str, str] = {}
    keep_archiving: bool = False
    settings: dict[str, str] = {}
    start: bool = False
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class TablespacePlan:
    """Where a tablespace was, and where it goes."""

    oid: int
    old: str
    new: str
    size: int


@dataclass(frozen=True)
class RestorePlan:
    """A restore that can be done. Sizes in bytes; ``room`` maps a place to what is free and what is needed there."""

    request: RestoreRequest
    manifest: Manifest
    target: Path
    tablespaces: list[TablespacePlan]
    room: dict[str, tuple[int, int]]
    moved_aside: list[tuple[str, str]]
    server: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def major(self) -> int:
        """The major version of PostgreSQL that the backup needs."""
        return self.manifest.server_version // 10000

    @property
    def places(self) -> list[Path]:
        """The directories that are made: the target, then its tablespaces."""
        return [self.target, *(Path(tablespace.new) for tablespace in self.tablespaces)]


def make_plan(request: RestoreRequest, repository: Repository) -> RestorePlan:
    """Prove on paper that a restore can be done.

    Raises NotFoundError, TargetError (in use, no room, a tablespace without a place, the repository itself), UsageError. Touches nothing.
    """
    _refuse_impossible(request)
    manifest = repository.catalog.find(request.backup, request.cluster)
    target = Path(os.path.abspath(request.target))
    tablespaces = _tablespaces(manifest, request.tablespaces)
    places = [target, *(Path(tablespace.new) for tablespace in tablespaces)]
    _refuse_overlap(places)
    for place in places:
        refuse_repository(place, repository)
    moved = [(str(place), str(_aside(place))) for place in places if _is_occupied(place)]
    for place in places:
        _refuse_unusable(place)
    _check_wal(manifest, repository)
    notes = []
    server = None
    try:
        server = str(find_binaries(manifest.server_version // 10000).bindir)
    except NotFoundError as error:
        if request.start:
            raise
        notes.append(f"{error}; the files can be restored, and started where that version is installed")
    if not any(directory.path == b"" and directory.files for directory in manifest.directories):
        raise NotFoundError(f"backup {manifest.id} has no files")
    if manifest.damaged_pages:
        notes.append(f"{len(manifest.damaged_pages)} pages were damaged on the server when this backup was taken")
    return RestorePlan(
        request=request,
        manifest=manifest,
        target=target,
        tablespaces=tablespaces,
        room=_room(manifest, target, tablespaces),
        moved_aside=moved,
        server=server,
        notes=notes,
    )


def _refuse_impossible(request: RestoreRequest) -> None:
    if not request.target:
        # as a path it would be the working directory
        raise UsageError("the target directory has no name", hint="name one: --target-dir DIR")
    port = request.settings.get("port", "5432")
    if re.fullmatch(r"[0-9]{1,5}", port) is None or not 1 <= int(port) <= _HIGHEST_PORT:
        raise UsageError(f"not a port: {port}", hint=f"a number from 1 to {_HIGHEST_PORT}")


def _tablespaces(manifest: Manifest, mapping: dict[str, str]) -> list[TablespacePlan]:
    known = {os.fsdecode(tablespace.location): tablespace for tablespace in manifest.tablespaces}
    for old, new in mapping.items():
        if old.rstrip("/") not in known:
            raise UsageError(
                f"the backup has no tablespace at {old}",
                hint="it has " + (", ".join(known) or "none but the data directory's own"),
            )
        if not new.startswith("/"):
            raise UsageError(f"a tablespace's place must be an absolute path: {new}")
    wanted = {old.rstrip("/"): new.rstrip("/") for old, new in mapping.items()}
    plans = []
    for location, tablespace in known.items():
        if location not in wanted and _is_occupied(Path(location)):
            raise TargetError(
                f"tablespace {tablespace.oid} was at {location}, and there is something there",
                hint=f"give it another place: --tablespace {location}=/new/place",
            )
        plans.append(TablespacePlan(tablespace.oid, location, wanted.get(location, location), tablespace.size))
    return plans


def _refuse_overlap(places: list[Path]) -> None:
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


def _refuse_unusable(place: Path) -> None:
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
    if _is_occupied(place) and os.path.ismount(place):
        raise TargetError(
            f"{place} is a mount point with something in it, which cannot be moved aside",
            hint="empty it yourself, or restore into a directory below it",
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


def _is_occupied(place: Path) -> bool:
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


def _aside(place: Path) -> Path:
    """A name that nothing has: rename(2) would silently replace an empty directory."""
    name = f"{place.name}.before-{utc_now():%Y%m%dT%H%M%SZ}"
    candidates = (place.with_name(name + suffix) for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(path for path in candidates if not os.path.lexists(path))


def _first_written(place: Path) -> Path:
    """The directory that a restore writes in first: the place itself where it is there and free, else its nearest parent."""
    if place.is_dir() and not _is_occupied(place):
        return place
    return _existing_parent(place)


def _existing_parent(place: Path) -> Path:
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    return parent


def _check_wal(manifest: Manifest, repository: Repository) -> None:
    there = {name for name, _ in repository.wal(manifest.system_identifier).names(manifest.timeline)}
    missing = [name for name in manifest.wal.segments if name not in there]
    if missing:
        raise StoreError(
            f"backup {manifest.id} needs WAL that the repository has lost: {', '.join(missing[:3])}",
            hint="restore another backup: pgkeep list",
        )


def _room(manifest: Manifest, target: Path, tablespaces: list[TablespacePlan]) -> dict[str, tuple[int, int]]:
    wal = len(manifest.wal.segments) * manifest.wal.segment_size
    sizes = {b"pg_tblspc/%d" % tablespace.oid: 0 for tablespace in tablespaces}
    own = wal + _MARGIN
    for directory in manifest.directories:
        root = b"/".join(directory.path.split(b"/")[:2])
        if root in sizes:
            sizes[root] += directory.size
        else:
            own += directory.size
    needs = [(target, own)]
    needs += [(Path(tablespace.new), sizes[b"pg_tblspc/%d" % tablespace.oid]) for tablespace in tablespaces]
    by_device: dict[int, tuple[Path, int]] = {}
    for place, size in needs:
        device = os.stat(_first_written(place)).st_dev
        first, before = by_device.get(device, (place, 0))
        by_device[device] = first, before + size
    room = {}
    for place, needed in by_device.values():
        free = shutil.disk_usage(_first_written(place)).free
        if free < needed:
            raise TargetError(
                f"no room at {place}: {format_size(needed)} are needed, {format_size(free)} are free",
                hint="free room there, or name another --target-dir",
            )
        room[str(place)] = free, needed
    return room


def describe(plan: RestorePlan) -> list[str]:
    """The plan in words, a line each."""
    manifest = plan.manifest
    lines = [
        f"backup {manifest.id} of cluster {manifest.cluster}, begun {format_time(manifest.started)}",
        f"{manifest.files:,} files, {format_size(manifest.logical_size)}; {format_size(manifest.stored_size)} to read",
        f"WAL: {len(manifest.wal.segments)} objects on timeline {manifest.timeline}",
        f"into {plan.target}",
    ]
    lines += [f"tablespace {t.oid}: {t.old} -> {t.new}" for t in plan.tablespaces]
    lines += [
        f"room at {place}: {format_size(need)} needed, {format_size(free)} free"
        for place, (free, need) in plan.room.items()
    ]
    lines += [f"{old} is moved aside to {new}" for old, new in plan.moved_aside]
    lines.append(f"PostgreSQL {plan.major}" + (f" from {plan.server}" if plan.server else ", not installed here"))
    return lines + plan.notes
