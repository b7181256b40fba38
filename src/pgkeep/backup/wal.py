"""The WAL that a backup needs, streamed beside it into the repository, so that the backup is complete by itself."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from pgkeep.errors import ServerError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import ReplicationConnection, WalChunk, temporary_slot_name
from pgkeep.postgres.timeline import history_name
from pgkeep.postgres.wal import segment_name
from pgkeep.progress import Progress
from pgkeep.repository.manifests import WalRange
from pgkeep.repository.sealed import ObjectSealer
from pgkeep.repository.wal_objects import WalArchive, piece_name

__all__ = ["WalCollector"]

_SEGMENT_END_WAIT = 10.0
"""Seconds to wait for the rest of the last segment: a primary switches segments at once when a backup stops."""

_LAG_LIMIT = 300.0
"""Seconds without any sign of the stop LSN before the stream counts as broken."""


class WalCollector:
    """Streams WAL from a backup's start into the archive; use as a context manager around the whole backup.

    Entering it takes a temporary slot, so that the server keeps what the backup will need. `start` begins to stream,
    `finish` returns when all WAL up to the stop LSN is durable. An error of its thread is raised by `check`.
    """

    def __init__(self, dsn: str, archive: WalArchive, progress: Progress) -> None:
        self._dsn = dsn
        self._archive = archive
        self._progress = progress
        self._thread = threading.Thread(target=self._run, name="wal", daemon=True)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._stop_lsn: LSN | None = None
        self._stop_known = 0.0
        self._names: list[str] = []
        self._stored_size = 0
        self._sealer: ObjectSealer | None = None

    def __enter__(self) -> WalCollector:
        self._connection = ReplicationConnection.open(self._dsn, self._progress.note)
        try:
            self._slot: str | None = temporary_slot_name()
            try:
                self._connection.create_temporary_slot(self._slot)
            except ServerError as error:
                self._slot = None
                self._progress.note(f"no replication slot for the backup's WAL ({error}); it must keep up without one")
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()

    def start(self, start_lsn: LSN, timeline: int, segment_size: int) -> None:
        """Stream from the segment that holds ``start_lsn``."""
        self._timeline = timeline
        self._segment_size = segment_size
        self._start_lsn = start_lsn
        self._position = LSN(start_lsn - start_lsn % segment_size)
        self._durable = self._position
        if timeline > 1:
            _, history = self._connection.timeline_history(timeline)
            self._keep_history(history_name(timeline), history)
        self._connection.start_replication(self._position, timeline, self._slot)
        self._thread.start()

    def check(self) -> None:
        """Raise what broke the stream, if anything did."""
        if self._failure is not None:
            raise self._failure

    def finish(self, stop_lsn: LSN, *, from_standby: bool) -> WalRange:
        """Wait until the WAL up to ``stop_lsn`` is durable. Raises ServerError, StoreError.

        A standby cannot switch segments: what there is of the last one is kept as a piece, without waiting.
        """
        self._segment_end_wait = 0.0 if from_standby else _SEGMENT_END_WAIT
        self._stop_known = time.monotonic()
        self._stop_lsn = stop_lsn
        while self._thread.is_alive():
            self._thread.join(0.2)
        self.check()
        return WalRange(
            timeline=self._timeline,
            start_lsn=int(self._start_lsn),
            stop_lsn=int(stop_lsn),
            segment_size=self._segment_size,
            segments=self._names,
            stored_size=self._stored_size,
        )

    def _run(self) -> None:
        try:
            for chunk in self._connection.wal(lambda: self._durable, wait=0.05):
                if chunk is not None:
                    self._take(chunk)
                if self._stop.is_set() or self._is_complete():
                    return
            raise ServerError(
                f"the server ended timeline {self._timeline} during the backup",
                hint="a standby was promoted or its primary changed; run the backup again",
            )
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks
            self._failure = error

    def _take(self, chunk: WalChunk) -> None:
        data = chunk.data
        if data and chunk.start != self._position:
            raise ServerError(f"the server sent WAL of {chunk.start} where {self._position} was due")
        while data:
            if self._sealer is None:
                self._sealer = self._archive.sealer(segment_name(self._timeline, self._position, self._segment_size))
            room = self._segment_size - self._position % self._segment_size
            part, data = data[:room], data[room:]
            self._sealer.write(part)
            self._position = LSN(self._position + len(part))
            if self._position % self._segment_size == 0:
                self._names.append(segment_name(self._timeline, LSN(self._position - 1), self._segment_size))
                self._stored_size += self._archive.keep(self._sealer)
                self._sealer = None
                self._durable = self._position

    def _is_complete(self) -> bool:
        if self._stop_lsn is None:
            return False
        waited = time.monotonic() - self._stop_known
        if self._durable >= self._stop_lsn:
            return True
        if self._position >= self._stop_lsn and waited >= self._segment_end_wait:
            self._keep_piece()
            return True
        if waited > _LAG_LIMIT:
            raise ServerError(
                f"the backup's WAL ends at {self._position}, short of its stop LSN {self._stop_lsn}",
                hint="is the server's WAL sender alive? see pg_stat_replication and the server's log",
            )
        return False

    def _keep_piece(self) -> None:
        """The last segment is not complete and may not be for long: its beginning is kept as a piece."""
        assert self._sealer is not None
        start = self._position - self._position % self._segment_size
        plain = self._archive.unseal(self._sealer)
        self._sealer = None
        segment = segment_name(self._timeline, LSN(start), self._segment_size)
        name = piece_name(segment, 0, len(plain))
        self._stored_size += self._archive.put(name, plain)
        self._names.append(name)
        self._durable = self._position

    def _keep_history(self, name: str, content: bytes) -> None:
        self._stored_size += self._archive.put(name, content)
        self._names.append(name)
