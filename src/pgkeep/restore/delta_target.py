"""The directory of a delta restore: whether it is what it must be, what lies in it, and how it is held while it is written.

No server can start on it from the first change to the last: ``pg_control`` is renamed before anything else, and a new one is written
when all is done. A run that was killed leaves the marker of an incomplete restore, and the next one goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.errors import DamageError, TargetError
from pgkeep.postgres.control_file import CONTROL_FILE, parse_control_file
from pgkeep.postgres.running import postmasters
from pgkeep.postgres.wal import (
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    WalFileKind,
    classify,
    parse_segment_name,
    read_segment_header,
)
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.wal_objects import split_piece
from pgkeep.restore.delta_sweep import OLD_CONTROL_FILE, Extras, extras_of, size_of
from pgkeep.restore.journal import Journal, exclusive, sync_directory
from pgkeep.restore.places import (
    INCOMPLETE_MARKER,
    Locator,
    aside,
    marked_identifier,
    marker_text,
    refuse_owner,
)
from pgkeep.restore.write import target_errors
from pgkeep.wal.inventory import WalInventory

__all__ = ["NOT_RESTORED", "DeltaPlan", "delta_begun", "delta_ended", "inspect_target", "rewritten", "tablespace_link"]

NOT_RESTORED = frozenset({b"tablespace_map", b"standby.signal", b"recovery.signal"})
"""Links are made by a restore instead of by tablespace_map; a standby's signal would keep the copy from ever ending recovery."""

_SERVER_NAMES = frozenset({"postgres", "postmaster"})
_CHUNK = 1 << 20


@dataclass(frozen=True)
class DeltaPlan:
    """What a delta restore finds. ``files`` and ``size`` in bytes are all that is there; ``extras`` do not belong to the backup.

    ``half`` is whether it is what an earlier restore left. ``wal`` are files of WAL that the repository lacks: they are moved to the
    directory ``wal_aside``. ``reused`` maps devices to the bytes that its files take there.
    """

    files: int
    size: int
    extras: Extras
    half: bool
    wal: list[str]
    wal_aside: str | None
    reused: dict[int, int]
    notes: list[str] = field(default_factory=list)


def rewritten(manifest: Manifest) -> frozenset[bytes]:
    """Files that the tree of a backup does not have and a restore writes in any case: whether they are there makes no difference."""
    wal = (b"pg_wal/" + split_piece(name)[0].encode() for name in manifest.wal.segments)
    return frozenset({b"backup_manifest", b"recovery.signal", b"standby.signal", *wal})


def tablespace_link(target: Path, oid: int) -> str | None:
    """Where a tablespace of the directory lies; None where it has none of this OID."""
    try:
        return os.readlink(target / "pg_tblspc" / str(oid))
    except OSError:
        return None


def inspect_target(
    manifest: Manifest, target: Path, tablespaces: Mapping[int, str], repository: Repository
) -> DeltaPlan:
    """Prove that a directory may be overwritten with a backup, and tell what is in it. Changes nothing.

    ``tablespaces`` maps OIDs to their places. Raises TargetError where it is not (part of) a data directory of the backup's cluster, a server
    uses it, a restore in place has not come to its end there, or a tablespace would go where another one's files are.
    """
    _refuse_unfit(manifest, target, tablespaces)
    locate = Locator(target, tablespaces)
    notes = [
        f"tablespace {entry.name} is not in the backup: its link is removed, and what it leads to is left as it is"
        for entry in _links(target)
        if int(entry.name) not in tablespaces
    ]
    wal = _unstored_wal(target / "pg_wal", manifest, repository)
    kept = {os.fsencode(target / "pg_wal" / name) for name in wal}
    extras = Extras()
    tree = repository.tree(manifest)
    written_anew = rewritten(manifest)
    for path, place in extras_of(tree, locate, tablespaces=tablespaces, left_out=NOT_RESTORED):
        if place not in kept and path not in written_anew:
            extras.add(path, *size_of(place))
    files, size, reused = _sizes([target, target / "pg_wal", *map(Path, tablespaces.values())])
    return DeltaPlan(
        files=files,
        size=size,
        extras=extras,
        half=(target / INCOMPLETE_MARKER).exists(),
        wal=wal,
        wal_aside=str(_wal_aside(target)) if wal else None,
        reused=reused,
        notes=notes,
    )


@contextmanager
def delta_begun(manifest: Manifest, target: Path, tablespaces: Mapping[int, str], plan: DeltaPlan) -> Iterator[None]:
    """Hold the directory, and see to it that no server starts on it until `delta_ended`; WAL that is kept is moved aside.

    Raises BusyError, and TargetError where the directory is not any more what was planned for.
    """
    with exclusive(target.resolve()):
        _refuse_unfit(manifest, target, tablespaces)
        with target_errors(os.fsencode(target)):
            _hide_control_file(target)
            for place in (target, *map(Path, tablespaces.values())):
                _mark(place, manifest.system_identifier)
            if plan.wal_aside is not None:
                _move_wal(target / "pg_wal", plan.wal, Path(plan.wal_aside))
        yield


def delta_ended(target: Path) -> None:
    """Once the new pg_control is there and durable: the old one goes."""
    (target / OLD_CONTROL_FILE).unlink(missing_ok=True)


# Whether it may be touched


def _refuse_unfit(manifest: Manifest, target: Path, tablespaces: Mapping[int, str]) -> None:
    _refuse_server(target)
    _refuse_stranger(target, manifest)
    journal = Journal.read(target.resolve())
    if journal is not None and journal.state != "done":
        raise TargetError(
            f"a restore in place of {target} has not come to its end",
            hint="let it end first: run the same command again, or pgkeep restore --in-place --undo",
        )
    refuse_owner(target)
    for place in (target, *map(Path, tablespaces.values())):
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            raise TargetError(f"{place} cannot be written by this user", hint="run as its owner")
    for oid, location in tablespaces.items():
        _refuse_shared(Path(location), oid, target, manifest)


def _refuse_server(target: Path) -> None:
    running = postmasters(target)
    pid = running[0] if running else _live_pid(target)
    if pid is not None:
        raise TargetError(
            f"a PostgreSQL server runs on {target} (process {pid})", hint=f"stop it first: pg_ctl -D {target} stop"
        )


def _live_pid(target: Path) -> int | None:
    """The process that postmaster.pid names, unless it is certainly no server of this directory: after a crash the number may be another's."""
    try:
        pid = int((target / "postmaster.pid").read_text().split("\n")[0])
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ValueError, OSError):
        return None
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() not in _SERVER_NAMES:
            return None
        is_elsewhere = not os.path.samestat(os.stat(f"/proc/{pid}/cwd"), target.stat())
    except OSError:
        return pid
    return None if is_elsewhere else pid


def _refuse_stranger(target: Path, manifest: Manifest) -> None:
    """By the control file, our own marker, or the WAL, whichever can be read: each of them names the cluster."""
    found = _identity(target)
    if found is None:
        if not (target / "PG_VERSION").exists() and not (target / "global").exists():
            raise TargetError(
                f"{target} is not a data directory, nor what an earlier restore left of one",
                hint="name another --target-dir; without --delta, what is there is moved aside",
            )
        raise TargetError(
            f"nobody can say which cluster {target} is of: it has no {CONTROL_FILE} that can be read, and no WAL",
            hint="leave out --delta: what is there is moved aside, and the backup is restored whole",
        )
    how, identifier = found
    if identifier not in {0, manifest.system_identifier}:
        raise TargetError(
            f"{target} is of another cluster: {how} says system identifier {identifier}, "
            f"the backup's is {manifest.system_identifier}",
            hint="name another --target-dir, or the right cluster with --cluster",
        )


def _identity(target: Path) -> tuple[str, int] | None:
    """What names the cluster, and its system identifier; 0 for the marker of a restore that says no more."""
    for name in (CONTROL_FILE, OLD_CONTROL_FILE):
        with suppress(OSError, DamageError):
            return name, parse_control_file((target / name).read_bytes()).system_identifier
    marked = marked_identifier(target)
    if marked:
        return INCOMPLETE_MARKER, marked
    for place, header in _segments(target / "pg_wal"):
        return str(place), header.system_identifier
    return None if marked is None else (INCOMPLETE_MARKER, 0)


def _refuse_shared(place: Path, oid: int, target: Path, manifest: Manifest) -> None:
    """A tablespace's place is the target's own where its link leads there, or an earlier run has marked it."""
    if not place.exists() or not (names := os.listdir(place)):
        return
    link = tablespace_link(target, oid)
    is_own = link is not None and Path(link).resolve() == place.resolve()
    if not is_own and marked_identifier(place) not in {0, manifest.system_identifier}:
        raise TargetError(
            f"tablespace {oid} would go to {place}, and what is there is not {target}'s",
            hint=f"give it another place: --tablespace {_location(manifest, oid)}=/new/place",
        )
    # one place may serve clusters of several versions: GetTablespacePath, src/common/relpath.c
    own = f"PG_{manifest.server_version // 10000}_"
    others = [name for name in names if not name.startswith(own) and name not in {INCOMPLETE_MARKER, "lost+found"}]
    if others:
        raise TargetError(
            f"tablespace {place} holds something else than this cluster's files: {', '.join(sorted(others)[:3])}",
            hint="move that away first, or give the tablespace another place with --tablespace",
        )
    user = _server_using(place)
    if user is not None:
        raise TargetError(
            f"tablespace {place} is in use by the server on {user}",
            hint=f"give the copy one of its own: --tablespace {_location(manifest, oid)}=/new/place",
        )


def _location(manifest: Manifest, oid: int) -> str:
    return next(os.fsdecode(each.location) for each in manifest.tablespaces if each.oid == oid)


def _server_using(place: Path) -> str | None:
    """The data directory of a running server that has this place as a tablespace: a copy's links still lead to the original's."""
    wanted = place.stat()
    for number in os.listdir("/proc"):
        process = f"/proc/{number}"
        try:
            if not number.isdigit() or Path(process, "comm").read_text().strip() not in _SERVER_NAMES:
                continue
            links = f"{process}/cwd/pg_tblspc"
            for name in os.listdir(links):
                # as the server sees it, which may be in a container
                seen = os.stat(f"{process}/root{os.readlink(f'{links}/{name}')}")
                if os.path.samestat(seen, wanted):
                    return os.readlink(f"{process}/cwd")
        except OSError:
            continue
    return None


# What is there


def _links(target: Path) -> list[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(target / "pg_tblspc"))
    except OSError:
        return []
    return [entry for entry in entries if entry.name.isdigit() and entry.is_symlink()]


def _sizes(places: Sequence[Path]) -> tuple[int, int, dict[int, int]]:
    """Files and bytes below these places, links not followed, and what they take on each device; each place once."""
    files = size = 0
    taken: dict[int, int] = {}
    roots = {place.resolve() for place in places}
    for root in sorted(roots):
        if any(other in root.parents for other in roots):
            continue
        for where, _, names in os.walk(root):
            for name in names:
                status = os.lstat(os.path.join(where, name))
                files += 1
                size += status.st_size
                taken[status.st_dev] = taken.get(status.st_dev, 0) + status.st_blocks * 512
    return files, size, taken


def _segments(wal: Path) -> Iterator[tuple[Path, SegmentHeader]]:
    """The segments of WAL that are what their names say; a server renames old ones for later use."""
    try:
        names = sorted(os.listdir(wal))
    except OSError:
        return
    for name in names:
        if classify(name) is not WalFileKind.SEGMENT:
            continue
        with suppress(OSError, DamageError, ValueError), (wal / name).open("rb") as file:
            header = read_segment_header(file.read(SEGMENT_HEADER_SIZE))
            if parse_segment_name(name, header.segment_size)[1] == header.page_address:
                yield wal / name, header


def _unstored_wal(wal: Path, manifest: Manifest, repository: Repository) -> list[str]:
    """Names of segments and history files in ``pg_wal`` of which the repository lacks something."""
    segment_size = manifest.wal.segment_size
    inventory = WalInventory.read(repository.wal(manifest.system_identifier), segment_size)
    unstored = []
    for place, header in _segments(wal):
        timeline, start = parse_segment_name(place.name, segment_size)
        there = inventory.timelines.get(timeline)
        have = there.end_in(start) if there is not None else 0
        if header.system_identifier == manifest.system_identifier and _goes_beyond(place, have):
            unstored.append(place.name)
    with suppress(OSError):
        unstored += sorted(
            name
            for name in os.listdir(wal)
            if classify(name) is WalFileKind.HISTORY and not inventory.has_history(int(name[:8], 16))
        )
    return unstored


def _goes_beyond(place: Path, position: int) -> bool:
    """Whether a file has anything but zeros from a position on."""
    with place.open("rb") as file:
        file.seek(position)
        while chunk := file.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                return True
    return False


def _wal_aside(target: Path) -> Path:
    """Beside the data directory; beside ``pg_wal`` where that is elsewhere, so that a rename will do."""
    wal = target / "pg_wal"
    if wal.is_symlink():
        return aside(wal.resolve())
    return aside(target.with_name(f"{target.name}.wal"))


# Holding it


def _hide_control_file(target: Path) -> None:
    control, hidden = target / CONTROL_FILE, target / OLD_CONTROL_FILE
    if not os.path.lexists(control):
        return
    control.rename(hidden)
    sync_directory(hidden.parent)
    try:
        # one that was started a moment ago has read it already
        _refuse_server(target)
    except TargetError:
        hidden.rename(control)
        raise


def _mark(place: Path, system_identifier: int) -> None:
    place.mkdir(0o700, parents=True, exist_ok=True)
    with (place / INCOMPLETE_MARKER).open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(marker_text(system_identifier))
        file.flush()
        os.fsync(file.fileno())
        owner = place.stat()
        if os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    sync_directory(place)


def _move_wal(wal: Path, names: Sequence[str], place: Path) -> None:
    place.mkdir(0o700)
    owner = wal.stat()
    if os.geteuid() == 0:
        os.chown(place, owner.st_uid, owner.st_gid)
    for name in names:
        (wal / name).rename(place / name)
    for directory in (place, place.parent, wal):
        sync_directory(directory)
