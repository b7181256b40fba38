"""WAL as a walsender streams it: the COPY BOTH of START_REPLICATION, its acknowledgements, and how it ends.

Protocol: PostgreSQL documentation, 55.4 "Streaming Replication Protocol". A timeline that the server has left ends at its
switch point: the server says so with CopyDone, we answer with CopyDone, and a row names the timeline after it.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from psycopg import pq

from pgkeep.errors import ServerError
from pgkeep.postgres.lsn import LSN

if TYPE_CHECKING:
    from pgkeep.postgres.replication import ReplicationConnection

__all__ = ["EndOfStream", "ServerEnd", "WalBatch", "WalStream", "status_message"]

_EPOCH = 946_684_800
"""2000-01-01 in Unix time: the replication protocol counts microseconds from it."""

_BATCH_BYTES = 1 << 20
"""A batch takes no further message beyond it, so that memory stays small and a busy server is acknowledged in time."""

_STATUS = struct.Struct("!cQQQqB")

_LOOP_TIME = timedelta(seconds=1)
"""Two keepalives that are nearer may be answers to two questions that the server read at once."""


@dataclass(frozen=True, slots=True)
class EndOfStream:
    """Why the server stopped: it names the timeline after this one and where that begins; None where it is shutting down."""

    next_timeline: int | None
    switch: LSN | None


@dataclass(frozen=True, slots=True)
class ServerEnd:
    """At ``time``, by the server's clock, its WAL ended at ``lsn``."""

    lsn: LSN
    time: datetime


@dataclass(frozen=True, slots=True)
class WalBatch:
    """Bytes of WAL without a gap from ``start`` on; ``parts`` are empty where nothing came."""

    start: LSN
    parts: list[memoryview]
    size: int


class WalStream:
    """A stream of WAL that `ReplicationConnection.stream` began.

    ``position`` is the end of what was received, ``server_end`` where the server's WAL ends as far as it said,
    ``heard`` the monotonic time of its last message, ``asked_for`` that of the last `receive`, ``reply_requested`` whether it waits for `acknowledge`; ``end`` is
    set once the server has stopped. ``complete`` is the newest moment of which all WAL has been received, None until one is known.
    """

    def __init__(self, connection: ReplicationConnection, start: LSN, timeline: int) -> None:
        self._connection = connection
        self.timeline = timeline
        self.position = start
        self.server_end = start
        self.heard = self.asked_for = time.monotonic()
        self.reply_requested = False
        self.end: EndOfStream | None = None
        self.complete: ServerEnd | None = None
        self._keepalive: ServerEnd | None = None

    def receive(self, wait: float) -> WalBatch:
        """All that has come, up to about a mebibyte; waits ``wait`` seconds for it at most.

        Raises ServerError (WalRemoved among them) where the stream broke.
        """
        start, parts, size = self.position, [], 0
        self.asked_for = time.monotonic()
        while self.end is None and size < _BATCH_BYTES:
            message = self._connection.copy_data()
            if message is None:
                if size or not wait or not self._connection.wait_readable(wait):
                    break
                wait = 0
                continue
            self.heard = time.monotonic()
            if not message:
                self.end = self._finish()
                break
            if message[0] == ord("w"):
                sent, server_end, _ = struct.unpack_from("!QQq", message, 1)
                if sent != self.position:
                    raise ServerError(f"the server sent WAL of {LSN(sent)} where {self.position} was due")
                parts.append(message[25:])
                size += len(message) - 25
                self.position = LSN(sent + len(message) - 25)
                self.server_end = LSN(server_end)
                self._keepalive = None
            elif message[0] == ord("k"):
                server_end, sent_at, reply = struct.unpack_from("!QqB", message, 1)
                self.server_end = LSN(server_end)
                self._heard_keepalive(ServerEnd(LSN(server_end), _moment(sent_at)))
                self.reply_requested = self.reply_requested or bool(reply)
                if reply:
                    break
        return WalBatch(start, parts, size)

    def acknowledge(self, durable: LSN, *, ask: bool = False) -> None:
        """Tell the server what is durable here; with ``ask``, ask for a sign of life. Raises ServerError.

        Nothing is reported as applied: ``synchronous_commit = remote_apply`` is for servers that answer queries.
        """
        if self.end is None:
            self._connection.put_copy_data(status_message(durable, ask=ask))
            self.reply_requested = False

    def abandon(self) -> None:
        """Break the connection off, from any thread: the next `receive` raises ServerError."""
        self._connection.abandon()

    def _heard_keepalive(self, keepalive: ServerEnd) -> None:
        """A keepalive may precede WAL that was written before it (walsender.c answers first, and sends then): the next one shows
        that there was none, once the server has been through its loop between the two.
        """
        last = self._keepalive
        if last is None or keepalive.time - last.time >= _LOOP_TIME:
            self.complete = last or self.complete
            self._keepalive = keepalive

    def _finish(self) -> EndOfStream:
        result = self._connection.end_copy()
        if result is None:
            return EndOfStream(None, None)
        if result.status != pq.ExecStatus.TUPLES_OK or result.ntuples != 1:
            raise ServerError("the server ended the stream in a way that pgkeep does not know")
        return EndOfStream(int(result.get_value(0, 0) or 0), LSN.parse((result.get_value(0, 1) or b"").decode()))


def status_message(durable: LSN, *, ask: bool = False) -> bytes:
    """A standby status update: written and flushed up to ``durable``, nothing applied."""
    now = int((time.time() - _EPOCH) * 1_000_000)
    return _STATUS.pack(b"r", durable, durable, 0, now, ask)


def _moment(microseconds: int) -> datetime:
    """A time of the replication protocol."""
    return datetime.fromtimestamp(_EPOCH, UTC) + timedelta(microseconds=microseconds)
