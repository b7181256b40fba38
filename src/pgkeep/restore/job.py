"""The restore job: plan, write, make durable, and recover where asked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.copies.several import SeveralRepositories, nearest
from pgkeep.postgres.account import server_account
from pgkeep.postgres.container import FETCH_SCRIPT
from pgkeep.postgres.server import Server
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.repository.wal_objects import split_piece
from pgkeep.restore.backup_manifest import backup_manifest
from pgkeep.restore.configure import write_settings
from pgkeep.restore.delta import DeltaCounts, DeltaWriter
from pgkeep.restore.delta_sweep import extras_of
from pgkeep.restore.delta_target import NOT_RESTORED, delta_begun, delta_ended, rewritten
from pgkeep.restore.pace import Pace
from pgkeep.restore.places import Locator, marker_text
from pgkeep.restore.plan import INCOMPLETE_MARKER, RestorePlan, RestoreRequest, make_plan
from pgkeep.restore.private_server import hand_to_archiver
from pgkeep.restore.recover import Recovered, recovered_server
from pgkeep.restore.several_source import content_source
from pgkeep.restore.write import FileWriter, sync_file_systems, target_errors
from pgkeep.wal.by_files import restore_command_by_files
from pgkeep.wal.fetch import restore_command

__all__ = ["RestoreOutcome", "RestoreRequest", "run_restore", "write_backup"]

_START_LIMIT = 600.0
"""Seconds for a server that was shut down in good order; a cold machine reads its settings and little more."""

_PG_CONTROL = b"global/pg_control"


@dataclass
class RestoreOutcome:
    """What a restore did: seconds for each phase, and what recovery reached where the server was started.

    ``delta`` is what was compared and kept, where there was something in the target. ``dsn`` reaches the server that runs now, ``log_file`` is its log; both None where none was started.
    """

    plan: RestorePlan
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    delta: DeltaCounts | None = None
    recovery: Recovered | None = None
    dsn: str | None = None
    log_file: str | None = None


def run_restore(
    request: RestoreRequest,
    repository: Repository,
    progress: Progress | None = None,
    *,
    others: Sequence[Repository] = (),
    after: Callable[[Recovered], None] | None = None,
) -> RestoreOutcome:
    """Restore a backup; with ``request.start`` recover to the target and leave a server running.

    ``others`` are the cluster's other repositories: what the first cannot give, object by object, they do. ``after`` is called while the recovered server is
    still private, not for one that stays paused or a standby. Raises what `make_plan` raises before anything is touched; then
    DamageError naming file and object, TargetError, and RecoveryError where the server does not reach its target. After an error
    the target is not running, and cannot be started where it is not complete.
    """
    progress = progress or Silent()
    progress.phase("planning")
    said: list[str] = []

    def say(note: str) -> None:
        progress.note(note)
        said.append(note)

    plan, repository = nearest([repository, *others], lambda each: make_plan(request, each), say)
    outcome = RestoreOutcome(plan, notes=[*plan.notes, *said])
    clock = time.monotonic()
    write_backup(plan, repository, progress, outcome)
    outcome.seconds["write"] = time.monotonic() - clock
    repositories = [repository]
    if isinstance(repository, SeveralRepositories):
        outcome.notes += repository.warnings
        repositories = repository.repositories
    if request.start:
        with recovered_server(plan, repositories, progress) as outcome.recovery:
            if after is not None and outcome.recovery.state == "promoted":
                after(outcome.recovery)
        outcome.seconds |= outcome.recovery.seconds
        outcome.dsn, outcome.log_file = outcome.recovery.dsn, outcome.recovery.log_file
        if outcome.recovery.state == "promoted":
            clock = time.monotonic()
            if request.keep_archiving:
                hand_to_archiver(plan.target, outcome.recovery.timeline)
            _start(plan, outcome)
            outcome.seconds["start"] = time.monotonic() - clock
    return outcome


def _start(plan: RestorePlan, outcome: RestoreOutcome) -> None:
    """Start the recovered server with its own settings, on a Unix socket only; it lives on after us."""
    server = Server(plan.target, plan.programs, port=int(plan.request.settings.get("port", "5432")))
    server.start(timeout=_START_LIMIT)
    server.detach()
    outcome.dsn, outcome.log_file = server.dsn(), str(server.log_file)


def write_backup(plan: RestorePlan, repository: Repository, progress: Progress, outcome: RestoreOutcome) -> None:
    """Write the plan's backup into its target, set up for recovery, and make it durable; the server is not started.

    Raises DamageError, TargetError, StoreError, BusyError; the target is marked as incomplete then.
    """
    if plan.delta is None:
        _make_room(plan)
        _write_marked(plan, repository, progress, outcome)
        return
    with delta_begun(plan.manifest, plan.target, _new_places(plan), plan.delta):
        _write_marked(plan, repository, progress, outcome)
    if plan.delta.wal_aside is not None:
        outcome.notes.append(
            f"WAL that the repository lacks is in {plan.delta.wal_aside}; pgkeep wal push stores it, if it is of worth"
        )


def _write_marked(plan: RestorePlan, repository: Repository, progress: Progress, outcome: RestoreOutcome) -> None:
    request, manifest, target = plan.request, plan.manifest, plan.target
    account = server_account()
    owner = None if account is None else (account.uid, account.gid)
    tree = repository.tree(manifest)
    locate = Locator(target, _new_places(plan))
    progress.phase("writing", manifest.logical_size + len(manifest.wal.segments) * manifest.wal.segment_size)
    with _writer(plan, tree, repository, locate, owner, progress) as writer:
        _prepare(plan, tree, writer, locate, owner)
        control: BackupFile | None = None
        for directory in tree.directories():
            writer.make_directory(directory.path, directory.mode)
            for file in tree.files_of(directory):
                if file.path == _PG_CONTROL:
                    control = file
                elif file.path not in NOT_RESTORED:
                    writer.add(file)
        _link_tablespaces(plan, locate, owner)
        _write_wal(plan, repository, writer, locate)
        writer.finish()
        if isinstance(writer, DeltaWriter):
            outcome.delta = writer.counts
        with target_errors(locate(b"")):
            outcome.notes += write_settings(
                target,
                recovery={**plan.recovery.settings, "restore_command": _restore_command(plan)},
                signal_file=plan.recovery.signal,
                settings=request.settings,
                keep_archiving=request.keep_archiving,
                backup_id=manifest.id,
            )
        # pg_verifybackup must not miss what is left out on purpose
        pieces = backup_manifest(tree, leave_out=NOT_RESTORED)
        _write_owned(locate(b"backup_manifest"), 0o600, pieces, owner)
        progress.phase("making it durable")
        # pg_wal may be a link to another disk, where it was there before
        places = [locate(b""), locate(b"pg_wal"), *(os.fsencode(tablespace.new) for tablespace in plan.tablespaces)]
        sync_file_systems(places)
        if control is not None:
            place = locate(control.path)
            _write_owned(place, control.entry.mode & 0o7777, tree.read(control), owner)
            _fsync(Path(os.fsdecode(place)).parent)
        if plan.delta is not None:
            delta_ended(target)
        # the target's own comes last: a tablespace that still had one would be cleared away as a leftover
        for path in reversed(plan.places):
            with target_errors(os.fsencode(path)):
                (path / INCOMPLETE_MARKER).unlink()
                _fsync(path)


def _new_places(plan: RestorePlan) -> dict[int, str]:
    return {tablespace.oid: tablespace.new for tablespace in plan.tablespaces}


def _writer(
    plan: RestorePlan,
    tree: BackupTree,
    repository: Repository,
    locate: Locator,
    owner: tuple[int, int] | None,
    progress: Progress,
) -> FileWriter:
    request = plan.request
    pace = Pace(request.rate, request.nice)
    kind = FileWriter if plan.delta is None else DeltaWriter
    source = content_source(repository, tree)
    return kind(tree, source, locate, jobs=request.jobs, owner=owner, progress=progress, pace=pace)


def _prepare(
    plan: RestorePlan, tree: BackupTree, writer: FileWriter, locate: Locator, owner: tuple[int, int] | None
) -> None:
    """The directories that all lies in, marked, without what does not belong there."""
    for root in (b"", *(b"pg_tblspc/%d" % tablespace.oid for tablespace in plan.tablespaces)):
        writer.make_directory(root, 0o700)
        if plan.delta is None:
            marker = os.path.join(locate(root), os.fsencode(INCOMPLETE_MARKER))
            _write_owned(marker, 0o600, iter([marker_text(plan.manifest.system_identifier)]), owner)
    if isinstance(writer, DeltaWriter):
        # before anything is written: the disk may be full of it
        with target_errors(locate(b"")):
            written_anew = rewritten(plan.manifest)
            for path, place in extras_of(tree, locate, tablespaces=_new_places(plan), left_out=NOT_RESTORED):
                writer.remove(place, counted=path not in written_anew)


def _restore_command(plan: RestorePlan) -> str:
    """``false`` (no such file) where all WAL lies in ``pg_wal`` already; else the prefetcher, or the full program without one."""
    if plan.is_self_contained:
        return "false"
    if plan.server is not None and plan.server.in_container:
        return restore_command_by_files(FETCH_SCRIPT)
    return restore_command(plan.request.fetch_command)


def _make_room(plan: RestorePlan) -> None:
    """Move what is there aside; a restore that broke off is our own and is cleared away."""
    for old, new in plan.moved_aside:
        with target_errors(os.fsencode(old)):
            os.rename(old, new)
    for place in plan.places:
        with target_errors(os.fsencode(place)):
            if (place / INCOMPLETE_MARKER).exists():
                _clear(place)


def _clear(place: Path) -> None:
    """Empty a directory that a restore left behind: pg_control first and the marker last, since this may break off too."""
    (place / os.fsdecode(_PG_CONTROL)).unlink(missing_ok=True)
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != INCOMPLETE_MARKER:
            path.unlink()
    (place / INCOMPLETE_MARKER).unlink()


def _link_tablespaces(plan: RestorePlan, locate: Locator, owner: tuple[int, int] | None) -> None:
    for tablespace in plan.tablespaces:
        link = locate.link(tablespace.oid)
        with target_errors(link):
            if os.path.islink(link):
                os.unlink(link)
            os.symlink(os.fsencode(tablespace.new), link)
            if owner is not None:
                os.lchown(link, *owner)


def _write_wal(plan: RestorePlan, repository: Repository, writer: FileWriter, locate: Locator) -> None:
    archive = repository.wal(plan.manifest.system_identifier)
    for name in plan.manifest.wal.segments:
        segment, start, _ = split_piece(name)
        assert start == 0
        size = None if segment.endswith(".history") else plan.manifest.wal.segment_size
        writer.write_stream(locate(b"pg_wal/" + segment.encode()), 0o600, size, archive.stream(name))


def _write_owned(place: bytes, mode: int, pieces: Iterator[bytes], owner: tuple[int, int] | None) -> None:
    """Write a file and make it durable on its own."""
    with target_errors(place), open(place, "xb") as file:
        os.fchmod(file.fileno(), mode)
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _fsync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
