"""The plan of a restore: everything that can be known before the disk is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pgkeep.cold.needs import refuse_cold
from pgkeep.errors import NotFoundError, StoreError, TargetError, UsageError
from pgkeep.postgres.account import can_run, server_account
from pgkeep.postgres.binaries import ServerBinaries, find_binaries
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.delta_target import DeltaPlan, inspect_target, tablespace_link
from pgkeep.restore.places import (
    INCOMPLETE_MARKER,
    aside,
    is_occupied,
    refuse_overlap,
    refuse_repository,
    refuse_unusable,
)
from pgkeep.restore.places import needed_room as _room
from pgkeep.restore.recovery_plan import plan_recovery
from pgkeep.restore.target import RecoveryPlan, RecoveryTarget, format_moment
from pgkeep.units import format_size, format_time

__all__ = [
    "INCOMPLETE_MARKER",
    "RestorePlan",
    "RestoreRequest",
    "TablespacePlan",
    "choose_backup",
    "describe",
    "describe_recovery",
    "make_plan",
    "refuse_repository",
]

_HIGHEST_PORT = 65535

_KEPT_WAL = 1 << 30
"""PostgreSQL's default of max_wal_size: about what a recovering server keeps of the WAL that it has replayed."""


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore is to do.

    ``backup`` None: the best one for the target. ``recovery`` None: all of the WAL where no backup is named, up to its end
    where one is. ``spool`` is where a receiver on this machine keeps its WAL; it knows how current the repository is.
    ``tablespaces`` maps old locations to new ones. ``keep_archiving`` leaves the origin's archiving and standby settings
    on. ``settings`` are written into the copy. ``jobs`` worker threads, all processors where None. ``prefetch`` segments of WAL
    are kept ready. ``delta``: what is in the target stays where it is as the backup has it, and is overwritten where not. ``rate`` is the
    most bytes of files handled in a second, ``nice`` how far worker threads stand back. ``fetch_command`` are the words of a program that brings WAL when we are gone, see `restore_command`;
    ``fetch_files`` are the files that it must be able to read. ``sockets``: where the private server of a recovery has its socket;
    None: in the system's temporary directory.
    """

    cluster: str | None = None
    backup: str | None = None
    recovery: RecoveryTarget | None = None
    target: str
    tablespaces: dict[str, str] = {}
    keep_archiving: bool = False
    settings: dict[str, str] = {}
    start: bool = False
    jobs: int | None = None
    delta: bool = False
    rate: int | None = None
    nice: int | None = None
    spool: str | None = None
    prefetch: int = 16
    fetch_command: list[str] = []
    fetch_files: list[str] = []
    sockets: str | None = None


@dataclass(frozen=True, slots=True)
class TablespacePlan:
    """Where a tablespace was, and where it goes."""

    oid: int
    old: str
    new: str
    size: int


@dataclass(frozen=True)
class RestorePlan:
    """A restore that can be done. Sizes in bytes; ``room`` maps a place to what is free and what is needed there.

    ``delta`` is what it finds in the target and compares; None where everything is written anew.
    """

    request: RestoreRequest
    manifest: Manifest
    recovery: RecoveryPlan
    target: Path
    tablespaces: list[TablespacePlan]
    room: dict[str, tuple[int, int]]
    moved_aside: list[tuple[str, str]]
    server: ServerBinaries | None
    notes: list[str] = field(default_factory=list)
    delta: DeltaPlan | None = None

    @property
    def major(self) -> int:
        """The major version of PostgreSQL that the backup needs."""
        return self.manifest.server_version // 10000

    @property
    def programs(self) -> ServerBinaries:
        """Those of its server. Raises NotFoundError where there are none here."""
        return self.server or find_binaries(self.major)

    @property
    def is_self_contained(self) -> bool:
        """Whether the backup's own WAL, which lies ready in the target, is all that is needed to start it anywhere."""
        wal, recovery = self.manifest.wal, self.recovery
        own_end = -(-wal.stop_lsn // wal.segment_size) * wal.segment_size
        needs_no_more = recovery.path.timeline == wal.timeline and recovery.stop_lsn <= own_end
        return needs_no_more and not self.request.start and not recovery.target.standby

    @property
    def places(self) -> list[Path]:
        """The directories that are made: the target, then its tablespaces."""
        return [self.target, *(Path(tablespace.new) for tablespace in self.tablespaces)]


def make_plan(
    request: RestoreRequest, repository: Repository, programs: Callable[[int], ServerBinaries] = find_binaries
) -> RestorePlan:
    """Prove on paper that a restore can be done. ``programs`` finds those of a major version, or raises NotFoundError.

    Raises NotFoundError (UnreachableTarget where it is the recovery's target), TargetError (in use, no room, a tablespace
    without a place, the repository itself), ColdBackup (what it needs must be thawed first), UsageError, StoreError, KeyFailure for a
    key that only adds. Touches nothing.
    """
    repository.keys.require_reading()
    _refuse_impossible(request)
    manifest, recovery = choose_backup(request, repository)
    target = Path(os.path.abspath(request.target))
    is_delta = request.delta and target.is_dir() and bool(os.listdir(target))
    tablespaces = _tablespaces(manifest, request.tablespaces, target if is_delta else None)
    new_places = {tablespace.oid: tablespace.new for tablespace in tablespaces}
    places = [target, *(Path(tablespace.new) for tablespace in tablespaces)]
    refuse_overlap(places)
    for place in places:
        refuse_repository(place, repository)
    notes = list(recovery.notes)
    moved: list[tuple[str, str]] = []
    delta = None
    if is_delta:
        delta = inspect_target(manifest, target, new_places, repository)
        notes += delta.notes
    else:
        moved = [(str(place), str(aside(place))) for place in places if is_occupied(place)]
        for place in places:
            refuse_unusable(place)
        if request.delta:
            notes.append(f"there is nothing in {target} that could be used")
    _check_wal(manifest, repository)
    thawed = refuse_cold(repository, manifest, path=recovery.path, end=int(recovery.stop_lsn))
    if thawed is not None and thawed.thawed_until is not None:
        notes.append(
            f"{thawed.thawed:,} objects were thawed for it and freeze again from {format_time(thawed.thawed_until)} on"
        )
    server = None
    try:
        server = programs(manifest.server_version // 10000)
    except NotFoundError as error:
        if request.start:
            raise
        notes.append(f"{error}; the files can be restored, and started where that version is installed")
    if not any(directory.path == b"" and directory.files for directory in manifest.directories):
        raise NotFoundError(f"backup {manifest.id} has no files")
    if manifest.damaged_pages:
        notes.append(f"{len(manifest.damaged_pages)} pages were damaged on the server when this backup was taken")
    wal_room = _wal_room(manifest, recovery, request.prefetch)
    plan = RestorePlan(
        request=request,
        manifest=manifest,
        recovery=recovery,
        target=target,
        tablespaces=tablespaces,
        room=_room(manifest, target, new_places, wal_room, delta.reused if delta is not None else None),
        moved_aside=moved,
        server=server,
        notes=notes,
        delta=delta,
    )
    if not plan.is_self_contained and not request.start:
        plan.notes.extend(_unreadable(request.fetch_files))
    return plan


def _unreadable(files: list[str]) -> list[str]:
    """Notes on what the server's account cannot read, though recovery will take WAL from the repository as that account."""
    account = server_account()
    return [
        f"recovery takes WAL from the repository, and PostgreSQL's account {account.name} cannot read {file}:"
        " let it, or recover with --start"
        for file in files
        if account is not None and not can_run(account, ["test", "-r", file])
    ]


def choose_backup(request: RestoreRequest, repository: Repository) -> tuple[Manifest, RecoveryPlan]:
    """The first part of `make_plan`, which looks at no directory: what to start from, and how recovery goes on."""
    return plan_recovery(
        repository, request.recovery, cluster=request.cluster, backup=request.backup, spool=request.spool
    )


def _refuse_impossible(request: RestoreRequest) -> None:
    if not request.target:
        # as a path it would be the working directory
        raise UsageError("the target directory has no name", hint="name one: --target-dir DIR")
    port = request.settings.get("port", "5432")
    if re.fullmatch(r"[0-9]{1,5}", port) is None or not 1 <= int(port) <= _HIGHEST_PORT:
        raise UsageError(f"not a port: {port}", hint=f"a number from 1 to {_HIGHEST_PORT}")


def _tablespaces(manifest: Manifest, mapping: dict[str, str], existing: Path | None) -> list[TablespacePlan]:
    """Where they go; without another word, in the data directory ``existing``, where its links lead."""
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
        link = tablespace_link(existing, tablespace.oid) if existing is not None else None
        if link is not None:
            wanted.setdefault(location, link)
        if existing is None and location not in wanted and is_occupied(Path(location)):
            raise TargetError(
                f"tablespace {tablespace.oid} was at {location}, and there is something there",
                hint=f"give it another place: --tablespace {location}=/new/place",
            )
        plans.append(TablespacePlan(tablespace.oid, location, wanted.get(location, location), tablespace.size))
    return plans


def _check_wal(manifest: Manifest, repository: Repository) -> None:
    there = {name for name, _ in repository.wal(manifest.system_identifier).names(manifest.timeline)}
    missing = [name for name in manifest.wal.segments if name not in there]
    if missing:
        raise StoreError(
            f"backup {manifest.id} needs WAL that the repository has lost: {', '.join(missing[:3])}",
            hint="restore another backup: pgkeep list",
        )


def _wal_room(manifest: Manifest, recovery: RecoveryPlan, prefetch: int) -> int:
    """The WAL of the backup, and what of the rest lies there at once: it is fetched as it is replayed."""
    own = len(manifest.wal.segments) * manifest.wal.segment_size
    rest = max(recovery.stop_lsn - recovery.consistent_lsn, 0)
    return own + min(rest, prefetch * recovery.segment_size + _KEPT_WAL)


def describe(plan: RestorePlan) -> list[str]:
    """The plan in words, a line each."""
    manifest = plan.manifest
    lines = [
        f"backup {manifest.id} of cluster {manifest.cluster}, begun {format_time(manifest.started)}",
        f"{manifest.files:,} files, {format_size(manifest.logical_size)}; {format_size(manifest.stored_size)} to read",
        *describe_recovery(plan.recovery),
        f"into {plan.target}",
    ]
    lines += [f"tablespace {t.oid}: {t.old} -> {t.new}" for t in plan.tablespaces]
    lines += [
        f"room at {place}: {format_size(need)} needed, {format_size(free)} free"
        for place, (free, need) in plan.room.items()
    ]
    lines += [f"{old} is moved aside to {new}" for old, new in plan.moved_aside]
    lines += _describe_delta(plan)
    lines.append(f"PostgreSQL {plan.major}" + (f" from {plan.server.place}" if plan.server else ", not installed here"))
    return lines + plan.notes


def _describe_delta(plan: RestorePlan) -> list[str]:
    delta = plan.delta
    if delta is None:
        return []
    whose = "an earlier restore left" if delta.half else "are there"
    places = " and ".join(str(place) for place in plan.places)
    lines = [
        f"{delta.files:,} files that {whose}, {format_size(delta.size)}, are compared and OVERWRITTEN where they differ, with no way back: {places}"
    ]
    extras = delta.extras
    if extras.files:
        more = ", …" if extras.files > len(extras.names) else ""
        lines.append(
            f"{extras.files:,} of them, {format_size(extras.size)}, do not belong to the backup and are REMOVED:"
            f" {', '.join(extras.names)}{more}"
        )
    if delta.wal:
        lines.append(
            f"{len(delta.wal)} files of WAL that the repository lacks are moved aside to {delta.wal_aside}: {', '.join(delta.wal[:3])}"
            + (", …" if len(delta.wal) > 3 else "")
        )
    return lines


def describe_recovery(plan: RecoveryPlan) -> list[str]:
    """How recovery goes, in words, a line each."""
    target, path = plan.target, plan.path
    lines = [f"recover to {target}"]
    ways = [
        f"{switch.parent} up to {switch.lsn}"
        for switch in path.switches
        if plan.start_lsn < switch.lsn <= plan.stop_lsn
    ]
    lines.append(f"along timeline {', then '.join([*ways, str(plan.stop_timeline)])}")
    at_least = "at least " if plan.open_ended else ""
    lines.append(f"replay WAL from {plan.start_lsn} to {at_least}{plan.stop_lsn}: {format_size(plan.wal_bytes)}")
    if plan.stop_time is not None:
        lines.append(f"the last transaction that is replayed ended {format_moment(plan.stop_time)}")
    if plan.next_time is not None:
        lines.append(f"the first that is not ended {format_moment(plan.next_time)}")
    if target.standby:
        lines.append("then it goes on as a standby")
    elif plan.settings.get("recovery_target_action", "promote") != "promote":
        lines.append({"pause": "then it pauses, and can be read", "shutdown": "then it shuts down"}[target.action])
    return lines
