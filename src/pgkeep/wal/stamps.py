"""How current the WAL is known to be, beyond what it says itself: from the receiver on this machine."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pgkeep.postgres.lsn import LSN
from pgkeep.wal.receiver_status import read_status
from pgkeep.wal.window import WalStamp

__all__ = ["receiver_stamps"]


def receiver_stamps(spool: Path) -> list[WalStamp]:
    """What the newest receiver on this spool heard last from its server; nothing where none ran, or it cannot be read.

    Without it a target after the last commit is refused, so no harm is done where it is missing.
    """
    try:
        status = read_status(spool)
        complete = status.get("complete") if status is not None else None
        if not isinstance(complete, dict):
            return []
        return [
            WalStamp(int(complete["timeline"]), LSN.parse(complete["lsn"]), datetime.fromisoformat(complete["time"]))
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
