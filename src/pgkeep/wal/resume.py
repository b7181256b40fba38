"""Where receiving goes on: our end of the WAL held against the timelines of the server that answers."""

from __future__ import annotations

from dataclasses import dataclass

from pgkeep.errors import ServerError
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import segment_start
from pgkeep.wal.spool import Position

__all__ = ["OtherHistory", "Resume", "resume_at"]


class OtherHistory(ServerError):
    """The server's timelines do not go on from ours: receiving from it would mix two histories."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on at ``position``; ``left`` says what of ours the server does not have, where there is such WAL."""

    position: Position
    left: str | None = None


def resume_at(ours: Position, history: TimelineHistory, segment_size: int) -> Resume:
    """Where to go on; ``history`` is that of the server's own timeline. Raises OtherHistory.

    Along the old timeline up to its end, then from the first byte of the segment that holds the switch: the server copied
    what came before it there (xlog.c, XLogInitNewTimeline). Where we have more of the old timeline than the new one took
    over, that WAL stays where it is, and the new timeline is received from its beginning.
    """
    if history.timeline < ours.timeline:
        raise OtherHistory(
            f"the server is on timeline {history.timeline}, and WAL of timeline {ours.timeline} was received already",
            hint="does the address lead to an old primary? its WAL is not taken; stop it, or mend the address",
        )
    if history.timeline == ours.timeline:
        return Resume(ours)
    left = None
    if ours.timeline in history.timelines:
        end = history.end_of(ours.timeline)
        assert end is not None
        if ours.lsn < end:
            return Resume(ours)
        if ours.lsn > end:
            left = (
                f"timeline {ours.timeline} ended at {end} for the server, and WAL up to {ours.lsn} was received from it"
            )
    else:
        left = f"timeline {ours.timeline} is no ancestor of the server's timeline {history.timeline}"
    after = next(timeline for timeline in history.timelines if timeline > ours.timeline)
    return Resume(Position(after, segment_start(history.start_of(after), segment_size)), left)
