"""From a stream into the spool: when what was received is made durable, and when the server is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from pgkeep.errors import ServerError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_stream import WalStream
from pgkeep.units import format_size
from pgkeep.wal.events import Alarms
from pgkeep.wal.spool import Spool

__all__ = ["SpoolRoom", "follow"]

_POLL = 0.25
"""Seconds after which a wait for the server looks whether to stop."""

_SYNC_INTERVAL = 1.0
"""Seconds between two fsyncs of a receiver that nobody waits for."""

_STATUS_INTERVAL = 10.0
"""Seconds between status updates while nothing happens."""

_ANSWER_WAIT = 10.0
"""Seconds that a server has for a sign of life once it was asked for one."""

_LEVELS = (("spool-half", 0.5), ("spool-nearly-full", 0.8), ("spool-full", 1.0))
_CLEARED_BELOW = 0.8
"""An alarm ends when the spool takes less than this share of what raised it, so that it does not flutter."""


class SpoolRoom:
    """How full the spool is: alarms at half, at four fifths, and at the limit, where receiving stops for a while."""

    def __init__(self, spool: Spool, limit: int, alarms: Alarms) -> None:
        self._spool = spool
        self._alarms = alarms
        # less could not hold a segment until it is complete, and another while it is shipped
        self.limit = max(limit, 3 * spool.identity.segment_size)

    def is_full(self) -> bool:
        """Whether nothing more may be taken; raises and ends the alarms."""
        size = self._spool.size
        for kind, share in _LEVELS:
            if size >= self.limit * share:
                self._alarms.raise_alarm(
                    kind,
                    f"{format_size(size)} of WAL wait for a repository, of {format_size(self.limit)} that the spool may take"
                    + ("; nothing is received, and the server holds WAL back" if share >= 1 else ""),
                    "which repository takes no WAL? see the other alarms; the limit is wal = { spool_limit = … }",
                )
            elif size < self.limit * share * _CLEARED_BELOW:
                self._alarms.clear(kind, f"no more than {format_size(size)} of WAL wait for a repository")
        return size >= self.limit

    def has_room(self) -> bool:
        """Whether receiving may go on after the spool was full: not at the first byte that leaves."""
        return not self.is_full() and self._spool.size < self.limit * _CLEARED_BELOW


def follow(
    stream: WalStream,
    spool: Spool,
    *,
    room: SpoolRoom,
    synchronous: bool,
    silence: float,
    is_stopping: Callable[[], bool],
    on_healthy: Callable[[], None],
) -> None:
    """Receive until the stream ends, the spool is full or the receiver is to stop; all is durable and acknowledged then.

    Where the spool is full the caller has to close the connection. A walsender whose receiver does not read cannot be ended
    by the server once its slot reaches max_slot_wal_keep_size, and the checkpointer waits for that end for ever.

    An LSN is acknowledged only after the fsync that covers it: as soon as the socket is drained where commits wait for it,
    else once a second and whenever the server asks. ``silence`` is after how many seconds without a word the server is asked
    for one. ``on_healthy`` is called whenever the server has been heard. Raises ServerError, StoreError.
    """
    synced = reported = 0.0
    asked: float | None = None
    heard, acknowledged = stream.heard, _durable(spool)
    # it answers with a keepalive: a stream that began is not yet one that works
    stream.acknowledge(acknowledged, ask=True)
    while stream.end is None and not is_stopping() and not room.is_full():
        until_sync = synced + _SYNC_INTERVAL - time.monotonic()
        batch = stream.receive(min(_POLL, max(until_sync, 0)) if spool.is_dirty else _POLL)
        if batch.size:
            spool.append(batch.start, batch.parts)
        now = time.monotonic()
        if spool.is_dirty and (synchronous or stream.reply_requested or now - synced >= _SYNC_INTERVAL):
            spool.sync()
            synced = now = time.monotonic()
        # the end of a segment makes itself durable
        is_news = _durable(spool) > acknowledged and (synchronous or now - reported >= _SYNC_INTERVAL)
        is_quiet = now - reported >= _STATUS_INTERVAL
        if is_news or stream.reply_requested or is_quiet:
            acknowledged = _durable(spool)
            # the answer says up to when nothing has happened
            stream.acknowledge(acknowledged, ask=is_quiet)
            reported = now
        if stream.heard > heard:
            heard, asked = stream.heard, None
            on_healthy()
        elif asked is None and now - heard > silence:
            stream.acknowledge(_durable(spool), ask=True)
            asked = now
        elif asked is not None and now - asked > _ANSWER_WAIT:
            raise ServerError(f"the server has been silent for {now - heard:.0f} s, even when asked")
    spool.sync()
    with suppress(ServerError):
        stream.acknowledge(_durable(spool))


def _durable(spool: Spool) -> LSN:
    return spool.durable.lsn if spool.durable is not None else LSN(0)
