"""The replication protocol as a source of pages: nothing of ours is needed on the database host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pgkeep.backup.incremental import BackupPlan, manifest_to_upload, paths_to_upload
from pgkeep.backup.request import BackupRequest, ServerShape
from pgkeep.backup.source import ChangesUnknown, HowRead, Received, TruncatedMeanwhile
from pgkeep.backup.stream import StreamReader, wait_for_start
from pgkeep.errors import ServerError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.replication import ChecksumFailure, SystemIdentity
from pgkeep.postgres.replication_errors import PrerequisiteMissing
from pgkeep.progress import Progress
from pgkeep.receiver.frames import Frame, ReceiverOrder, Started
from pgkeep.receiver.parent import Receiver
from pgkeep.repository.contents import Parameters
from pgkeep.repository.manifests import DamagedPage, Manifest
from pgkeep.repository.maps import INLINE_BYTES

if TYPE_CHECKING:
    import psycopg

    from pgkeep.backup.assembler import CellCheck, FileAssembler
    from pgkeep.backup.changes import Changes
    from pgkeep.backup.page_check import PageCheckLog
    from pgkeep.backup.parent import ParentBackup
    from pgkeep.postgres.timeline import TimelineHistory
    from pgkeep.postgres.truncations import Truncations

__all__ = ["StreamSource"]

_SLOTS_PER_JOB = 4
"""Cells between the receiver and each worker: one at work, the others so that neither waits for the other."""


class StreamSource:
    """A base backup over the replication protocol, incremental where the plan says so; see `pgkeep.backup.source`.

    With ``verify_on_server`` the server checks pages, and fails at the end where one is damaged; without, we do.
    """

    mode = "stream"

    def __init__(
        self,
        request: BackupRequest,
        identity: SystemIdentity,
        shape: ServerShape,
        parameters: Parameters,
        progress: Progress,
        plan: BackupPlan,
        parent: ParentBackup | None,
        history: TimelineHistory,
        *,
        verify_on_server: bool,
    ) -> None:
        self._request = request
        self._shape = shape
        self._progress = progress
        self._plan = plan
        self._parent = parent
        self._history = history
        self._order = ReceiverOrder(
            dsn=request.dsn,
            system_identifier=identity.system_identifier,
            label=request.label,
            fast_checkpoint=request.fast_checkpoint,
            verify_checksums=verify_on_server,
            max_rate=request.rate,
            cell_size=parameters.cell_size,
            inline_size=INLINE_BYTES,
            slots=_SLOTS_PER_JOB * (request.jobs or os.cpu_count() or 1),
            page_size=parameters.page_size,
            incremental=plan.incremental,
        )
        self._receiver = Receiver(cell_size=self._order.cell_size, slots=self._order.slots)
        self._stack = ExitStack()
        self._frames: Iterator[Frame] = iter(())
        self._start_lsn = 0
        self._sql: psycopg.Connection[tuple[Any, ...]] | None = None
        self._truncations: Truncations | None = None
        self._page_check = None if verify_on_server else _page_check(shape)
        self.cell_check: CellCheck | None = self._page_check

    def __enter__(self) -> Self:
        self._stack.__enter__()
        self._stack.enter_context(self._receiver)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self) -> Started:
        """Start the backup, after telling the server of the parent. Raises ServerError, ChangesUnknown."""
        if self._plan.incremental and self._parent is not None:
            self._sql = self._connect_sql()
            self._truncations = self._ask(self._sql, self._parent.manifest.start_lsn, None)
        self._receiver.begin(self._order, self._manifest_to_upload())
        self._frames = self._receiver.frames()
        try:
            started = wait_for_start(self._frames, self._progress)
        except (PrerequisiteMissing, ChecksumFailure) as refusal:
            # a damaged WAL summary has the SQLSTATE of a damaged page, but no page has been read yet
            if not self._plan.incremental:
                raise
            raise ChangesUnknown(f"the server cannot tell what changed: {refusal}") from None
        self._start_lsn = started.start_lsn
        if self._page_check is not None:
            self._page_check.start_lsn = started.start_lsn
        return started

    def find_changes(
        self,
        parent: Manifest | None,
        history: TimelineHistory,  # noqa: ARG002 - known from the beginning
        *,
        explained: bool,  # noqa: ARG002 - the plan knows
    ) -> HowRead:
        """Ask again which relations were truncated, now that WAL is summarized up to our start.

        Raises ChangesUnknown, and TruncatedMeanwhile where files were named to the server that it may send in part.
        """
        if self._sql is not None and self._truncations is not None and parent is not None:
            known, self._truncations = self._truncations, self._ask(self._sql, parent.start_lsn, self._start_lsn)
            if self._truncations.endangers_more_than(known):
                raise TruncatedMeanwhile("relations were truncated while the backup began")
        return HowRead(self._plan.incremental)

    def read(
        self,
        assembler: FileAssembler,
        changes: Changes | None,  # noqa: ARG002 - the assembler has it
        check: Callable[[], None],
        *,
        number: int,  # noqa: ARG002 - what is checked deeply was left out of the manifest
        deep_check: float,  # noqa: ARG002 - see number
    ) -> Received:
        """Store what the server sends. Raises ChecksumFailure, ServerError, DamageError."""
        reader = StreamReader(
            self._receiver,
            assembler,
            self._progress,
            self._order.page_size,
            self._shape.segment_blocks,
            self._truncations,
        )
        return reader.read(self._frames, check)

    def damaged(self) -> list[DamagedPage]:
        """Pages whose checksum is wrong; none where the server has checked them."""
        return self._page_check.damaged() if self._page_check is not None else []

    def _connect_sql(self) -> psycopg.Connection[tuple[Any, ...]]:
        try:
            return self._stack.enter_context(connect_sql(self._request.dsn))
        except ServerError as error:
            raise ChangesUnknown(f"which relations were truncated takes an SQL session to find out: {error}") from None

    def _ask(self, sql: psycopg.Connection[tuple[Any, ...]], start_lsn: int, stop_lsn: int | None) -> Truncations:
        """The truncations since an LSN, up to another one, or as far as WAL is summarized."""
        from pgkeep.postgres.truncations import Truncations

        try:
            if stop_lsn is None:
                return Truncations.so_far(sql, self._history, start_lsn)
            return Truncations.between(sql, self._history, start_lsn, stop_lsn)
        except ServerError as error:
            raise ChangesUnknown(str(error)) from None

    def _manifest_to_upload(self) -> Iterator[bytes]:
        if self._plan.incremental and self._parent is not None and self._truncations is not None:
            paths = paths_to_upload(self._plan, self._parent, self._truncations, self._request.deep_check)
            yield from manifest_to_upload(self._parent.manifest, paths)


def _page_check(shape: ServerShape) -> PageCheckLog | None:
    if not shape.has_checked_pages:
        return None
    # only here: numpy takes a tenth of a second and 30 MB, and few servers have damaged pages
    from pgkeep.backup.page_check import PageCheckLog

    return PageCheckLog(shape.segment_blocks)
