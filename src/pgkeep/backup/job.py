"""The backup job: from a request to a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgkeep.backup.attempt import Attempts
from pgkeep.backup.incremental import BackupPlan, plan_backup, server_history
from pgkeep.backup.request import BackupRequest, server_shape
from pgkeep.backup.source import ChangesUnknown, ParentUnreadable, TruncatedMeanwhile
from pgkeep.errors import PgkeepError, UsageError
from pgkeep.postgres.replication import ChecksumFailure, ReplicationConnection, SystemIdentity
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest

if TYPE_CHECKING:
    from pgkeep.backup.local import LocalPlace
    from pgkeep.repository.doomed import DoomWatch

__all__ = ["BackupRequest", "run_backup"]

_LONGEST_LABEL = 1023
"""Bytes; MAXPGPATH of PostgreSQL without its last. A label of several lines would put lines of its own into backup_label."""


_REPEATS = 3
"""How often a backup begins again because relations were truncated at the wrong moment, before everything is read."""


def run_backup(request: BackupRequest, repository: Repository, progress: Progress | None = None) -> Manifest:
    """Take a backup; returns its manifest once it is durable.

    Where it is known what changed since the newest backup, only that is read or stored; the backup is complete by itself
    all the same. Safe to interrupt and to run again: what reached the repository is not stored twice. Raises UsageError
    for a label that cannot be, ServerError, BusyError where another backup of this cluster runs into this repository,
    StoreError, DamageError.
    """
    if len(request.label.encode()) > _LONGEST_LABEL or not request.label.isprintable():
        raise UsageError(
            f"the label is longer than {_LONGEST_LABEL} bytes, or not one line of text", hint="choose a shorter word"
        )
    progress = progress or Silent()
    progress.phase("connecting")
    with ReplicationConnection.open(request.dsn) as connection:
        identity = connection.identify_system()
        shape = server_shape(connection)
        history = server_history(connection, identity)
    place, choice = _choose_place(request, identity)
    for note in choice:
        progress.note(note)
    with _claim(repository, identity, progress) as doom:
        plan = plan_backup(request, repository, identity, shape, history, local=place is not None)
        if (plan.parent is not None or plan.mends) and not plan.incremental:
            for reason in plan.reasons:
                progress.note(f"reading everything: {reason}")
        attempts = Attempts(request, repository, progress, identity, shape, history, place, choice, doom)
        manifest = _attempt(attempts, plan)
        # under the lease: what a writer without one leaves behind when it is killed, nobody removes
        _index_times(repository, manifest, progress)
    return manifest


def _choose_place(request: BackupRequest, identity: SystemIdentity) -> tuple[LocalPlace | None, list[str]]:
    """The data directory to read, None for the replication protocol; and what to tell where the choice was ours."""
    if request.mode == "stream":
        return None, []
    from pgkeep.backup.local import find_place

    place, why = find_place(request, identity.system_identifier)
    return place, [why] if request.mode == "auto" else []


def _attempt(attempts: Attempts, plan: BackupPlan) -> Manifest:
    """Take the backup in the cheapest way that the server and the repository let us."""
    # a server that has damaged pages fails at the end of a backup that it verifies; we record them
    verify_on_server = plan.parent is None or not plan.parent.damaged_pages
    repeats = 0
    while True:
        try:
            return attempts.make(plan, verify_on_server=verify_on_server)
        except ChangesUnknown as unknown:
            if not plan.incremental:
                raise
            if isinstance(unknown, TruncatedMeanwhile) and repeats < _REPEATS:
                repeats += 1
                attempts.progress.note(f"{unknown}: beginning again")
                continue
            plan = plan.read_fully(str(unknown))
            attempts.progress.note(f"reading everything: {unknown}")
        except ChecksumFailure as failure:
            if not verify_on_server:
                raise
            verify_on_server = False
            attempts.progress.note(f"{failure}: reading once more, to find and record the damaged pages")
        except ParentUnreadable as damage:
            plan = plan.without_parent(str(damage))
            attempts.progress.note(f"reading everything: {damage}")


@contextmanager
def _claim(repository: Repository, identity: SystemIdentity, progress: Progress) -> Iterator[DoomWatch]:
    """The lease, and what was doomed before anything was looked at that the backup will rest on: its parent may go any time."""
    with repository.lease(f"backup of cluster {identity.system_identifier}") as lease:
        if lease.took_over and (packs := repository.adopt_orphans()):
            progress.note(f"a backup was killed before: {packs} packs that it left are used again")
        yield repository.doom_watch()


def _index_times(repository: Repository, manifest: Manifest, progress: Progress) -> None:
    """Where WAL comes by ``archive_command`` alone nobody else does it; without the index, planning a restore reads the WAL itself."""
    if not repository.keys.opens_boxes:
        # in sealed mode, what the receiver has not indexed waits for who reads the repository
        return
    # only now: numpy takes a tenth of a second and 30 MB
    from pgkeep.wal.inventory import WalInventory
    from pgkeep.wal.times import WalTimes

    progress.phase("indexing the times of the WAL")
    try:
        inventory = WalInventory.read(repository.wal(manifest.system_identifier), manifest.wal.segment_size)
        WalTimes(repository, manifest.system_identifier, inventory).write_missing_groups()
    except PgkeepError as error:
        progress.note(f"the times of the WAL are not all in the index: {error}; the backup is complete all the same")
