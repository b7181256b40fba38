"""One attempt at a backup: read, store, make durable, commit."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgkeep import __version__
from pgkeep.backup.assembler import FileAssembler
from pgkeep.backup.incremental import BackupPlan
from pgkeep.backup.request import BackupRequest, ServerShape
from pgkeep.backup.source import Source
from pgkeep.backup.stream_source import StreamSource
from pgkeep.backup.wal import WalCollector
from pgkeep.postgres.backup_label import parse_backup_label
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import SystemIdentity
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.progress import Progress
from pgkeep.receiver.frames import Started
from pgkeep.repository import Repository
from pgkeep.repository.contents import ContentWriter
from pgkeep.repository.manifests import Manifest, Tablespace, new_backup_id
from pgkeep.units import utc_now

if TYPE_CHECKING:
    from pgkeep.backup.changes import Changes
    from pgkeep.backup.deep_check import UnexplainedPages
    from pgkeep.backup.local import LocalPlace
    from pgkeep.backup.parent import ParentBackup
    from pgkeep.repository.doomed import DoomWatch

__all__ = ["Attempts"]


@dataclass(frozen=True, slots=True)
class Attempts:
    """What all attempts at one backup share.

    ``place`` is the data directory that is read, None to read over the wire; ``choice`` are notes that say why.
    ``doom`` is older than the choice of a parent.
    """

    request: BackupRequest
    repository: Repository
    progress: Progress
    identity: SystemIdentity
    shape: ServerShape
    history: TimelineHistory
    place: LocalPlace | None
    choice: list[str]
    doom: DoomWatch

    def make(self, plan: BackupPlan, *, verify_on_server: bool) -> Manifest:
        """Take the backup; its manifest, once it is durable.

        Raises ChangesUnknown, ParentUnreadable, ChecksumFailure (where it was the server's to verify), and what
        `run_backup` does.
        """
        request, repository, progress, shape = self.request, self.repository, self.progress, self.shape
        began = utc_now()
        parent, watch = self._open_parent(plan)
        with ExitStack() as stack:
            source = stack.enter_context(self._source(plan, parent, verify_on_server=verify_on_server))
            archive = repository.wal(self.identity.system_identifier)
            wal = stack.enter_context(WalCollector(request.dsn, archive, progress))
            writer = stack.enter_context(repository.writer(self.doom))
            changes = self._changes(parent, writer, watch)
            assembler = stack.enter_context(
                FileAssembler(
                    writer, repository.parameters, jobs=request.jobs, check=source.cell_check, changes=changes
                )
            )
            progress.phase("waiting for the server's checkpoint")
            start = source.begin()
            wal.start(LSN(start.start_lsn), start.timeline, shape.wal_segment_size)
            how = source.find_changes(plan.parent, self.history, explained=plan.explained)
            for reason in how.reasons:
                progress.note(reason)
            if how.incremental and plan.parent is not None:
                # the server estimates the whole cluster, and nobody knows what share of it will come
                progress.phase(f"copying what changed since {plan.parent.id}")
            else:
                progress.phase("copying", sum(size or 0 for _, _, size in start.tablespaces))
            received = source.read(assembler, changes, wal.check, number=plan.number, deep_check=request.deep_check)
            from_standby = parse_backup_label(received.backup_label).backup_from == "standby"
            progress.phase("making it durable")
            wal_range = wal.finish(LSN(received.stop_lsn), from_standby=from_standby)
            directories = list(assembler.tree())
            writer.flush()
            alarms = watch.alarms() if watch is not None else []
            for alarm in alarms:
                progress.note(alarm)
            manifest = Manifest(
                id=new_backup_id(began),
                cluster=request.cluster,
                label=request.label,
                mode=source.mode,
                kind="incremental" if how.incremental else "full",
                parent=plan.parent.id if plan.parent is not None else "",
                number=plan.number,
                system_identifier=self.identity.system_identifier,
                server_version=shape.version,
                from_standby=from_standby,
                started=began,
                finished=utc_now(),
                timeline=start.timeline,
                start_lsn=start.start_lsn,
                stop_lsn=received.stop_lsn,
                page_size=repository.parameters.page_size,
                block_size=shape.block_size,
                segment_blocks=shape.segment_blocks,
                data_checksums=shape.data_checksums,
                backup_label=received.backup_label,
                tablespace_map=received.tablespace_map,
                tablespaces=_tablespaces(start),
                directories=directories,
                wal=wal_range,
                logical_size=assembler.logical_size,
                stored_size=assembler.stored_size + wal_range.stored_size,
                new_size=writer.new_bytes,
                read_size=received.size,
                files=assembler.files,
                damaged_pages=source.damaged(),
                unexplained_pages=watch.found() if watch is not None else [],
                notes=[*self.choice, *plan.reasons, *how.reasons, *alarms],
                writer=f"pgkeep {__version__}",
            )
            self.doom.spare_later_ones()
            repository.catalog.commit(manifest)
        return manifest

    def _source(self, plan: BackupPlan, parent: ParentBackup | None, *, verify_on_server: bool) -> Source:
        if self.place is not None:
            from pgkeep.backup.local import LocalSource

            return LocalSource(self.place, self.request, self.shape, self.repository.parameters, self.progress)
        return StreamSource(
            self.request,
            self.identity,
            self.shape,
            self.repository.parameters,
            self.progress,
            plan,
            parent,
            self.history,
            verify_on_server=verify_on_server,
        )

    def _open_parent(self, plan: BackupPlan) -> tuple[ParentBackup | None, UnexplainedPages | None]:
        """The parent, and who looks at what differs from it, where it is known what may."""
        if plan.parent is None:
            return None, None
        # only here: numpy takes a tenth of a second and 30 MB, and a first backup does without
        from pgkeep.backup.deep_check import UnexplainedPages
        from pgkeep.backup.parent import ParentBackup

        # hint bits that were set without WAL are on one server's disk, and on no standby's
        same_server = not (plan.parent.from_standby or self.shape.in_recovery) and (
            plan.parent.timeline == self.identity.timeline
        )
        can_tell = plan.explained and same_server and self.shape.has_checked_pages
        watch = UnexplainedPages(plan.parent) if can_tell else None
        return ParentBackup(plan.parent, self.repository), watch

    def _changes(
        self, parent: ParentBackup | None, writer: ContentWriter, watch: UnexplainedPages | None
    ) -> Changes | None:
        if parent is None:
            return None
        from pgkeep.backup.changes import Changes

        return Changes(parent, writer, self.repository.parameters, watch)


def _tablespaces(start: Started) -> list[Tablespace]:
    return [
        Tablespace(oid, location, size or 0)
        for oid, location, size in start.tablespaces
        if oid is not None and location is not None
    ]
