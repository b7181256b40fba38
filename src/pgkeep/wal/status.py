"""How a cluster's WAL is: what each repository holds of it, how old the newest is, and who brings it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pgkeep.config import Cluster, Config, RepositorySettings
from pgkeep.errors import KeyFailure, NotFoundError, PgkeepError, ServerError
from pgkeep.opening import open_repository
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal import parse_segment_name
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.units import utc_now
from pgkeep.wal.inventory import TimelineWal, WalInventory, WalSpan
from pgkeep.wal.overview import segment_size_of
from pgkeep.wal.receiver_status import read_status, receiver_runs
from pgkeep.wal.server_wal import ServerWal, read_server_wal
from pgkeep.wal.stamps import receiver_stamps
from pgkeep.wal.times import WalTimes
from pgkeep.wal.window import PathTimes

__all__ = ["NewestWal", "ReceiverState", "RepositoryWal", "TimelineRanges", "WalStatus", "read_wal_status"]


@dataclass(frozen=True, slots=True)
class TimelineRanges:
    """What is held of one timeline; ``gaps`` lie between the spans. ``branches_off`` is the parent and the LSN, where known."""

    timeline: int
    spans: list[WalSpan]
    gaps: list[WalSpan]
    has_history: bool
    branches_off: tuple[int, LSN] | None


@dataclass(frozen=True, slots=True)
class NewestWal:
    """Where the WAL of the newest timeline ends. ``current_at``: nothing is missing that was done before; None where unknown.

    ``behind`` is how many bytes the server has written since, None where it cannot be asked. ``age`` is in seconds: how much
    of the past would be lost with the server; 0 where it has written nothing since.
    """

    timeline: int
    lsn: LSN
    current_at: datetime | None
    behind: int | None
    age: float | None


@dataclass(frozen=True)
class RepositoryWal:
    """A cluster's WAL in one repository; ``error`` is why it cannot be told."""

    name: str
    url: str
    error: PgkeepError | None = None
    system_identifier: int | None = None
    timelines: list[TimelineRanges] = field(default_factory=list)
    backups: list[Manifest] = field(default_factory=list)
    newest: NewestWal | None = None


@dataclass(frozen=True)
class ReceiverState:
    """The receiver on this machine; ``document`` is what it wrote last (`pgkeep.wal.receiver_status`), empty where none ever ran."""

    running: bool
    document: Mapping[str, object]

    @property
    def connected(self) -> bool:
        """Whether a stream runs."""
        return self.running and self.document.get("connected_since") is not None

    @property
    def alarms(self) -> list[Mapping[str, object]]:
        """Those that are on."""
        return _mappings(self.document.get("alarms"))

    @property
    def repositories(self) -> list[Mapping[str, object]]:
        """How far each repository is."""
        return _mappings(self.document.get("repositories"))


@dataclass(frozen=True)
class WalStatus:
    """All of it at one moment; ``server`` is None where it cannot be asked, and ``server_error`` says why."""

    cluster: Cluster
    server: ServerWal | None
    server_error: ServerError | None
    receiver: ReceiverState
    repositories: list[RepositoryWal]


def read_wal_status(config: Config, cluster: Cluster) -> WalStatus:
    """Look everywhere; what fails is part of the answer."""
    server, server_error = None, None
    try:
        server = read_server_wal(cluster.dsn, cluster.slot)
    except ServerError as error:
        server_error = error
    receiver = _receiver(cluster.spool)
    repositories = [_repository(settings, cluster, server, receiver) for settings in config.repositories_of(cluster)]
    return WalStatus(cluster, server, server_error, receiver, repositories)


def _receiver(spool: Path) -> ReceiverState:
    """An unreadable spool is one that no receiver of this user works with."""
    try:
        return ReceiverState(receiver_runs(spool), read_status(spool) or {})
    except (OSError, ValueError):
        return ReceiverState(running=False, document={})


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _repository(
    settings: RepositorySettings, cluster: Cluster, server: ServerWal | None, receiver: ReceiverState
) -> RepositoryWal:
    try:
        repository = open_repository(settings)
        manifests = list(repository.catalog.read_all(cluster.name))
        system = _system_identifier(repository, manifests, server, receiver)
        return _read(repository, settings, cluster, system, manifests, server, receiver)
    except PgkeepError as error:
        return RepositoryWal(settings.name, settings.url, error)


def _system_identifier(
    repository: Repository, manifests: Sequence[Manifest], server: ServerWal | None, receiver: ReceiverState
) -> int:
    """Of the server itself, else of what its receiver or its newest backup say."""
    if server is not None:
        return server.system_identifier
    said = receiver.document.get("system_identifier")
    if said is not None:
        return int(str(said))
    if manifests:
        return manifests[-1].system_identifier
    known = repository.clusters()
    if len(known) == 1:
        return known[0]
    raise NotFoundError("nobody knows which cluster's WAL this is", hint="start the server, or take a backup of it")


def _read(
    repository: Repository,
    settings: RepositorySettings,
    cluster: Cluster,
    system: int,
    manifests: Sequence[Manifest],
    server: ServerWal | None,
    receiver: ReceiverState,
) -> RepositoryWal:
    own = [manifest for manifest in manifests if manifest.system_identifier == system]
    archive = repository.wal(system)
    found = RepositoryWal(settings.name, settings.url, system_identifier=system, backups=own)
    if not archive.timelines():
        return found
    size = server.segment_size if server is not None else segment_size_of(archive, own)
    inventory = WalInventory.read(archive, size)
    found.timelines.extend(_ranges(wal, inventory) for _, wal in sorted(inventory.timelines.items()))
    times = WalTimes(repository, system, inventory)
    newest = _newest(settings.name, cluster, inventory, times, server, receiver)
    return RepositoryWal(settings.name, settings.url, None, system, found.timelines, own, newest)


def _ranges(wal: TimelineWal, inventory: WalInventory) -> TimelineRanges:
    spans = wal.spans
    gaps = [WalSpan(before.end, after.start) for before, after in pairwise(spans)]
    known = inventory.has_history(wal.timeline)
    switches = inventory.history(wal.timeline).switches if known else ()
    branches_off = (switches[-1].parent, switches[-1].lsn) if switches else None
    return TimelineRanges(wal.timeline, spans, gaps, known, branches_off)


def _newest(
    name: str,
    cluster: Cluster,
    inventory: WalInventory,
    times: WalTimes,
    server: ServerWal | None,
    receiver: ReceiverState,
) -> NewestWal | None:
    timeline = max((t for t, wal in inventory.timelines.items() if wal.spans), default=None)
    if timeline is None:
        return None
    span = inventory.timelines[timeline].spans[-1]
    moments = [
        moment
        for moment in (
            _last_time(inventory, times, timeline, span),
            *(
                stamp.time
                for stamp in receiver_stamps(cluster.spool)
                if stamp.timeline == timeline and stamp.lsn <= span.end
            ),
            _shipped_at(name, receiver, timeline, span.end),
            _archived_at(server, timeline, span.end),
        )
        if moment is not None
    ]
    current_at = max(moments, default=None)
    behind = age = None
    if server is not None and server.timeline == timeline:
        behind = max(server.lsn - span.end, 0)
    if behind == 0:
        age = 0.0
    elif current_at is not None:
        now = server.now if server is not None else utc_now()
        age = max((now - current_at).total_seconds(), 0.0)
    return NewestWal(timeline, span.end, current_at, behind, age)


def _last_time(inventory: WalInventory, times: WalTimes, timeline: int, span: WalSpan) -> datetime | None:
    if not inventory.has_history(timeline):
        return None
    try:
        return PathTimes(inventory.history(timeline), inventory, times).known_until(span.start, span.end)
    except KeyFailure:
        # in sealed mode, a host knows what it has sent and cannot look into it
        return None


def _shipped_at(name: str, receiver: ReceiverState, timeline: int, end: LSN) -> datetime | None:
    """When the receiver shipped last: what it had not received by then, the server wrote later."""
    for document in receiver.repositories:
        shipped, at = document.get("shipped_lsn"), document.get("shipped_at")
        if document.get("name") == name and document.get("timeline") == timeline and shipped and at:
            return datetime.fromisoformat(str(at)) if LSN.parse(str(shipped)) <= end else None
    return None


def _archived_at(server: ServerWal | None, timeline: int, end: LSN) -> datetime | None:
    """When the server archived its last segment, where the repository has it."""
    if server is None or server.archiver.last_archived is None or not server.archiver.is_on:
        return None
    try:
        archived, start = parse_segment_name(server.archiver.last_archived, server.segment_size)
    except ValueError:
        return None
    there = archived == timeline and start + server.segment_size <= end
    return server.archiver.last_archived_time if there else None
