"""Segments that recovery will ask for, kept ready beside its ``pg_wal``, so that `restore_command` is one rename.

A few threads bring the segments that follow the one asked for last, along the path of timelines, into
``pg_wal/pgkeep.prefetch``. A request that finds its segment there moves it to the place that PostgreSQL names; one that does
not waits for its own fetch, however long the store takes, and for nothing else. What is not whole is never kept ready: it is
made when asked for, of all that the repositories have then.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pgkeep.errors import BusyError, NotFoundError, PgkeepError
from pgkeep.postgres.timeline import TimelineHistory, parse_history_name
from pgkeep.postgres.wal import WalFileKind, classify, parse_segment_name, segment_name
from pgkeep.repository.wal_objects import WalArchive
from pgkeep.wal.by_files import FileRequests
from pgkeep.wal.fetch import ABSENT, PREFETCH_FOLDER, Answer, answer_of
from pgkeep.wal.fetch_files import FileFolder
from pgkeep.wal.fetch_source import WalSource
from pgkeep.wal.fetch_sources import TIME_LIMIT, Fetched, WalSources
from pgkeep.wal.prefetch_server import PrefetchServer
from pgkeep.wal.prefetch_window import source_of, upcoming

__all__ = ["Prefetcher", "open_lock", "prefetch_folder"]

LOCK, LOG = "lock", "log"

_ROOM = 1 << 30
"""Bytes of segments that are kept ready at most, unless said otherwise; one segment always is."""

_SPARE_SEGMENTS = 4
"""Room for so many segments is left to the server on its disk."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds without prefetching after a failure, doubled each time. Requests are served meanwhile."""

_END_SECONDS = 5.0
_IN_PG_WAL = re.compile(r"pg_wal/([A-Za-z0-9_][A-Za-z0-9_.]*)", re.ASCII)

_log = logging.getLogger(__name__)


def prefetch_folder(pg_wal: Path) -> FileFolder:
    """The prefetcher's folder in ``pg_wal``, made where it is not there. Raises TargetError."""
    return FileFolder(pg_wal).folder(PREFETCH_FOLDER)


def open_lock(folder: FileFolder, *, wait: float = 0.0) -> int:
    """A descriptor that holds the folder's lock. Raises BusyError where another prefetcher holds it for ``wait`` seconds."""
    descriptor = folder.open(LOCK, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise BusyError(f"another prefetcher works in {folder.path}") from None
        time.sleep(0.05)


class Prefetcher:
    """Serves `restore_command` of one server while the context is open; see `pgkeep.wal.fetch.restore_command`.

    ``fetched_segments`` and ``fetched_bytes`` count what came out of the repositories, ``waited_seconds`` how long requests
    for segments that were found have taken.
    """

    def __init__(
        self,
        pg_wal_directory: Path,
        sources: Sequence[WalArchive | WalSource],
        segment_size: int,
        *,
        path: TimelineHistory | None = None,
        depth: int,
        jobs: int,
        limit_lsn: int | None = None,
        room: int = _ROOM,
        time_limit: float = TIME_LIMIT,
        system_identifier: int | None = None,
        lock: int | None = None,
        by_files: bool = False,
    ) -> None:
        """``depth`` segments are kept ready, but not more than ``room`` bytes of them; ``jobs`` threads bring them.

        ``path`` None: the newest timeline's, or that of the timeline that is asked for. None that begins at ``limit_lsn`` or
        behind it is brought before it is asked for. ``time_limit``: seconds that a store may take for one file. ``lock`` is a
        descriptor of `open_lock`, which is closed at the end. ``system_identifier`` None: that of the first archive. ``by_files``: the server is in a
        container, see `pgkeep.wal.by_files`.
        """
        named = [
            source if isinstance(source, WalSource) else WalSource.of_archive(f"repository {number}", source)
            for number, source in enumerate(sources, 1)
        ]
        if system_identifier is None:
            system_identifier = named[0].archive.system_identifier
        self.fetched_segments = 0
        self.fetched_bytes = 0
        self.waited_seconds = 0.0
        self._pg_wal_path = pg_wal_directory
        self._sources = WalSources(named, system_identifier, segment_size, time_limit=time_limit)
        self._segment_size = segment_size
        self._path = path
        self._depth = min(depth, max(1, room // segment_size))
        self._jobs = jobs
        self._limit_lsn = limit_lsn
        self._time_limit = time_limit
        self._lock_descriptor = lock
        self._by_files = by_files

        self._changed = threading.Condition()
        self._ended = False
        self._requests: dict[str, int] = {}
        self._at_work = 0
        self._last_request = time.monotonic()
        self._position: tuple[int, int] | None = None
        self._served_history: int | None = None
        self._to_plan = False
        self._planning = False
        self._wanted: list[str] = []
        self._ready: dict[str, Fetched] = {}
        self._under_way: set[str] = set()
        self._asked: str | None = None
        self._hung: dict[str, PgkeepError] = {}
        self._failures = 0
        self._paused_until = 0.0

    def __enter__(self) -> Prefetcher:
        """Raises BusyError where another one works there; TargetError."""
        self._pg_wal = FileFolder(self._pg_wal_path)
        self._folder = prefetch_folder(self._pg_wal_path)
        if self._lock_descriptor is None:
            self._lock_descriptor = open_lock(self._folder, wait=_END_SECONDS)
        self._clear()
        self._server = (FileRequests if self._by_files else PrefetchServer)(self._folder, self.fetch)
        self._threads = [
            threading.Thread(target=self._work, name=f"wal-prefetch-{number}", daemon=True)
            for number in range(self._jobs if self._depth else 0)
        ]
        for thread in self._threads:
            thread.start()
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving, and remove all but a log. Threads that hang in a store are left behind."""
        self._server.__exit__()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        deadline = time.monotonic() + _END_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._clear()
        assert self._lock_descriptor is not None
        os.close(self._lock_descriptor)
        if LOG not in self._folder.names():
            self._folder.remove(LOCK)
            try:
                os.rmdir(PREFETCH_FOLDER, dir_fd=self._pg_wal.descriptor)
            except OSError as error:
                _log.warning("%s stays: %s", self._folder.path, error.strerror)

    @property
    def idle_seconds(self) -> float:
        """Since the last request was answered; 0 while there is one."""
        with self._changed:
            return 0.0 if self._at_work else time.monotonic() - self._last_request

    @property
    def ready(self) -> list[str]:
        """The names of the segments that are ready."""
        with self._changed:
            return sorted(self._ready)

    def start_after(self, name: str) -> None:
        """Begin with what follows a file that recovery has already."""
        self._moved(name)

    def fetch(self, name: str, path: str, still_wanted: Callable[[], bool] = lambda: True) -> Answer | None:
        """Bring a file to ``path``, ``pg_wal/`` and a name; None for any other path, which is not ours to write.

        ``still_wanted`` is asked before the file is put there.
        """
        place = _IN_PG_WAL.fullmatch(path)
        if place is None or place[1] == PREFETCH_FOLDER:
            return None
        with self._changed:
            mine = self._requests[place[1]] = self._requests.get(place[1], 0) + 1
            self._at_work += 1
        try:
            fetched = self._find(name)
            if fetched is None:
                return ABSENT
            with self._changed:
                # a server that was stopped and started again must not find the file of an older request
                if mine != self._requests[place[1]] or not still_wanted():
                    fetched.file.discard()
                    raise BusyError(f"nobody waits for {name} at {path} any more")
                fetched.file.move(self._pg_wal, place[1])
            for note in fetched.notes:
                _log.warning("%s", note)
            return Answer(0, "; ".join(fetched.notes))
        except Exception as error:  # noqa: BLE001  (nothing may look like "absent")
            answer = answer_of(error)
            _log.error("%s", answer.message)
            return answer
        finally:
            with self._changed:
                self._at_work -= 1
                self._last_request = time.monotonic()

    def _find(self, name: str) -> Fetched | None:
        began = time.monotonic()
        if classify(name) is not WalFileKind.SEGMENT:
            fetched = self._sources.fetch(name, self._folder)
            if fetched is not None:
                self._moved(name)
            return fetched
        timeline, start = parse_segment_name(name, self._segment_size)
        with self._changed:
            self._asked = name
            self._hung.clear()
            while name in self._under_way:
                self._changed.wait()
            if name in self._hung:
                raise self._hung[name]
            fetched = self._ready.pop(name, None)
        if fetched is None:
            if self._sources.has_whole(timeline, start):
                self._moved(name)
            fetched = self._sources.fetch(name, self._folder, asked=began)
            self._count(fetched)
        else:
            self._moved(name)
        if fetched is not None:
            with self._changed:
                self.waited_seconds += time.monotonic() - began
        return fetched

    def _count(self, fetched: Fetched | None) -> None:
        if fetched is not None:
            with self._changed:
                self.fetched_segments += 1
                self.fetched_bytes += fetched.size

    def _moved(self, name: str) -> None:
        """Recovery has this file now: what it will ask for next has changed."""
        with self._changed:
            if classify(name) is WalFileKind.SEGMENT:
                self._position = parse_segment_name(name, self._segment_size)
            elif classify(name) is WalFileKind.HISTORY:
                self._served_history = parse_history_name(name)
            self._to_plan = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                job()
            except Exception:  # noqa: BLE001  (requests are served without it)
                _log.exception("prefetching failed")
                with self._changed:
                    self._paused_until = time.monotonic() + _LONGEST_PAUSE

    def _next_job(self) -> Callable[[], None] | None:
        """Waits for something to do; None at the end."""
        with self._changed:
            while not self._ended:
                if self._to_plan and not self._planning and self._position is not None:
                    self._to_plan, self._planning = False, True
                    return self._plan
                pause = self._paused_until - time.monotonic()
                name = None if pause > 0 else self._next_name()
                if name is not None:
                    self._under_way.add(name)
                    return lambda: self._bring(name)
                self._changed.wait(pause if pause > 0 else None)
        return None

    def _next_name(self) -> str | None:
        if len(self._ready) + len(self._under_way) >= self._depth:
            return None
        return next(
            (
                name
                for name in self._wanted
                if name not in self._ready and name not in self._under_way and name != self._asked
            ),
            None,
        )

    def _plan(self) -> None:
        """Find out what comes next, and drop what does not."""
        with self._changed:
            position, history = self._position, self._served_history
            self._served_history = None
        assert position is not None
        timeline, start = position
        wanted: list[str] = []
        try:
            self._path = self._follow(timeline, start, history)
            found = upcoming(
                self._path,
                timeline,
                start,
                self._segment_size,
                self._sources.has_whole,
                count=self._depth,
                limit_lsn=self._limit_lsn,
            )
            wanted = [segment_name(timeline, start, self._segment_size) for timeline, start in found]
        finally:
            with self._changed:
                self._planning = False
                self._wanted = wanted
                for name in self._ready.keys() - set(wanted) - {self._asked}:
                    self._ready.pop(name).file.discard()
                self._changed.notify_all()

    def _follow(self, timeline: int, start: int, served_history: int | None) -> TimelineHistory:
        """The path that recovery is on, now that it took this timeline's segment."""
        path = self._path
        if served_history is not None and (path is None or served_history > path.timeline):
            newer = self._history(served_history)
            if timeline in newer.timelines:
                path = newer
        if path is None:
            path = self._history(self._sources.newest_timeline())
        # had it known of a newer timeline with this segment, it would have taken that one's
        if timeline in path.timelines and timeline == source_of(
            path, start, self._segment_size, self._has(timeline, start)
        ):
            return path
        return self._history(timeline)

    def _has(self, timeline: int, start: int) -> Callable[[int, int], bool]:
        return lambda of, at: (of, at) == (timeline, start) or self._sources.has_whole(of, at)

    def _history(self, timeline: int) -> TimelineHistory:
        try:
            return self._sources.history(timeline)
        except PgkeepError as error:
            if not isinstance(error, NotFoundError):
                _log.warning("%s", error)
            return TimelineHistory(timeline)

    def _bring(self, name: str) -> None:
        """Bring a segment before it is asked for. A failure is told by the request that fails too, if there ever is one."""
        fetched = None
        pause = 0.0
        began = time.monotonic()
        try:
            if self._folder.free_bytes() < (_SPARE_SEGMENTS + 1) * self._segment_size:
                pause = _LONGEST_PAUSE
            else:
                fetched = self._sources.fetch_whole(name, self._folder)
                self._count(fetched)
        except PgkeepError as error:
            _log.warning("%s", error)
            pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
            if time.monotonic() - began >= self._time_limit:
                # who waits for this has waited long enough
                with self._changed:
                    self._hung[name] = error
        finally:
            with self._changed:
                self._under_way.discard(name)
                self._failures = 0 if fetched is not None else self._failures + 1
                if pause:
                    self._paused_until = time.monotonic() + pause
                if fetched is not None and not self._ended and name in {*self._wanted, self._asked}:
                    self._ready[name] = fetched
                elif fetched is not None:
                    fetched.file.discard()
                self._changed.notify_all()

    def _clear(self) -> None:
        """Remove all files but the lock and the log, and what killed processes have left in ``pg_wal``."""
        with self._changed:
            self._ready.clear()
        for name in self._folder.names():
            if name not in {LOCK, LOG}:
                self._folder.remove(name)
        self._pg_wal.remove_leftovers()
