"""A backup read beside the data: the low-level backup API, and the files themselves."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgkeep.backup.local.feeding import Feeder, HowFilesChanged
from pgkeep.backup.local.page_check import LocalPageCheck
from pgkeep.backup.local.place import LocalPlace, check_place, read_control_bytes
from pgkeep.backup.local.reading import Pace, Reads
from pgkeep.backup.local.summaries import SummariesMissing, read_changes
from pgkeep.backup.local.walk import DataDirectory, FoundDirectory
from pgkeep.backup.source import HowRead, Received
from pgkeep.errors import DamageError
from pgkeep.postgres.control_file import CONTROL_FILE
from pgkeep.postgres.low_level_backup import LowLevelBackup
from pgkeep.postgres.lsn import LSN
from pgkeep.progress import Progress
from pgkeep.receiver.frames import FileFacts, Started
from pgkeep.repository.contents import Parameters
from pgkeep.repository.manifests import DamagedPage, Manifest

if TYPE_CHECKING:
    from pgkeep.backup.assembler import CellCheck, FileAssembler
    from pgkeep.backup.changes import Changes
    from pgkeep.backup.request import BackupRequest, ServerShape
    from pgkeep.postgres.timeline import TimelineHistory
    from pgkeep.postgres.wal_summary import BlockChanges

__all__ = ["LocalSource"]

_LARGE = 16 << 20
"""Bytes from which on a file comes before smaller ones, the largest first: few enough that their names fit in memory."""

_CHECK_EVERY = 1.0
"""Seconds between two looks whether the session is still there."""

_FIRST_WITH_SUMMARIES = 170000


class LocalSource:
    """Reads the data directory of a running server; use as a context manager. See `pgkeep.backup.source.Source`."""

    mode: str = "local"
    cell_check: CellCheck | None = None
    """Pages are checked as they are read."""

    def __init__(
        self,
        place: LocalPlace,
        request: BackupRequest,
        shape: ServerShape,
        parameters: Parameters,
        progress: Progress,
    ) -> None:
        """Connect. Raises ServerError."""
        self._place = place
        self._request = request
        self._shape = shape
        self._parameters = parameters
        self._progress = progress
        self._backup = LowLevelBackup(request.dsn)
        self._start = LSN(0)
        self._timeline = 0
        self._summaries: BlockChanges | None = None
        self._parent_start: int | None = None
        self._checked = 0.0
        self._reads: Reads | None = None
        self._page_check: LocalPageCheck | None = None
        self._large: list[FileFacts] = []

    def __enter__(self) -> LocalSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._backup.__exit__()
        if self._reads is not None:
            self._reads.close()

    def begin(self) -> Started:
        """Begin; the server's checkpoint is done, and the sizes of all files are known. Raises ServerError."""
        self._start, self._timeline = self._backup.start(self._request.label, fast=self._request.fast_checkpoint)
        with self._backup.explained("begin"):
            control = check_place(self._backup.sql, self._place)
        self._directory = DataDirectory(self._place.directory, self._place.version // 10000, control)
        self._reads = Reads(self._directory)
        if self._shape.has_checked_pages:
            self._page_check = LocalPageCheck(self._start, self._shape.segment_blocks)
        sizes = self._look_around()
        tablespaces: list[tuple[int | None, bytes | None, int | None]] = [
            (tablespace.oid, tablespace.location, sizes.get(tablespace.oid, 0))
            for tablespace in self._directory.tablespaces
        ]
        return Started(int(self._start), self._timeline, [*tablespaces, (None, None, sizes.get(None, 0))])

    def find_changes(self, parent: Manifest | None, history: TimelineHistory, *, explained: bool) -> HowRead:
        """How the changes since the parent are found: by WAL summaries, by the LSNs of pages, or by their bytes."""
        if parent is None or not explained:
            return HowRead(incremental=False)
        if parent.stop_lsn > self._start:
            reason = (
                f"backup {parent.id} ends at {LSN(parent.stop_lsn)}, and this one begins before that, at {self._start}:"
                " the standby has had no restart point since"
            )
            return HowRead(incremental=False, reasons=[reason])
        reasons = []
        if self._shape.summarize_wal:
            try:
                with self._backup.explained("go on with"):
                    self._summaries = read_changes(
                        self._backup.sql, self._place.directory, parent, history, self._start, self._timeline
                    )
                return HowRead(incremental=True)
            except (SummariesMissing, DamageError) as error:
                reasons.append(str(error))
        elif self._shape.version >= _FIRST_WITH_SUMMARIES:
            reasons.append(
                "summarize_wal is off, so that no WAL summary tells what changed"
                " (ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();)"
            )
        if not (self._shape.has_checked_pages and parent.data_checksums):
            reasons.append(
                "without data checksums the pages' LSNs do not tell all that changed: everything is compared"
            )
            return HowRead(incremental=False, reasons=reasons)
        self._parent_start = parent.start_lsn
        reasons.append("which pages changed is told by their LSNs: everything is read, and only what changed is stored")
        return HowRead(incremental=True, reasons=reasons)

    def read(
        self,
        assembler: FileAssembler,
        changes: Changes | None,
        check: Callable[[], None],
        *,
        number: int,
        deep_check: float,
    ) -> Received:
        """Give every file to the assembler, the control file last, and end the backup on the server.

        ``check`` is called often, and raises what should end the backup early. Raises ServerError, ServerSettingError where
        a file may not be read, StoreError, DamageError.
        """
        reads = self._reads
        assert reads is not None

        def look() -> None:
            check()
            if time.monotonic() - self._checked >= _CHECK_EVERY:
                self._backup.check()
                self._checked = time.monotonic()

        how = HowFilesChanged(
            None if changes is None else changes.parent,
            self._directory,
            self._summaries,
            self._parent_start,
            self._shape,
            number=number,
            deep_check=deep_check,
        )
        feeder = Feeder(
            assembler,
            reads,
            how,
            self._page_check,
            self._parameters,
            Pace(self._request.rate),
            self._progress,
            look,
        )
        assembler.directory(b"", 0o700)
        given = {file.path for file in self._large if feeder.give(file)}
        for found in self._directory.walk():
            if isinstance(found, FoundDirectory):
                assembler.directory(found.path, found.mode)
            elif found.path not in given:
                feeder.give(found)
        reads.wait(look)
        control, facts = self._control_file()
        stopped = self._backup.stop()
        assembler.begin(facts)
        assembler.cell(lambda: control, len(control))
        assembler.end()
        for name, text in ((b"backup_label", stopped.backup_label), (b"tablespace_map", stopped.tablespace_map)):
            assembler.put(FileFacts(name, len(text), facts.mode, int(time.time())), text, text)
        assembler.drain()
        return Received(stopped.backup_label, stopped.tablespace_map, int(stopped.stop_lsn), reads.size + len(control))

    def damaged(self) -> list[DamagedPage]:
        """Pages that were read, twice, and whose checksum is wrong."""
        return [] if self._page_check is None else self._page_check.damaged()

    def _look_around(self) -> dict[int | None, int]:
        """Bytes of each tablespace, None for the data directory; remembers the large files."""
        sizes: dict[int | None, int] = {}
        large: list[FileFacts] = []
        for found in self._directory.walk():
            if isinstance(found, FileFacts):
                oid = self._directory.tablespace_of(found.path)
                sizes[oid] = sizes.get(oid, 0) + found.size
                if found.size >= _LARGE:
                    large.append(found)
        self._large = sorted(large, key=lambda file: file.size, reverse=True)
        return sizes

    def _control_file(self) -> tuple[bytes, FileFacts]:
        """Read when all else has been: from a standby it says how far recovery must go (basebackup.c)."""
        data = read_control_bytes(self._place.directory)
        facts = os.stat(self._directory.absolute(CONTROL_FILE.encode()))
        mode = stat.S_IMODE(facts.st_mode)
        return data, FileFacts(CONTROL_FILE.encode(), len(data), mode, int(facts.st_mtime))
