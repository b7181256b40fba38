"""The plan of a restore in place: what is there, what would be done with it, and everything that can stand in the way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from pgkeep.config import Cluster
from pgkeep.copies.several import several
from pgkeep.errors import TargetError, UsageError
from pgkeep.postgres.control_file import ControlFile
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.running import identify_server, locate_server, server_status
from pgkeep.postgres.service_control import ServiceControl
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.carry import parse_table_name
from pgkeep.restore.journal import Journal, Move, TablespaceLink
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.places import refuse_owner
from pgkeep.restore.plan import RestorePlan, RestoreRequest, choose_backup, make_plan
from pgkeep.restore.safety_copy import free_name, refuse_immovable, tablespace_links
from pgkeep.restore.target import RecoveryTarget
from pgkeep.units import format_duration, format_size, utc_now

__all__ = ["InPlacePlan", "InPlaceRequest", "plan_carry", "plan_in_place", "read_unfinished", "request_document"]

_SHADOW = ".pgkeep-new"
"""Ends the names that a plan is made for while the real ones are still in use."""


class InPlaceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be restored over a cluster's own data directory.

    ``backup`` and ``recovery`` are those of `RestoreRequest`. ``carry`` are tables whose later rows are brought back,
    ``carry_until`` the moment that they are taken from (None: the latest), ``work_directory`` where the second recovery for that is
    made (None: beside the data directory). ``rollback``: put the old data back where the recovery itself fails. ``written`` is the
    target in the operator's own words: where an earlier run with the same words goes on, "5min ago" is what it was then.
    """

    cluster: str
    backup: str | None = None
    recovery: RecoveryTarget | None = None
    tablespaces: dict[str, str] = {}
    settings: dict[str, str] = {}
    carry: list[str] = []
    carry_until: RecoveryTarget | None = None
    work_directory: str | None = None
    jobs: int | None = None
    rollback: bool = True
    written: str = ""


@dataclass(frozen=True)
class InPlacePlan:
    """A restore in place that can be done. ``steps`` are what will happen, in order, with the commands and real paths.

    ``restore`` is for the real places; ``carry`` is the second recovery. ``unfinished`` is the journal of an earlier run that goes
    on with this one. ``moves`` are the renames that make the safety copy, ``old_size`` what is moved, in bytes.
    """

    request: InPlaceRequest
    data_directory: Path
    control: ServiceControl
    was_running: bool
    restore: RestorePlan
    carry: RestorePlan | None
    moves: list[Move]
    links: list[TablespaceLink]
    unfinished: Journal | None
    old_control: ControlFile | None
    old_size: int
    steps: list[str]
    notes: list[str] = field(default_factory=list)


def read_unfinished(data_directory: Path) -> Journal | None:
    """The journal of a run that did not come to its end; None where there is none."""
    journal = Journal.read(data_directory)
    return None if journal is None or journal.state == "done" else journal


def plan_in_place(
    request: InPlaceRequest,
    cluster: Cluster,
    repositories: Sequence[Repository],
    data_directory: Path | None = None,
) -> InPlacePlan:
    """Prove on paper that it can be done, whether the server runs or not. Changes nothing.

    ``repositories`` are the cluster's, opened, the first being read from. ``data_directory`` None: the one that is configured, or
    as the running server says, in a rehearsal. Raises UsageError, ConfigError, NotFoundError, TargetError,
    and what `make_plan` raises.
    """
    _refuse_impossible(request, cluster)
    # who stands in is told when it is carried out
    repository = several(repositories, lambda _: None)
    chosen = _basic(request, cluster)
    try:
        manifest, _ = choose_backup(chosen, repository)
    except UnreachableTarget as error:
        if data_directory is None:
            error.hint = (
                f"{error.hint or ''}; without --plan, WAL that only the running server has yet is stored first".lstrip(
                    "; "
                )
            )
        raise
    identifier, major = manifest.system_identifier, manifest.server_version // 10000
    place = locate_server(cluster.dsn, data_directory or cluster.server.data_directory)
    data_directory, notes = place.data_directory, list(place.notes)
    unfinished = read_unfinished(data_directory)
    old_control = None
    if unfinished is None or unfinished.state == "stopping":
        old_control, found = identify_server(place, identifier)
        notes += found
    elif unfinished.system_identifier != identifier:
        raise TargetError(f"{unfinished.place} is of another cluster", hint="mend server.data_directory, or --cluster")
    is_there = unfinished is None or unfinished.state == "stopping"
    links = tablespace_links(data_directory) if is_there else unfinished.links if unfinished else []
    stamp = f"{utc_now():%Y%m%dT%H%M%SZ}"
    moves = _moves(data_directory, links, major, stamp) if is_there else unfinished.moves if unfinished else []
    refuse_owner(data_directory if is_there or not moves else Path(moves[0].aside))
    status = server_status(data_directory)
    control = ServiceControl(
        data_directory,
        major=major,
        unit=cluster.server.unit or (unfinished.unit if unfinished else None),
        start=cluster.server.start,
        stop=cluster.server.stop,
        options=unfinished.options if unfinished else None,
        log_file=Path(unfinished.log_file) if unfinished else None,
    )
    places = {str(link.oid): str(Path(link.place).resolve()) for link in links}
    restore = _plan_restore(
        request, chosen, manifest, repository, data_directory, places, [move.place for move in moves]
    )
    carry = None
    if request.carry:
        end = (restore.recovery.path.timeline, restore.recovery.stop_lsn)
        carry = plan_carry(
            request, cluster, repository, data_directory, {each.old: each.oid for each in restore.tablespaces}, *end
        )
        _refuse_room(restore, carry)
    plan = InPlacePlan(
        request=request,
        data_directory=data_directory,
        control=control,
        was_running=status.pid is not None or (unfinished is not None and unfinished.was_running),
        restore=restore,
        carry=carry,
        moves=moves,
        links=links,
        unfinished=unfinished,
        old_control=old_control,
        old_size=sum(_size(Path(move.place)) for move in moves) if is_there else 0,
        steps=[],
        notes=notes + restore.notes,
    )
    plan.steps.extend(_steps(plan, cluster))
    return plan


def _basic(request: InPlaceRequest, cluster: Cluster) -> RestoreRequest:
    """What both recoveries have in common; its target is nowhere."""
    return RestoreRequest(
        cluster=cluster.name,
        backup=request.backup,
        recovery=request.recovery,
        target=_SHADOW,
        start=True,
        jobs=request.jobs,
        spool=str(cluster.spool),
        prefetch=cluster.wal.prefetch,
    )


def _refuse_impossible(request: InPlaceRequest, cluster: Cluster) -> None:
    recovery = request.recovery
    if recovery is not None and (recovery.standby or recovery.action != "promote"):
        raise UsageError(
            "a restore in place ends with a server that takes writes",
            hint="to look at a moment first, or for a standby, restore with --target-dir and --start",
        )
    if request.carry_until is not None and not request.carry:
        raise UsageError("--carry-until says how far rows are carried, and no table is named", hint="--carry TABLE")
    for text in request.carry:
        name = parse_table_name(text)
        if name.database is None and not endpoint_of(cluster.dsn).database:
            raise UsageError(f"in which database is {text}?", hint="write database.schema.table")


def _moves(data_directory: Path, links: Sequence[TablespaceLink], major: int, stamp: str) -> list[Move]:
    """The renames that make the safety copy; none where there is nothing to keep."""
    if not data_directory.exists() or not any(data_directory.iterdir()):
        return []
    places = [data_directory]
    for link in links:
        place = Path(link.place).resolve()
        if place.is_dir() and place not in places:
            places.append(place)
    for place in places:
        refuse_immovable(place, major, tablespace=place != data_directory)
    return [Move(str(place), str(free_name(place, "before", stamp))) for place in places]


def _plan_restore(
    request: InPlaceRequest,
    basic: RestoreRequest,
    manifest: Manifest,
    repository: Repository,
    data_directory: Path,
    places: dict[str, str],
    movable: Sequence[str],
) -> RestorePlan:
    """The plan for the real places, checked against names beside them that nobody uses."""
    wanted = {os.fsdecode(tablespace.location): str(tablespace.oid) for tablespace in manifest.tablespaces}
    mapping = {old: request.tablespaces.get(old, places.get(oid, old)) for old, oid in wanted.items()}
    unknown = [old for old in request.tablespaces if old.rstrip("/") not in mapping]
    if unknown:
        raise UsageError(f"the backup has no tablespace at {unknown[0]}", hint="pgkeep show names those it has")
    for old, new in mapping.items():
        if new not in movable and Path(new).is_dir() and any(Path(new).iterdir()):
            raise TargetError(
                f"tablespace {old} would go to {new}, and something else is there",
                hint=f"give it another place: --tablespace {old}=/new/place",
            )
    shadow = make_plan(
        msgspec.structs.replace(
            basic,
            target=str(data_directory) + _SHADOW,
            tablespaces={old: new + _SHADOW for old, new in mapping.items()},
            settings=request.settings,
            keep_archiving=True,
        ),
        repository,
    )
    real = [replace(each, new=each.new.removesuffix(_SHADOW)) for each in shadow.tablespaces]
    return replace(
        shadow,
        request=msgspec.structs.replace(
            shadow.request, target=str(data_directory), tablespaces={each.old: each.new for each in real}
        ),
        target=data_directory,
        tablespaces=real,
        room={place.removesuffix(_SHADOW): room for place, room in shadow.room.items()},
        moved_aside=[],
    )


def plan_carry(
    request: InPlaceRequest,
    cluster: Cluster,
    repository: Repository,
    data_directory: Path,
    tablespaces: Mapping[str, int],
    timeline: int,
    stop_lsn: LSN,
) -> RestorePlan:
    """The second recovery: to the end of the history that the first one leaves, in a directory of its own.

    The first one goes along ``timeline`` up to ``stop_lsn``; ``tablespaces`` maps old locations to OIDs.
    """
    above = Path(request.work_directory) if request.work_directory else data_directory.parent
    work = above.resolve() / f"pgkeep-carry-{utc_now():%Y%m%dT%H%M%SZ}"
    until = request.carry_until or RecoveryTarget(kind="latest", timeline=timeline)
    plan = make_plan(
        msgspec.structs.replace(
            _basic(request, cluster),
            backup=None,
            recovery=msgspec.structs.replace(until, action="promote", standby=False),
            target=str(work / "data"),
            tablespaces={old: str(work / f"tablespace-{oid}") for old, oid in tablespaces.items()},
            settings={"port": request.settings.get("port", "5432")},
        ),
        repository,
    )
    if plan.recovery.stop_lsn < stop_lsn:
        raise UsageError(
            f"rows would be carried from {plan.recovery.stop_lsn}, which is before the target at {stop_lsn}",
            hint="name a later moment with --carry-until",
        )
    return plan


def _refuse_room(first: RestorePlan, second: RestorePlan) -> None:
    """Both copies are there at once: where they share a file system, it must hold both."""
    for place, (free, needed) in first.room.items():
        for other, (_, also) in second.room.items():
            if _device(place) == _device(other) and free < needed + also:
                raise TargetError(
                    f"no room at {place} for a second recovery: {format_size(needed + also)} are needed in all, "
                    f"{format_size(free)} are free",
                    hint="name a directory on another disk with --work-dir",
                )


def _device(place: str) -> int:
    path = Path(place)
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _size(directory: Path) -> int:
    """Bytes on disk below a directory, its links not followed."""
    size = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return size


def _steps(plan: InPlacePlan, cluster: Cluster) -> list[str]:
    restore, recovery = plan.restore, plan.restore.recovery
    manifest = restore.manifest
    steps = []
    if plan.unfinished is not None:
        steps.append(f"go on with the run of {plan.unfinished.started}, which got as far as: {plan.unfinished.state}")
    if server_status(plan.data_directory).pid is not None:
        steps.append(f"stop the server: {plan.control.stop_command}")
    if plan.old_size:
        steps += [f"move aside ({format_size(plan.old_size)} in all): mv {m.place} {m.aside}" for m in plan.moves]
    elif plan.moves:
        steps += [f"the old data is aside already: {move.aside}" for move in plan.moves]
    steps.append(f"restore backup {manifest.id} ({format_size(manifest.logical_size)}) into {restore.target}")
    steps += [f"restore tablespace {each.oid} into {each.new}" for each in restore.tablespaces]
    steps.append(
        f"recover in isolation to {recovery.target}: replay {format_size(recovery.wal_bytes)} of WAL "
        f"from {recovery.start_lsn} to {recovery.stop_lsn} on timeline {recovery.path.timeline}, and check that it is reached"
    )
    if plan.carry is not None:
        steps.append(
            f"bring later rows of {', '.join(plan.request.carry)}: a second recovery to {plan.carry.recovery.target} "
            f"({plan.carry.recovery.stop_lsn}) in {plan.carry.target.parent}, removed afterwards"
        )
    for hook in cluster.after_restore:
        what = f"SQL in {hook.database}" if hook.sql is not None else str(hook.command)
        steps.append(f"run hook {hook.name}: {what} (within {format_duration(hook.timeout)})")
    steps.append(f"start the server: {plan.control.start_command}")
    steps.append("check that it accepts connections, is the recovered cluster, and takes writes")
    return steps


def request_document(request: InPlaceRequest) -> dict[str, Any]:
    """The request as the journal keeps it."""
    document: dict[str, Any] = msgspec.to_builtins(request)
    return document
