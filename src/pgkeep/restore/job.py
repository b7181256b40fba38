"""The restore job: plan, write, make durable, and start where asked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.postgres.account import server_account
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.repository.wal_objects import split_piece
from pgkeep.restore.backup_manifest import backup_manifest
from pgkeep.restore.configure import write_settings
from pgkeep.restore.plan import INCOMPLETE_MARKER, RestorePlan, RestoreRequest, make_plan
from pgkeep.restore.start import RecoveryOutcome, start_and_follow
from pgkeep.restore.write import FileWriter, sync_file_systems, target_errors

__all__ = ["RestoreOutcome", "RestoreRequest", "run_restore"]

_PG_CONTROL = b"global/pg_control"
_NOT_RESTORED = frozenset({b"tablespace_map", b"standby.signal", b"recovery.signal"})
"""Links are made here instead of by tablespace_map; a standby's signal would keep the copy from ever ending recovery."""


@dataclass
class RestoreOutcome:
    """What a restore did: seconds for each phase, and what recovery reached where the server was started."""

    plan: RestorePlan
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recovery: RecoveryOutcome | None = None


def run_restore(request: RestoreRequest, repository: Repository, progress: Progress | None = None) -> RestoreOutcome:
    """Restore a backup.

    Raises what `make_plan` raises before anything is touched; then DamageError naming file and object, TargetError, and
    RecoveryError where the server does not reach the backup's end. After an error the target cannot be started.
    """
    progress = progress or Silent()
    progress.phase("planning")
    plan = make_plan(request, repository)
    outcome = RestoreOutcome(plan, notes=list(plan.notes))
    clock = time.monotonic()
    _write_everything(plan, repository, progress, outcome)
    outcome.seconds["write"] = time.monotonic() - clock
    if request.start:
        clock = time.monotonic()
        outcome.recovery = start_and_follow(plan, progress)
        outcome.seconds["recover"] = time.monotonic() - clock
    return outcome


def _write_everything(plan: RestorePlan, repository: Repository, progress: Progress, outcome: RestoreOutcome) -> None:
    request, manifest, target = plan.request, plan.manifest, plan.target
    account = server_account()
    owner = None if account is None else (account.uid, account.gid)
    tree = BackupTree(manifest, repository.reader())
    locate = _Locator(plan)
    _make_room(plan)
    progress.phase("writing", manifest.logical_size + len(manifest.wal.segments) * manifest.wal.segment_size)
    with FileWriter(
        tree,
        repository.reader(),
        locate,
        jobs=request.jobs,
        owner=owner,
        progress=progress,
    ) as writer:
        for root in (b"", *(b"pg_tblspc/%d" % tablespace.oid for tablespace in plan.tablespaces)):
            writer.make_directory(root, 0o700)
            _write_owned(os.path.join(locate(root), os.fsencode(INCOMPLETE_MARKER)), 0o600, iter(()), owner)
        control: BackupFile | None = None
        for directory in tree.directories():
            writer.make_directory(directory.path, directory.mode)
            for file in tree.files_of(directory):
                if file.path == _PG_CONTROL:
                    control = file
                elif file.path not in _NOT_RESTORED:
                    writer.add(file)
        _link_tablespaces(plan, locate, owner)
        _write_wal(plan, repository, writer, locate)
        writer.finish()
        with target_errors(locate(b"")):
            outcome.notes += write_settings(
                target, settings=request.settings, keep_archiving=request.keep_archiving, backup_id=manifest.id
            )
        # pg_verifybackup must not miss what is left out on purpose
        pieces = backup_manifest(tree, leave_out=_NOT_RESTORED)
        _write_owned(locate(b"backup_manifest"), 0o600, pieces, owner)
        progress.phase("making it durable")
        sync_file_systems([locate(b""), *(os.fsencode(tablespace.new) for tablespace in plan.tablespaces)])
        if control is not None:
            place = locate(control.path)
            _write_owned(place, control.entry.mode & 0o7777, tree.read(control), owner)
            _fsync(Path(os.fsdecode(place)).parent)
        # the target's own comes last: a tablespace that still had one would be cleared away as a leftover
        for path in reversed(plan.places):
            with target_errors(os.fsencode(path)):
                (path / INCOMPLETE_MARKER).unlink()
                _fsync(path)


class _Locator:
    """Where a path of the backup lies on this machine."""

    def __init__(self, plan: RestorePlan) -> None:
        self._target = os.fsencode(plan.target)
        self._tablespaces = {
            b"pg_tblspc/%d" % tablespace.oid: os.fsencode(tablespace.new) for tablespace in plan.tablespaces
        }

    def __call__(self, path: bytes) -> bytes:
        if path.startswith(b"pg_tblspc/"):
            head, _, tail = path[len(b"pg_tblspc/") :].partition(b"/")
            place = self._tablespaces.get(b"pg_tblspc/" + head)
            if place is not None:
                return os.path.join(place, tail) if tail else place
        return os.path.join(self._target, path) if path else self._target

    def link(self, oid: int) -> bytes:
        """Where the link to a tablespace stands."""
        return os.path.join(self._target, b"pg_tblspc", b"%d" % oid)


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


def _link_tablespaces(plan: RestorePlan, locate: _Locator, owner: tuple[int, int] | None) -> None:
    for tablespace in plan.tablespaces:
        link = locate.link(tablespace.oid)
        with target_errors(link):
            os.symlink(os.fsencode(tablespace.new), link)
            if owner is not None:
                os.lchown(link, *owner)


def _write_wal(plan: RestorePlan, repository: Repository, writer: FileWriter, locate: _Locator) -> None:
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
