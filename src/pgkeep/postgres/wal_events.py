"""Events of the WAL, one by one and as tables: what `pgkeep.postgres.wal_records` finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_pages import Offsets
from pgkeep.postgres.xact_records import ABORT, COMMIT, KINDS

__all__ = [
    "EARLIEST",
    "LATEST",
    "NO_TIME",
    "EventKind",
    "EventTable",
    "WalEvent",
    "WalRecord",
    "from_microseconds",
    "to_microseconds",
]

EventKind = Literal["commit", "abort", "restore_point", "checkpoint", "end_of_recovery", "switch", "other"]

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
EARLIEST = (datetime.min.replace(tzinfo=UTC) - _UNIX_EPOCH) // _MICROSECOND
LATEST = (datetime.max.replace(tzinfo=UTC) - _UNIX_EPOCH) // _MICROSECOND
NO_TIME = -(1 << 63)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exactly."""
    return (moment - _UNIX_EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The moment, in UTC; the earliest or latest that datetime knows where it is beyond them."""
    return _UNIX_EPOCH + timedelta(microseconds=min(max(microseconds, EARLIEST), LATEST))


class WalEvent(msgspec.Struct, frozen=True, gc=False):
    """A record of the WAL.

    ``lsn`` is where it starts, ``end_lsn`` where the next one can begin, as PostgreSQL reports it: what
    ``pg_last_wal_replay_lsn()`` says after its replay. ``time`` is in UTC: when the transaction ended, the restore point was made,
    the checkpoint began (in whole seconds), recovery ended; None for a switch. ``xid`` is the transaction's: for a
    prepared one its own, not that of the session which ended it; None where there is none. ``name`` is a restore point's; bytes that
    are not UTF-8 survive as surrogates.
    """

    kind: EventKind
    lsn: LSN
    end_lsn: LSN
    time: datetime | None = None
    xid: int | None = None
    name: str | None = None


class WalRecord(msgspec.Struct, frozen=True, gc=False):
    """A record of any kind, and the timeline that wrote it; positions as in `WalEvent`."""

    timeline: int
    lsn: LSN
    end_lsn: LSN


@dataclass(frozen=True)
class EventTable:
    """Events as columns, in order of their LSN: hundreds of thousands cost little.

    ``kinds`` are indexes into `KINDS`; ``times`` are microseconds since 1970 in UTC; ``xids`` are 0 where there is none;
    ``names`` are restore points' by LSN, as bytes.
    """

    kinds: npt.NDArray[np.uint8]
    lsns: Offsets
    end_lsns: Offsets
    times: Offsets
    xids: npt.NDArray[np.uint32]
    names: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> EventTable:
        """Without events."""
        none = np.empty(0, np.int64)
        return cls(np.empty(0, np.uint8), none, none, none, np.empty(0, np.uint32))

    @classmethod
    def joined(cls, tables: Iterable[EventTable]) -> EventTable:
        """The events of tables that follow each other."""
        parts = [table for table in tables if len(table)]
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        return cls(
            np.concatenate([part.kinds for part in parts]),
            np.concatenate([part.lsns for part in parts]),
            np.concatenate([part.end_lsns for part in parts]),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.xids for part in parts]),
            {lsn: name for part in parts for lsn, name in part.names.items()},
        )

    def __len__(self) -> int:
        return len(self.lsns)

    @property
    def ends(self) -> npt.NDArray[np.bool_]:
        """Which of the events end a transaction: the only ones whose time and xid can be a recovery's target."""
        ends: npt.NDArray[np.bool_] = (self.kinds == COMMIT) | (self.kinds == ABORT)
        return ends

    def chosen(self, which: npt.NDArray[np.bool_]) -> EventTable:
        """Some of the events."""
        lsns = self.lsns[which]
        names = {lsn: name for lsn in lsns.tolist() if (name := self.names.get(lsn)) is not None} if self.names else {}
        return EventTable(self.kinds[which], lsns, self.end_lsns[which], self.times[which], self.xids[which], names)

    def between(self, start: int, end: int) -> EventTable:
        """The events whose records start in ``[start, end)``."""
        return self.chosen((self.lsns >= start) & (self.lsns < end))

    def event(self, index: int) -> WalEvent:
        """One of them."""
        lsn, time = int(self.lsns[index]), int(self.times[index])
        name = self.names.get(lsn)
        return WalEvent(
            KINDS[self.kinds[index]],
            LSN(lsn),
            LSN(self.end_lsns[index]),
            None if time == NO_TIME else from_microseconds(time),
            int(self.xids[index]) or None,
            None if name is None else name.decode("utf-8", "surrogateescape"),
        )

    def events(self) -> list[WalEvent]:
        """All of them."""
        return [self.event(index) for index in range(len(self))]
