"""WAL out of several repositories: who is asked, in what order, and when a file is truly absent.

A whole segment is taken from the first repository that has it unharmed. What is not whole (pieces of the open segment, the
``.partial`` of a timeline that ended) is taken only where every repository answered and none has it whole: PostgreSQL takes
zeros for the end of the WAL, so that offering less than there is would end recovery early. A file is absent only where every
repository says so, and is still the repository that it was.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pgkeep.errors import DamageError, Interrupted, NotFoundError, PgkeepError, TargetError, UsageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, history_name, parse_history, parse_history_name
from pgkeep.postgres.wal import WalFileKind, check_segment_header, classify, parse_segment_name, read_segment_header
from pgkeep.repository.store import ObjectMissing
from pgkeep.wal.fetch_files import FileFolder, NewFile, writing
from pgkeep.wal.fetch_source import WalSource, limited
from pgkeep.wal.growing import GrowingSegment
from pgkeep.wal.inventory import TimelineWal

__all__ = ["TIME_LIMIT", "Fetched", "WalSources"]

TIME_LIMIT = 300.0
"""Seconds that a store may take for one file or listing."""

_LISTING_AGE = 1.0
"""Seconds for which a listing may speak of absence: a segment is asked for on several timelines, of most of them in vain."""

_LISTINGS = 32
"""Listings that are remembered: a few timelines of a few repositories, each with 4 GiB of WAL."""

_SHUN_SECONDS = 15.0
"""How long a repository that failed is asked after the others."""

T = TypeVar("T")


@dataclass
class Fetched:
    """A file that waits to be moved to its place. ``size`` is its WAL in bytes, without padding; ``notes`` are for people."""

    file: NewFile
    size: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Listing:
    """``asked`` and ``answered`` are when, by `time.monotonic`."""

    asked: float
    answered: float
    wal: TimelineWal


class WalSources:
    """The WAL of one cluster in several repositories, the first being asked first; safe for threads."""

    def __init__(
        self,
        sources: Sequence[WalSource],
        system_identifier: int,
        segment_size: int,
        *,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        self.segment_size = segment_size
        self._sources = list(sources)
        self._system_identifier = system_identifier
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._listings: OrderedDict[tuple[WalSource, int, int], _Listing] = OrderedDict()
        self._confirmed: dict[WalSource, tuple[float, bool]] = {}
        self._shunned: dict[WalSource, float] = {}
        self._growing: tuple[WalSource, GrowingSegment] | None = None

    def fetch(self, name: str, folder: FileFolder, *, asked: float | None = None) -> Fetched | None:
        """Bring a file into the folder; None where it is absent from every repository.

        What is not whole is all that the repositories had at some moment after ``asked`` (`time.monotonic`; None: now).
        Raises what kept a repository from answering (StoreError, DamageError, KeyFailure, ...) where no other has the file;
        TargetError where the folder cannot be written; UsageError for a name that no WAL file has.
        """
        began = time.monotonic() if asked is None else asked
        kind = classify(name)
        if kind is None:
            raise UsageError(f"not the name of a WAL file: {name!r}", hint="a name such as 000000010000000000000001")
        if kind is not WalFileKind.SEGMENT:
            return self._fetch_stored(name, kind, folder)
        fetched = self.fetch_whole(name, folder)
        return self._fetch_unfinished(name, folder, began) if fetched is None else fetched

    def fetch_whole(self, name: str, folder: FileFolder) -> Fetched | None:
        """`fetch` for a segment; None where no repository has it whole, though there may be pieces of it."""
        timeline, start = self._parse(name)
        attempts = _Attempts(name)
        for source in self._order():
            with self._attempt(source, attempts):
                if self._lists_whole(source, timeline, start):
                    return attempts.served(source, self._copy_whole(source, name, folder))
        attempts.raise_failures()
        return None

    def has_whole(self, timeline: int, start: int) -> bool:
        """Whether a repository lists the segment whole; one that failed lately is not asked."""
        for source in self._order():
            if self._is_shunned(source):
                continue
            with self._attempt(source, _Attempts("")):
                if self._lists_whole(source, timeline, start):
                    return True
        return False

    def newest_timeline(self) -> int:
        """The highest number of which a repository that answers has anything; 1 where there is nothing."""
        newest = 1
        for source in self._order():
            with self._attempt(source, _Attempts("")):
                newest = max([newest, *self._timelines(source)])
        return newest

    def history(self, timeline: int) -> TimelineHistory:
        """How a timeline came about. Raises NotFoundError where no repository has its history file; else as `fetch`."""
        if timeline == 1:
            return TimelineHistory(1)
        name = history_name(timeline)
        attempts = _Attempts(name)
        for source in self._order():
            with self._attempt(source, attempts), contextlib.suppress(ObjectMissing):
                return parse_history(timeline, self._limited(source, lambda: source.archive.get(name)))  # noqa: B023
        attempts.raise_failures()
        raise NotFoundError(f"no repository has {name}")

    def _fetch_unfinished(self, name: str, folder: FileFolder, began: float) -> Fetched | None:
        """A segment that no repository has whole."""
        start = self._parse(name)[1]
        listed = self._ask_all(name, began - _LISTING_AGE)
        offered = any(_offers(listing.wal, start) for listing in listed.values())
        if offered:
            # what is not whole may have grown since
            listed = self._ask_all(name, began)
        self._confirm_all(name, max(listing.answered for listing in listed.values()))
        if not offered:
            return None
        return self._fetch_longest(name, folder, {source: listing.wal for source, listing in listed.items()})

    def _fetch_longest(self, name: str, folder: FileFolder, listed: dict[WalSource, TimelineWal]) -> Fetched | None:
        timeline, start = self._parse(name)
        attempts = _Attempts(name)
        for source, wal in listed.items():
            if start in wal.whole:
                with self._attempt(source, attempts):
                    return attempts.served(source, self._copy_whole(source, name, folder))
        attempts.raise_failures()
        for wal in listed.values():
            if start in wal.partial:
                wal.switches = self._switches(timeline)
        longest = max(wal.end_in(start) for wal in listed.values())
        for source, wal in listed.items():
            if wal.end_in(start) == longest and _offers(wal, start):
                with self._attempt(source, attempts):
                    return attempts.served(source, self._build(source, wal, start, name, folder))
        attempts.raise_failures()
        return None

    def _fetch_stored(self, name: str, kind: WalFileKind, folder: FileFolder) -> Fetched | None:
        attempts = _Attempts(name)
        for source in self._order():
            with self._attempt(source, attempts), contextlib.suppress(ObjectMissing):
                if kind is WalFileKind.PARTIAL:
                    return attempts.served(source, self._copy_partial(source, name, folder))
                return attempts.served(source, self._copy_small(source, name, kind, folder))
        attempts.raise_failures()
        self._confirm_all(name, time.monotonic())
        return None

    def _ask_all(self, name: str, asked_since: float) -> dict[WalSource, _Listing]:
        """What every repository lists of a segment's neighbourhood; raises where one does not answer."""
        timeline, start = self._parse(name)
        attempts = _Attempts(name)
        listed = {}
        for source in self._sources:
            with self._attempt(source, attempts):
                listed[source] = self._listing(source, timeline, start, asked_since)
        attempts.raise_failures()
        return listed

    def _confirm_all(self, name: str, since: float) -> None:
        """Raise where a repository was not there any more after ``since``, or where none ever heard of this cluster."""
        attempts = _Attempts(name)
        knows = []
        for source in self._sources:
            with self._attempt(source, attempts):
                confirmed, known = self._confirmed.get(source, (0.0, False))
                if confirmed < since:
                    asked = time.monotonic()
                    known = self._limited(source, source.confirm)
                    self._confirmed[source] = asked, known
                knows.append(known)
        attempts.raise_failures()
        if not any(knows):
            raise NotFoundError(
                f"no repository holds anything of cluster {self._system_identifier}: {self._names()}",
                hint="is this the right configuration, and the right data directory?",
            )

    def _names(self) -> str:
        return ", ".join(source.name for source in self._sources)

    def _switches(self, timeline: int) -> list[LSN]:
        """Where newer timelines branch off this one."""
        found = []
        for newer in range(timeline + 1, self.newest_timeline() + 1):
            with contextlib.suppress(NotFoundError):
                found += [switch.lsn for switch in self.history(newer).switches if switch.parent == timeline]
        return found

    def _copy_whole(self, source: WalSource, name: str, folder: FileFolder) -> Fetched:
        return self._copy_segment(source, name, name, folder, exact=True)

    def _copy_partial(self, source: WalSource, name: str, folder: FileFolder) -> Fetched:
        return self._copy_segment(source, name, name.removesuffix(".partial"), folder, exact=False)

    def _copy_segment(self, source: WalSource, stored: str, name: str, folder: FileFolder, *, exact: bool) -> Fetched:
        def copy() -> Fetched:
            chunks = source.archive.stream(stored)
            with _naming(source, stored):
                first = next(chunks)
                self._check_header(name, first)
            new, size = folder.new_file(stored), 0
            with writing(new) as file, _naming(source, stored):
                for chunk in itertools.chain([first], chunks):
                    file.write(chunk)
                    size += len(chunk)
                if size > self.segment_size or (exact and size < self.segment_size):
                    raise DamageError(f"it has {size} bytes instead of {self.segment_size}")
                file.truncate(self.segment_size)
            return Fetched(new, size)

        return self._limited(source, copy, _discard)

    def _copy_small(self, source: WalSource, name: str, kind: WalFileKind, folder: FileFolder) -> Fetched:
        def copy() -> Fetched:
            data = source.archive.get(name)
            if kind is WalFileKind.HISTORY:
                with _naming(source, name):
                    parse_history(parse_history_name(name), data)
            new = folder.new_file(name)
            with writing(new) as file:
                file.write(data)
            return Fetched(new, len(data))

        return self._limited(source, copy, _discard)

    def _build(self, source: WalSource, wal: TimelineWal, start: int, name: str, folder: FileFolder) -> Fetched:
        """What a repository has of a segment, with zeros behind it."""
        chain, end = wal.chain(start), wal.end_in(start)
        if start in wal.partial and (not chain or chain[-1][1] < end):
            return self._copy_segment(source, f"{name}.partial", name, folder, exact=False)
        with self._lock:
            kept, self._growing = self._growing, None
        if kept is None or kept[0] is not source or kept[1].name != name or kept[1].reached > end:
            kept = (source, GrowingSegment(name, self.segment_size, folder))
        growing = kept[1]

        def build() -> Fetched:
            growing.extend(source.archive, chain)
            with _naming(source, name):
                self._check_header(name, growing.header())
            return Fetched(growing.copy(folder), end)

        fetched = self._limited(source, build, _discard)
        with self._lock:
            self._growing = kept
        return fetched

    def _check_header(self, name: str, data: bytes) -> None:
        timeline, start = self._parse(name)
        check_segment_header(
            read_segment_header(data),
            system_identifier=self._system_identifier,
            timeline=timeline,
            start=start,
            segment_size=self.segment_size,
        )

    def _parse(self, name: str) -> tuple[int, int]:
        try:
            return parse_segment_name(name, self.segment_size)
        except ValueError as error:
            raise UsageError(str(error), hint="is it a segment of another cluster?") from None

    def _lists_whole(self, source: WalSource, timeline: int, start: int) -> bool:
        """By a listing of any age where that says yes, since nothing is taken back; else by a young one."""
        since = time.monotonic() - _LISTING_AGE
        return (
            start in self._listing(source, timeline, start, 0).wal.whole
            or start in self._listing(source, timeline, start, since).wal.whole
        )

    def _listing(self, source: WalSource, timeline: int, start: int, asked_since: float) -> _Listing:
        log = start >> 32
        key = (source, timeline, log)
        with self._lock:
            known = self._listings.get(key)
            if known is not None and known.asked >= asked_since:
                self._listings.move_to_end(key)
                return known
        asked = time.monotonic()
        wal = self._limited(
            source,
            lambda: TimelineWal.of(
                timeline, self.segment_size, (name for name, _ in source.archive.names(timeline, log))
            ),
        )
        listing = _Listing(asked, time.monotonic(), wal)
        with self._lock:
            self._listings[key] = listing
            self._listings.move_to_end(key)
            while len(self._listings) > _LISTINGS:
                self._listings.popitem(last=False)
        return listing

    def _timelines(self, source: WalSource) -> list[int]:
        def ask() -> list[int]:
            return source.archive.timelines()

        return self._limited(source, ask)

    def _limited(self, source: WalSource, call: Callable[[], T], discard: Callable[[T], None] = lambda _: None) -> T:
        return limited(call, self._time_limit, source.name, discard)

    def _order(self) -> list[WalSource]:
        return sorted(self._sources, key=self._is_shunned)

    def _is_shunned(self, source: WalSource) -> bool:
        return time.monotonic() < self._shunned.get(source, 0)

    @contextlib.contextmanager
    def _attempt(self, source: WalSource, attempts: _Attempts) -> Iterator[None]:
        """Within it, what fails is the repository's failure, and the next one is asked."""
        began = time.monotonic()
        try:
            yield
        except (TargetError, Interrupted):
            raise
        except PgkeepError as error:
            attempts.failures.append((source, error))
            if not isinstance(error, DamageError):
                now = time.monotonic()
                # one that hangs costs its whole time limit each time
                self._shunned[source] = now + max(_SHUN_SECONDS, now - began)
            with self._lock:
                for key in [key for key in self._listings if key[0] is source]:
                    del self._listings[key]


class _Attempts:
    """What went wrong on the way to a file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.failures: list[tuple[WalSource, PgkeepError]] = []

    def served(self, source: WalSource, fetched: Fetched) -> Fetched:
        """The file, with a word on who did not give it."""
        fetched.notes += [
            f"{self._name} comes from {source.name}, because {failed.name} failed: {error}"
            for failed, error in self.failures
        ]
        return fetched

    def raise_failures(self) -> None:
        """Raise what was seen: damage first, it does not go away by itself."""
        if not self.failures:
            return
        worst = next((error for _, error in self.failures if isinstance(error, DamageError)), self.failures[0][1])
        told = "; ".join(f"{source.name}: {error}" for source, error in self.failures)
        raised = type(worst)(f"cannot bring {self._name}: {told}", hint=worst.hint)
        if isinstance(raised, DamageError) and isinstance(worst, DamageError):
            raised.object_name = worst.object_name
        raise raised


def _offers(wal: TimelineWal, start: int) -> bool:
    return wal.end_in(start) > 0 or start in wal.partial


def _discard(fetched: Fetched) -> None:
    fetched.file.discard()


@contextlib.contextmanager
def _naming(source: WalSource, stored: str) -> Iterator[None]:
    """Within it, damage is that of this object."""
    try:
        yield
    except DamageError as error:
        name = error.object_name or source.archive.object_name(stored)
        text = str(error) if name in str(error) else f"{name}: {error}"
        raise DamageError(text, hint=error.hint, object_name=name) from None
