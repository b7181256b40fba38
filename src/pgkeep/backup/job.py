"""The backup job: from a request to a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from pgkeep import __version__
from pgkeep.backup.assembler import FileAssembler
from pgkeep.backup.stream import receive, wait_for_start
from pgkeep.backup.wal import WalCollector
from pgkeep.errors import PgkeepError, ServerSettingError, UsageError
from pgkeep.postgres.backup_label import parse_backup_label
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import (
    ChecksumFailure,
    ReplicationConnection,
    SystemIdentity,
)
from pgkeep.progress import Progress, Silent
from pgkeep.receiver.frames import ReceiverOrder, Started
from pgkeep.receiver.parent import Receiver
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest, Tablespace, new_backup_id
from pgkeep.repository.maps import INLINE_BYTES
from pgkeep.units import parse_size, utc_now

__all__ = ["BackupRequest", "run_backup"]

_OLDEST_SERVER = 150000

_LONGEST_LABEL = 1023
"""Bytes; MAXPGPATH of PostgreSQL without its last. A label of several lines would put lines of its own into backup_label."""

_SLOTS_PER_JOB = 4
"""Cells between the receiver and each worker: one at work, the others so that neither waits for the other."""

_CHECKED_BLOCK_SIZE = 8192
"""The only size of blocks that is checked here; all but a handful of servers are built with it."""


class BackupRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is to be. ``rate`` in bytes a second; ``jobs`` worker threads, all processors where None."""

    cluster: str
    dsn: str
    label: str = "pgkeep"
    jobs: int | None = None
    rate: int | None = None
    fast_checkpoint: bool = True


class _ServerFacts(msgspec.Struct, frozen=True):
    version: int
    block_size: int
    segment_blocks: int
    wal_segment_size: int
    data_checksums: bool


def run_backup(request: BackupRequest, repository: Repository, progress: Progress | None = None) -> Manifest:
    """Take a full backup over the replication protocol; returns its manifest once it is durable.

    Safe to interrupt and to run again: what reached the repository is not stored twice. Raises UsageError for a label
    that cannot be, ServerError, BusyError where another backup of this cluster runs into this repository, StoreError,
    DamageError.
    """
    if len(request.label.encode()) > _LONGEST_LABEL or not request.label.isprintable():
        raise UsageError(
            f"the label is longer than {_LONGEST_LABEL} bytes, or not one line of text", hint="choose a shorter word"
        )
    progress = progress or Silent()
    progress.phase("connecting")
    with ReplicationConnection.open(request.dsn) as connection:
        identity = connection.identify_system()
        facts = _server_facts(connection)
    with _claim(repository, identity, progress):
        try:
            return _attempt(request, repository, progress, identity, facts, verify_on_server=True)
        except ChecksumFailure as failure:
            progress.note(f"{failure}: reading everything once more, to find and record the damaged pages")
            return _attempt(request, repository, progress, identity, facts, verify_on_server=False)


@contextmanager
def _claim(repository: Repository, identity: SystemIdentity, progress: Progress) -> Iterator[None]:
    with repository.lease(f"backup of cluster {identity.system_identifier}") as lease:
        if lease.took_over and (packs := repository.adopt_orphans()):
            progress.note(f"a backup was killed before: {packs} packs that it left are used again")
        yield


def _attempt(
    request: BackupRequest,
    repository: Repository,
    progress: Progress,
    identity: SystemIdentity,
    facts: _ServerFacts,
    *,
    verify_on_server: bool,
) -> Manifest:
    started = utc_now()
    check = None
    if facts.data_checksums and facts.block_size == _CHECKED_BLOCK_SIZE and not verify_on_server:
        # only here: numpy takes a tenth of a second and 30 MB, and few servers have damaged pages
        from pgkeep.backup.page_check import PageCheckLog

        check = PageCheckLog(facts.segment_blocks)
    archive = repository.wal(identity.system_identifier)
    cell_size = repository.parameters.cell_size
    slots = _SLOTS_PER_JOB * (request.jobs or os.cpu_count() or 1)
    order = ReceiverOrder(
        dsn=request.dsn,
        system_identifier=identity.system_identifier,
        label=request.label,
        fast_checkpoint=request.fast_checkpoint,
        verify_checksums=verify_on_server,
        max_rate=request.rate,
        cell_size=cell_size,
        inline_size=INLINE_BYTES,
        slots=slots,
    )
    with (
        Receiver(cell_size=cell_size, slots=slots) as receiver,
        WalCollector(request.dsn, archive, progress) as wal,
        repository.writer() as writer,
        FileAssembler(writer, repository.parameters, jobs=request.jobs, check=check) as assembler,
    ):
        receiver.begin(order)
        progress.phase("waiting for the server's checkpoint")
        frames = receiver.frames()
        start = wait_for_start(frames, progress)
        wal.start(LSN(start.start_lsn), start.timeline, facts.wal_segment_size)
        if check is not None:
            check.start_lsn = start.start_lsn
        progress.phase("copying", sum(size or 0 for _, _, size in start.tablespaces))
        received = receive(frames, receiver, assembler, wal.check, progress)
        from_standby = parse_backup_label(received.backup_label).backup_from == "standby"
        progress.phase("making it durable")
        wal_range = wal.finish(LSN(received.stop_lsn), from_standby=from_standby)
        directories = list(assembler.tree())
        writer.flush()
        manifest = Manifest(
            id=new_backup_id(started),
            cluster=request.cluster,
            label=request.label,
            mode="stream",
            system_identifier=identity.system_identifier,
            server_version=facts.version,
            from_standby=from_standby,
            started=started,
            finished=utc_now(),
            timeline=start.timeline,
            start_lsn=start.start_lsn,
            stop_lsn=received.stop_lsn,
            page_size=repository.parameters.page_size,
            block_size=facts.block_size,
            segment_blocks=facts.segment_blocks,
            data_checksums=facts.data_checksums,
            backup_label=received.backup_label,
            tablespace_map=received.tablespace_map,
            tablespaces=_tablespaces(start),
            directories=directories,
            wal=wal_range,
            logical_size=assembler.logical_size,
            stored_size=assembler.stored_size + wal_range.stored_size,
            new_size=writer.new_bytes,
            files=assembler.files,
            damaged_pages=check.damaged() if check is not None else [],
            writer=f"pgkeep {__version__}",
        )
        repository.catalog.commit(manifest)
    _index_times(repository, manifest, progress)
    return manifest


def _index_times(repository: Repository, manifest: Manifest, progress: Progress) -> None:
    """Where WAL comes by ``archive_command`` alone nobody else does it; without the index, planning a restore reads the WAL itself."""
    # only now: numpy takes a tenth of a second and 30 MB
    from pgkeep.wal.inventory import WalInventory
    from pgkeep.wal.times import WalTimes

    progress.phase("indexing the times of the WAL")
    try:
        inventory = WalInventory.read(repository.wal(manifest.system_identifier), manifest.wal.segment_size)
        WalTimes(repository, manifest.system_identifier, inventory).write_missing_groups()
    except PgkeepError as error:
        progress.note(f"the times of the WAL are not all in the index: {error}; the backup is complete all the same")


def _server_facts(connection: ReplicationConnection) -> _ServerFacts:
    version = connection.server_version
    if version < _OLDEST_SERVER:
        raise ServerSettingError(
            f"the server is PostgreSQL {version // 10000}; pgkeep backs up version 15 and later",
            hint="upgrade the server",
        )
    block_size = int(connection.show("block_size"))
    return _ServerFacts(
        version=version,
        block_size=block_size,
        segment_blocks=parse_size(connection.show("segment_size")) // block_size,
        wal_segment_size=parse_size(connection.show("wal_segment_size")),
        data_checksums=connection.show("data_checksums") == "on",
    )


def _tablespaces(start: Started) -> list[Tablespace]:
    return [
        Tablespace(oid, location, size or 0)
        for oid, location, size in start.tablespaces
        if oid is not None and location is not None
    ]
