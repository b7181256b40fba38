"""From the spool into a repository: one thread for each, so that a slow one holds no other back.

In this order: history files, before any WAL of their timeline; finished segments, in order; and every ``ship_every`` seconds
what is new of the open segment, as a piece. How far a repository is stands in ``<spool>/shipped/<its name>.json``: a restart
ships little again, and shipping again is harmless. Where a repository fails, its shipper tries for ever.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pgkeep.errors import DamageError, PgkeepError, StoreError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import history_name
from pgkeep.repository import Repository
from pgkeep.repository.wal_objects import DifferentWalError, WalArchive, piece_name
from pgkeep.units import utc_now
from pgkeep.wal.events import Alarms
from pgkeep.wal.small_files import read_json, write_json
from pgkeep.wal.spool import Position, Spool, SpoolSegment

__all__ = ["Backoff", "Shipper"]

_TRIES_BEFORE_ALARM = 3
_SECONDS_BEFORE_ALARM = 10.0
_DIFFERENT_RETRY = 15.0
"""Seconds between tries where the repository holds other WAL: only a person can mend that."""


_DAMAGED_RETRY = 1.0

_LEAST_WAIT, _MOST_WAIT = 0.2, 0.5
"""Seconds between two looks at the spool while there is nothing to ship."""

_HANGING = 60.0
"""Seconds that a store may take for one object before it is an alarm."""


class Backoff:
    """Waiting times that double from ``first`` to ``most`` seconds, with jitter, so that many do not knock at once."""

    def __init__(self, first: float = 0.2, most: float = 15.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def next(self) -> float:
        """Seconds to wait now."""
        delay = self._next * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._next = min(self._next * 2, self._most)
        return delay

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._next = self._first


class Shipper:
    """Ships one spool into one repository.

    ``shipped`` is how far the repository is, ``shipped_at`` when that changed last, ``last_error`` what fails now, or None,
    ``busy_since`` the monotonic time when the store was asked for what it has not done yet, or None.
    ``on_stored`` is called after each whole segment, while the spool has it, ``on_shipped`` after anything, ``on_lost`` where WAL of the spool cannot
    be read any more.
    """

    def __init__(
        self,
        name: str,
        open_it: Callable[[], Repository],
        spool: Spool,
        alarms: Alarms,
        *,
        ship_every: float,
        on_shipped: Callable[[], None],
        on_stored: Callable[[Repository, SpoolSegment], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.name = name
        self.shipped: Position | None = None
        self.shipped_at: datetime | None = None
        self.last_error: str | None = None
        self.repository: Repository | None = None
        self.busy_since: float | None = None
        self._open_it = open_it
        self._archive: WalArchive | None = None
        self._spool = spool
        self._alarms = alarms
        self._ship_every = ship_every
        self._on_shipped = on_shipped
        self._on_stored = on_stored
        self._on_lost = on_lost
        self._thread = threading.Thread(target=self._run, name=f"ship to {name}", daemon=True)
        self._wake = threading.Event()
        self._finish_by: float | None = None
        self._histories: set[int] = set()
        self._identity: str | None = None
        self._piece_due = 0.0
        self._backoff = Backoff()
        self._failures = 0
        self._first_failure = 0.0
        self._read_progress()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def begin_at(self, position: Position) -> None:
        """Receiving begins here: where nothing waits in the spool, there is nothing before it to ship."""
        if self.shipped is None and not self._spool.segments():
            self.shipped = position

    def finish(self, seconds: float) -> None:
        """Ship what is left, for so many seconds at most, and end."""
        self._finish_by = time.monotonic() + seconds
        self._wake.set()
        with self._spool.changed:
            self._spool.changed.notify_all()

    def join(self) -> None:
        """Wait for the end; a store that hangs is left behind."""
        if self._thread.is_alive():
            self._thread.join(max((self._finish_by or time.monotonic()) - time.monotonic(), 0) + 1)

    def check(self) -> None:
        """Raise the alarm where the store has not answered for long: a disk of the network that hangs raises no error."""
        busy_since = self.busy_since
        if busy_since is not None and time.monotonic() - busy_since > _HANGING:
            self._alarms.raise_alarm(
                f"store {self.name}",
                f"repository {self.name} has not answered for {time.monotonic() - busy_since:.0f} s",
                "is its file system still there, and its network?",
            )

    def _run(self) -> None:
        while True:
            finishing = self._finish_by is not None
            if self._finish_by is not None and time.monotonic() > self._finish_by:
                return
            try:
                try:
                    worked = self._ship_next(finishing=finishing)
                finally:
                    self.busy_since = None
            except DifferentWalError as error:
                self._differs(error)
            except Exception as error:  # noqa: BLE001 - this thread must not end while there is WAL to ship
                self._failed(error)
            else:
                if worked:
                    self._succeeded()
                elif finishing:
                    return
                else:
                    self._wait_for_work()

    def _wait_for_work(self) -> None:
        with self._spool.changed:
            if self._finish_by is None:
                self._spool.changed.wait(min(max(self._piece_due - time.monotonic(), _LEAST_WAIT), _MOST_WAIT))

    def _ship_next(self, *, finishing: bool) -> bool:
        # looked at before the histories: a timeline's history is in the spool before its first byte
        segments = self._spool.segments()
        for timeline, content in sorted(self._spool.histories.items()):
            if timeline not in self._histories:
                archive = self._opened()
                self.busy_since = time.monotonic()
                archive.put(history_name(timeline), content)
                self._histories.add(timeline)
                self._note_progress(self.shipped)
                return True
        for segment in segments:
            if self.shipped is not None and self.shipped >= Position(segment.timeline, segment.end):
                continue
            if segment.complete and segment.first == segment.start:
                self._ship(segment, segment.start, segment.name)
                return True
            first = segment.first
            if self.shipped is not None and self.shipped.timeline == segment.timeline:
                first = max(first, min(self.shipped.lsn, segment.end))
            if segment.closed or finishing or time.monotonic() >= self._piece_due:
                self._piece_due = time.monotonic() + self._ship_every
                piece = piece_name(segment.name, first - segment.start, segment.end - segment.start)
                self._ship(segment, first, piece)
                return True
        return False

    def _ship(self, segment: SpoolSegment, first: int, name: str) -> None:
        archive = self._opened()
        sealer = archive.sealer(name)
        try:
            for data in self._spool.read(segment, first, segment.end):
                sealer.write(data)
        except DamageError as error:
            if segment.closed or segment.complete:
                self._spool.set_aside(segment)
                self._on_lost(f"WAL segment {segment.name} cannot be shipped: {error}")
                self._alarms.clear("spool-damage", f"the damaged WAL segment {segment.name} was set aside")
            else:
                # it is still being written; what can be done about it is done once it is complete
                self._alarms.raise_error("spool-damage", error)
                self._wait(_DAMAGED_RETRY)
            return
        self.busy_since = time.monotonic()
        archive.keep(sealer)
        self.busy_since = None
        if segment.complete and first == segment.start:
            assert self.repository is not None
            self._on_stored(self.repository, segment)
        self._note_progress(Position(segment.timeline, segment.end))

    def _opened(self) -> WalArchive:
        if self._archive is None:
            repository = self._open_it()
            known, self._identity = self._identity, repository.id
            if known not in {None, repository.id}:
                # it has nothing of what the first one was given
                self.shipped, self._histories = None, set()
                raise StoreError(f"another repository stands where {self.name} was: it gets all that the spool has")
            self.repository = repository
            self._archive = repository.wal(self._spool.identity.system_identifier)
        return self._archive

    def _differs(self, error: DifferentWalError) -> None:
        self.last_error = str(error)
        self._alarms.raise_error(
            f"different-wal {self.name}",
            PgkeepError(
                f"repository {self.name} holds other WAL than this server writes, and gets none until that is mended:"
                f" {error}",
                hint=error.hint,
            ),
        )
        self._wait(_DIFFERENT_RETRY)

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        self.last_error = str(error) or type(error).__name__
        self._first_failure = self._first_failure or now
        self._failures += 1
        # the next try opens the repository anew: its place may have been mounted again
        self._archive = None
        if self._failures >= _TRIES_BEFORE_ALARM or now - self._first_failure >= _SECONDS_BEFORE_ALARM:
            hint = error.hint if isinstance(error, PgkeepError) else None
            self._alarms.raise_alarm(
                f"store {self.name}", f"repository {self.name} takes no WAL: {self.last_error}", hint
            )
        self._wait(self._backoff.next())

    def _succeeded(self) -> None:
        self.last_error = None
        self._failures, self._first_failure = 0, 0.0
        self._backoff.reset()
        for kind in ("store", "different-wal"):
            self._alarms.clear(f"{kind} {self.name}", f"repository {self.name} takes WAL again")

    def _wait(self, seconds: float) -> None:
        if self._wake.wait(seconds):
            # once finishing, try again and again until time is up, but not in a hurry
            time.sleep(min(seconds, 0.2))

    @property
    def _progress_file(self) -> Path:
        return self._spool.directory / "shipped" / f"{self.name}.json"

    def _read_progress(self) -> None:
        try:
            document = read_json(self._progress_file)
            if document is not None:
                lsn, histories = document["lsn"], document["histories"]
                assert isinstance(histories, list)
                self._histories = {int(timeline) for timeline in histories}
                self._identity = str(document["repository"])
                if lsn is not None:
                    self.shipped = Position(int(str(document["timeline"])), LSN.parse(str(lsn)))
        except (OSError, ValueError, KeyError, AssertionError):
            # all is shipped once more, which does no harm
            self.shipped, self._histories, self._identity = None, set(), None

    def _note_progress(self, shipped: Position | None) -> None:
        self.shipped = shipped
        self.shipped_at = utc_now()
        document = {
            "repository": self._identity,
            "timeline": shipped.timeline if shipped is not None else None,
            "lsn": str(shipped.lsn) if shipped is not None else None,
            "histories": sorted(self._histories),
        }
        # a disk that is full gets room by what follows; without this note, a restart ships again
        with suppress(OSError):
            self._progress_file.parent.mkdir(mode=0o700, exist_ok=True)
            write_json(self._progress_file, document, durable=False)
        self._on_shipped()
