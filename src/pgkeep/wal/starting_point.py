"""Where a stream begins: slot, timelines and our own end of the WAL, brought together on one connection."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from pgkeep.errors import PgkeepError, ServerError
from pgkeep.postgres.replication import ReplicationConnection, SystemIdentity
from pgkeep.postgres.timeline import TimelineHistory, parse_history
from pgkeep.postgres.wal import segment_start
from pgkeep.repository import Repository
from pgkeep.wal.events import Alarms
from pgkeep.wal.gap import GapFiller
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.resume import OtherHistory, resume_at
from pgkeep.wal.slots import SlotKeeper
from pgkeep.wal.spool import Position, Spool

__all__ = ["StartingPoint"]


class StartingPoint:
    """Finds where to begin, and keeps the history files on the way.

    ``lost`` says why WAL cannot be had any more, once the server said so: then the next stream begins behind the gap.
    ``slot_is_bad`` is set where the server does not serve the slot: it is made anew.
    """

    def __init__(
        self, slot: SlotKeeper, gaps: GapFiller, alarms: Alarms, repositories: Mapping[str, Repository]
    ) -> None:
        self.lost: str | None = None
        self.slot_is_bad = False
        self._slot = slot
        self._gaps = gaps
        self._alarms = alarms
        self._repositories = repositories

    def find(self, connection: ReplicationConnection, identity: SystemIdentity, spool: Spool) -> Position:
        """The position to stream from; the spool goes on there. Raises OtherHistory, ServerError, StoreError."""
        if self.slot_is_bad:
            held_from = self._slot.recreate(connection)
            self.slot_is_bad = False
        else:
            held_from = self._slot.ensure(connection, expected=spool.position is not None)
        history = _store_histories(connection, identity.timeline, spool)
        segment_size = spool.identity.segment_size
        if self.lost is not None:
            # a new slot: the old one may point to WAL that is gone
            held_from = self._slot.recreate(connection)
        ours = spool.position or self._end_of_repositories(spool)
        if ours is None or self.lost is not None:
            start = Position(held_from.timeline, segment_start(held_from.lsn, segment_size))
            spool.begin(start)
            if self.lost is not None:
                reason, self.lost = self.lost, None
                self._gaps.report(f"{reason}; receiving goes on at {start.lsn}")
            return start
        resume = resume_at(ours, history, segment_size)
        if resume.left is not None:
            self._alarms.warn("diverged", f"{resume.left}; that WAL stays where it is, beside the new timeline")
        if resume.position != spool.position:
            spool.begin(resume.position)
        return resume.position

    def _end_of_repositories(self, spool: Spool) -> Position | None:
        """Where the WAL in the repositories ends, for a spool that is new; None where there is none, or nobody can say.

        It is received again from the beginning of that segment, so that the segment can be stored whole.
        """
        segment_size = spool.identity.segment_size
        ends = []
        for repository in self._repositories.values():
            with suppress(PgkeepError):
                archive = repository.wal(spool.identity.system_identifier)
                timelines = WalInventory.read(archive, segment_size).timelines
                found = [(timeline, wal.spans[-1].end) for timeline, wal in timelines.items() if wal.spans]
                if found:
                    timeline, end = max(found)
                    ends.append(Position(timeline, segment_start(end, segment_size)))
        return min(ends, default=None)


def _store_histories(connection: ReplicationConnection, timeline: int, spool: Spool) -> TimelineHistory:
    """Keep the history files of the server's timeline and of those before it; returns the server's own history."""
    if timeline == 1:
        return TimelineHistory(1)
    _, content = connection.timeline_history(timeline)
    history = parse_history(timeline, content)
    if spool.histories.get(timeline, content) != content:
        raise OtherHistory(
            f"the server's timeline {timeline} is another one than the timeline {timeline} that was received before",
            hint="two servers were promoted to the same timeline; its WAL is not taken: give it a repository of its own",
        )
    for older in history.timelines[:-1]:
        if older > 1 and older not in spool.histories:
            # a server that was restored may not have all of them, and the newest says everything that they do
            with suppress(ServerError):
                spool.add_history(older, connection.timeline_history(older)[1])
    spool.add_history(timeline, content)
    return history
