"""The receiver: streams a cluster's WAL into a spool on this machine, and from there into every repository.

What it promises: an LSN is acknowledged to the server only when all WAL before it is durable in the spool; nothing is skipped
in silence; the server is never held back without an alarm. It goes on for ever: where the server, the slot or a repository
fails, it says so, waits and tries again. Intervals are measured by the monotonic clock, so that a clock that jumps does no harm.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from psycopg.conninfo import make_conninfo

from pgkeep.config import Cluster, Config
from pgkeep.errors import BusyError, PgkeepError, ServerError, StoreError
from pgkeep.opening import open_repository, read_secret
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication import ReplicationConnection, SystemIdentity
from pgkeep.postgres.replication_errors import PrerequisiteMissing, SlotIsBusy, SlotMissing, WalRemoved
from pgkeep.postgres.wal_stream import WalStream
from pgkeep.repository import Repository
from pgkeep.repository.wal_objects import WalArchive
from pgkeep.units import parse_duration, parse_size, utc_now
from pgkeep.wal.events import Alarms, Event
from pgkeep.wal.follow import SpoolRoom, follow
from pgkeep.wal.gap import GapFiller
from pgkeep.wal.pushed import PushedFiles
from pgkeep.wal.receiver_status import (
    STATUS_NAME,
    alarm_documents,
    last_complete,
    missing_end,
    repository_documents,
    time_text,
)
from pgkeep.wal.resume import OtherHistory
from pgkeep.wal.ship import Backoff, Shipper
from pgkeep.wal.slots import ServerWatch, SlotKeeper
from pgkeep.wal.small_files import write_json
from pgkeep.wal.socket_server import PushServer
from pgkeep.wal.spool import Spool, SpoolSegment
from pgkeep.wal.spool_keys import SpoolIdentity, create_spool_keys, lock_spool, open_spool_keys
from pgkeep.wal.starting_point import StartingPoint

if TYPE_CHECKING:
    from pgkeep.wal.times_writer import TimesWriter

__all__ = ["WalReceiver"]

_DEFAULT_TIMEOUT = 60.0
"""PostgreSQL's default of wal_sender_timeout, in seconds; taken where the server has none."""

_SILENCE = 1.5
"""How many times wal_sender_timeout may pass without a word before the server is asked for one."""

_LAST_SHIPPING = 10.0
"""Seconds for shipping what is left when the receiver is told to end."""

_TRIES_BEFORE_ALARM = 3
_SECONDS_BEFORE_ALARM = 10.0
"""After so many failed connections, or so long without one that works, it is an alarm."""

_STATUS_INTERVAL = 1.0

_HANGING = 30.0
"""Seconds that the spool's disk may take for a write before the connection is given up: the server must not wait for us."""


class WalReceiver:
    """Receives the WAL of one cluster until `stop`.

    ``on_gap(reason)`` is called in a thread of its own where WAL is missing for ever, to take a new base backup of the cluster
    into every repository; None: there is only the alarm. ``on_event`` hears everything worth saying, from any thread.
    ``until_lsn``: end by itself once WAL up to there is durable. ``slot_wait``: how many seconds to wait at the start
    for a slot that another receiver uses; later it waits for ever. ``pushed`` takes what an archive_command pushes.
    """

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        *,
        on_gap: Callable[[str], None] | None,
        on_event: Callable[[Event], None],
        until_lsn: LSN | None = None,
        slot_wait: float = 10.0,
    ) -> None:
        self.cluster = cluster
        self.alarms = Alarms(on_event)
        self.shippers: list[Shipper] = []
        self.spool: Spool | None = None
        self._room: SpoolRoom | None = None
        self._settings = config.repositories_of(cluster)
        self._dsn = make_conninfo(cluster.dsn, application_name=cluster.slot)
        self._until = until_lsn
        self._slot_wait = slot_wait
        self._started = utc_now()
        self._stopping = threading.Event()
        self._connected_since: datetime | None = None
        self._stream: WalStream | None = None
        self._complete: object = None
        self._was_healthy = self._is_healthy = False
        self._watch = ServerWatch(
            cluster.dsn, cluster.slot, self.alarms, cap=cluster.wal.slot_cap, synchronous=cluster.wal.synchronous
        )
        self._gaps = GapFiller(cluster.spool, on_gap, self.alarms)
        self._repositories: dict[str, Repository] = {}
        self.pushed = PushedFiles(lambda: self.spool, self._archives, lambda: self._stream is not None)
        self._times: dict[str, TimesWriter] = {}
        self._written: dict[str, object] = {}

    def run(self) -> None:
        """Receive, until `stop` or until ``until_lsn``.

        Raises BusyError where another receiver has the spool, or the slot for longer than ``slot_wait``; ConfigError,
        KeyFailure, DamageError and StoreError where the spool cannot be opened.
        """
        with lock_spool(self.cluster.spool):
            self._secrets = {settings.name: read_secret(settings.key) for settings in self._settings}
            self._complete = last_complete(self.cluster.spool)
            self._open_repositories()
            slot = SlotKeeper(self.cluster.slot, self.alarms)
            self._start = StartingPoint(slot, self._gaps, self.alarms, self._repositories)
            found = open_spool_keys(self.cluster.spool, self._secrets, self._repositories)
            if found is not None:
                self._use_spool(Spool(self.cluster.spool, *found))
            self._watch.start()
            self._gaps.start()
            keeper = threading.Thread(target=self._keep_house, name="keeper", daemon=True)
            keeper.start()
            try:
                with self._push_server():
                    self._receive_for_ever()
            finally:
                self._stopping.set()
                self._wind_down()
                keeper.join()
                with suppress(OSError):
                    self._write_status(running=False)

    def stop(self) -> None:
        """End soon: ship what is left, for some seconds at most, and let `run` return. For any thread, or a signal handler."""
        self._stopping.set()

    def has_shipped(self, lsn: LSN) -> bool:
        """Whether every repository has all WAL up to ``lsn``."""
        return bool(self.shippers) and all(
            shipper.shipped is not None and shipper.shipped.lsn >= lsn for shipper in self.shippers
        )

    def _receive_for_ever(self) -> None:
        backoff = Backoff()
        begun = broken_since = time.monotonic()
        failures = 0
        while not self._stopping.is_set():
            self._is_healthy = False
            self._wait_for_room()
            try:
                self._session()
            except PgkeepError as error:
                now = time.monotonic()
                if self._is_healthy:
                    backoff.reset()
                    failures, broken_since = 0, now
                failures += 1
                lasting = failures >= _TRIES_BEFORE_ALARM or now - broken_since >= _SECONDS_BEFORE_ALARM
                self._explain(error, lasting=lasting, at_start=now - begun < self._slot_wait)
                self._stopping.wait(backoff.next())
            finally:
                self._connected_since = self._stream = None

    def _wait_for_room(self) -> None:
        """While the spool is full there is no connection: see `follow`."""
        if self.spool is not None and self._room is not None and self._room.is_full():
            while not self._room.has_room() and not self._stopping.is_set():
                with self.spool.changed:
                    self.spool.changed.wait(0.25)

    def _explain(self, error: PgkeepError, *, lasting: bool, at_start: bool) -> None:
        """A connection ended in an error: what follows from it, and who is told."""
        if isinstance(error, StoreError) and self.spool is not None:
            self.alarms.raise_error("spool-disk", error)
            with suppress(StoreError):
                self.spool.rollback()
        elif isinstance(error, WalRemoved):
            self._start.lost = str(error)
        elif isinstance(error, PrerequisiteMissing | SlotMissing):
            self._start.slot_is_bad = True
            self.alarms.raise_alarm("slot", f"replication slot {self.cluster.slot} is made anew: {error}", error.hint)
        elif isinstance(error, SlotIsBusy):
            if not self._was_healthy and not at_start:
                raise BusyError(
                    f"another receiver streams from replication slot {self.cluster.slot}: {error}",
                    hint='stop that one, or give this one a slot of its own: wal = { slot = "…" }',
                ) from None
            if self._was_healthy and lasting:
                self.alarms.raise_error("slot-busy", error)
        elif isinstance(error, OtherHistory):
            self.alarms.raise_error("other-history", error)
        elif lasting:
            self.alarms.raise_alarm("connection", f"no WAL comes from the server: {error}", error.hint)
        else:
            self.alarms.warn("disconnected", str(error), error.hint)

    def _session(self) -> None:
        """One connection, from its beginning to its end; returns where the receiver is to stop, or to wait for room."""
        with ReplicationConnection.open(self._dsn) as connection:
            identity = connection.identify_system()
            spool = self._spool_of(connection, identity)
            assert self._room is not None
            silence = _silence_limit(connection)
            while not self._stopping.is_set():
                start = self._start.find(connection, identity, spool)
                for shipper in self.shippers:
                    shipper.begin_at(start)
                stream = connection.stream(start.lsn, start.timeline, self.cluster.slot)
                if stream.end is None:
                    self._begun(stream)
                    follow(
                        stream,
                        spool,
                        room=self._room,
                        synchronous=self.cluster.wal.synchronous,
                        silence=silence,
                        is_stopping=self._is_done,
                        on_healthy=self._healthy,
                    )
                if stream.end is None:
                    return
                if stream.end.next_timeline is None:
                    raise ServerError("the server is shutting down")
                self.alarms.info(
                    "timeline",
                    f"timeline {start.timeline} ended at {stream.end.switch}: on to timeline {stream.end.next_timeline}",
                )
                identity = connection.identify_system()

    def _begun(self, stream: WalStream) -> None:
        self._stream = stream
        self._connected_since = utc_now()
        self.alarms.info("streaming", f"receiving from {stream.position} on timeline {stream.timeline}")
        self._watch.look_soon()

    def _healthy(self) -> None:
        """The server speaks on a stream: what was wrong with the connection is over."""
        if not self._is_healthy:
            self._was_healthy = self._is_healthy = True
            self.alarms.settle("disconnected")
            for kind in ("connection", "slot", "slot-busy", "other-history", "spool-disk", "spool-damage"):
                self.alarms.clear(kind, "WAL is received again")

    def _is_done(self) -> bool:
        durable = self.spool.durable if self.spool is not None else None
        if self._until is not None and durable is not None and durable.lsn >= self._until:
            self._stopping.set()
        return self._stopping.is_set()

    def _open_repositories(self) -> None:
        """Those that can be opened now; for the others their shippers go on trying, and raise the alarm."""
        for settings in self._settings:
            with suppress(PgkeepError):
                self._repositories[settings.name] = open_repository(settings)

    def _archives(self, system_identifier: int) -> dict[str, WalArchive]:
        """The WAL of every repository. Raises what opening one raises."""
        for settings in self._settings:
            if settings.name not in self._repositories:
                self._repositories[settings.name] = open_repository(settings)
        return {name: repository.wal(system_identifier) for name, repository in self._repositories.items()}

    def _spool_of(self, connection: ReplicationConnection, identity: SystemIdentity) -> Spool:
        if self.spool is None:
            found = SpoolIdentity(identity.system_identifier, parse_size(connection.show("wal_segment_size")))
            keys = create_spool_keys(self.cluster.spool, found, self._secrets, self._repositories)
            self._use_spool(Spool(self.cluster.spool, found, keys))
            assert self.spool is not None
        known = self.spool.identity.system_identifier
        if known != identity.system_identifier:
            raise OtherHistory(
                f"the server is another cluster (system identifier {identity.system_identifier}) than the one whose WAL is"
                f" received ({known})",
                hint="mend the address; or, where the cluster was made anew, give it another name, slot and spool",
            )
        return self.spool

    def _use_spool(self, spool: Spool) -> None:
        for damage in [*spool.damage, *missing_end(spool)]:
            self.alarms.raise_error("spool-damage", damage)
        if spool.damage and spool.has_hole:
            self._gaps.report(str(spool.damage[0]))
        self.shippers = [
            Shipper(
                settings.name,
                partial(open_repository, settings),
                spool,
                self.alarms,
                ship_every=self.cluster.wal.ship_every,
                on_shipped=self._release,
                on_stored=self._stored,
                on_lost=self._gaps.report,
            )
            for settings in self._settings
        ]
        self._room = SpoolRoom(spool, self.cluster.wal.spool_limit, self.alarms)
        self.spool = spool
        for shipper in self.shippers:
            shipper.start()

    def _release(self) -> None:
        positions = [shipper.shipped for shipper in self.shippers]
        if self.spool is not None and all(position is not None for position in positions):
            self.spool.release(min(position for position in positions if position is not None))

    def _stored(self, repository: Repository, segment: SpoolSegment) -> None:
        """A whole segment is in a repository: what happened in it goes into the index of times, which others can do later."""
        from pgkeep.wal.times_writer import TimesWriter

        assert self.spool is not None
        identity = self.spool.identity
        if repository.id not in self._times:
            self._times[repository.id] = TimesWriter(repository, identity.system_identifier, identity.segment_size)
        try:
            data = self.spool.read(segment, segment.start, segment.end)
            self._times[repository.id].segment(segment.timeline, segment.start, data)
        except PgkeepError as error:
            self.alarms.warn(
                "times", f"the times of WAL segment {segment.name} are not in the index: {error}", error.hint
            )
        else:
            self.alarms.settle("times")

    def _push_server(self) -> PushServer:
        """Answers archive_command on a socket beside the spool."""
        return PushServer(self.cluster.push_socket, self.pushed)

    def _wind_down(self) -> None:
        self._watch.stop()
        self._gaps.stop()
        if self.spool is not None:
            with suppress(StoreError):
                self.spool.close()
        for shipper in self.shippers:
            shipper.finish(_LAST_SHIPPING)
        for shipper in self.shippers:
            shipper.join()

    def _keep_house(self) -> None:
        while not self._stopping.wait(_STATUS_INTERVAL):
            with suppress(OSError):
                self._write_status(running=True)
            for shipper in self.shippers:
                shipper.check()
            if self._room is not None:
                self._room.is_full()
            stream = self._stream
            if stream is not None and time.monotonic() - stream.asked_for > _HANGING:
                stream.abandon()

    def status(self) -> dict[str, object]:
        """The document of `pgkeep.wal.receiver_status`, but for ``running`` and ``updated``."""
        spool, stream = self.spool, self._stream
        position = spool.position if spool is not None else None
        durable = spool.durable if spool is not None else None
        return {
            "pid": os.getpid(),
            "started": time_text(self._started),
            "cluster": self.cluster.name,
            "system_identifier": str(spool.identity.system_identifier) if spool is not None else None,
            "slot": self.cluster.slot,
            "synchronous": self.cluster.wal.synchronous,
            "sync_state": self._watch.sync_state,
            "wal_status": self._watch.wal_status,
            "connected_since": time_text(self._connected_since),
            "timeline": position.timeline if position is not None else None,
            "received_lsn": str(position.lsn) if position is not None else None,
            "durable_lsn": str(durable.lsn) if durable is not None else None,
            "server_lsn": str(stream.server_end) if stream is not None else None,
            "complete": self._complete_document(stream),
            "spool": {
                "path": str(self.cluster.spool),
                "bytes": spool.size if spool is not None else 0,
                "limit": self.cluster.wal.spool_limit,
            },
            "repositories": repository_documents(self.shippers),
            "alarms": alarm_documents(self.alarms.active()),
        }

    def _complete_document(self, stream: WalStream | None) -> object:
        """Outlives the stream and the receiver: it is wanted most once the server is gone."""
        if stream is not None and (end := stream.complete) is not None:
            self._complete = {"timeline": stream.timeline, "lsn": str(end.lsn), "time": time_text(end.time)}
        return self._complete

    def _write_status(self, *, running: bool) -> None:
        status = {**self.status(), "running": running}
        if status != self._written:
            write_json(self.cluster.spool / STATUS_NAME, {**status, "updated": time_text(utc_now())}, durable=False)
            self._written = status


def _silence_limit(connection: ReplicationConnection) -> float:
    """Seconds of silence after which a server is asked for a sign of life."""
    text = connection.show("wal_sender_timeout")
    return _SILENCE * (parse_duration(text).total_seconds() if text != "0" else _DEFAULT_TIMEOUT)
