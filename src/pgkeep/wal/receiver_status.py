"""What a receiver says of itself: ``<spool>/status.json``, replaced about once a second while something changes.

=====================  =================================================================================================
``pid``                the receiver's process; whether it lives is told by the lock on ``<spool>/lock`` (`receiver_runs`)
``running``            false once it ended in order
``started``            when it began; times are ISO 8601 in UTC
``updated``            when this was written
``cluster``            the cluster's name in the configuration
``system_identifier``  PostgreSQL's, as text; null until a server was seen
``slot``               the replication slot's name
``synchronous``        whether commits are meant to wait for it
``sync_state``         what the server says of that (pg_stat_replication), null where unknown
``wal_status``         of the slot (pg_replication_slots), null where unknown
``connected_since``    when the stream that runs began, null where none does
``timeline``           the timeline that is received
``received_lsn``       up to where WAL was received, as PostgreSQL prints it
``durable_lsn``        up to where it is durable in the spool, and acknowledged
``server_lsn``         where the server's WAL ends, as far as it said
``complete``           ``timeline``, ``lsn`` and ``time``: when, by the server's clock, its WAL ended there, so that nothing is missing
                       up to that moment; null until that is known
``spool``              ``path``, ``bytes`` and ``limit``
``repositories``       a list: ``name``, ``timeline`` and ``shipped_lsn`` (up to where it has everything), ``shipped_at``,
                       ``last_error`` (null where all is well)
``alarms``             a list of those that are on: ``kind``, ``since``, ``message``, ``hint``
=====================  =================================================================================================
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.wal.events import Event
from pgkeep.wal.ship import Shipper
from pgkeep.wal.small_files import read_json
from pgkeep.wal.spool import Spool

__all__ = [
    "STATUS_NAME",
    "alarm_documents",
    "last_complete",
    "missing_end",
    "read_status",
    "receiver_runs",
    "repository_documents",
    "time_text",
]

STATUS_NAME = "status.json"


def read_status(spool: Path) -> dict[str, object] | None:
    """What the newest receiver on this spool wrote last; None where none ever ran. Raises OSError, ValueError."""
    return read_json(spool / STATUS_NAME)


def last_complete(spool: Path) -> object:
    """``complete`` of the newest receiver: it holds for the next one, too."""
    with suppress(OSError, ValueError):
        return (read_status(spool) or {}).get("complete")
    return None


def missing_end(spool: Spool) -> list[DamageError]:
    """What is wrong where the last receiver said that more was durable than is there now."""
    with suppress(OSError, ValueError, KeyError):
        status = read_status(spool.directory)
        position = spool.position
        if status is not None and status["durable_lsn"] is not None:
            acknowledged = LSN.parse(str(status["durable_lsn"]))
            if position is None or (status["timeline"] == position.timeline and acknowledged > position.lsn):
                end = f"ends at {position.lsn}" if position is not None else "is empty"
                return [DamageError(f"the spool {end}, and WAL up to {acknowledged} was acknowledged")]
    return []


def receiver_runs(spool: Path) -> bool:
    """Whether a receiver works with this spool now. Raises OSError."""
    try:
        descriptor = os.open(spool / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def repository_documents(shippers: Sequence[Shipper]) -> list[dict[str, object]]:
    """``repositories`` of the document."""
    return [
        {
            "name": shipper.name,
            "timeline": shipper.shipped.timeline if shipper.shipped is not None else None,
            "shipped_lsn": str(shipper.shipped.lsn) if shipper.shipped is not None else None,
            "shipped_at": time_text(shipper.shipped_at),
            "last_error": shipper.last_error,
        }
        for shipper in shippers
    ]


def alarm_documents(alarms: Sequence[Event]) -> list[dict[str, object]]:
    """``alarms`` of the document."""
    return [
        {"kind": alarm.kind, "since": time_text(alarm.time), "message": alarm.message, "hint": alarm.hint}
        for alarm in alarms
    ]


def time_text(moment: datetime | None) -> str | None:
    """A time as it stands in the document."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment is not None else None
