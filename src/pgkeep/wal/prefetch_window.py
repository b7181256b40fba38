"""What recovery will ask for next: the segments along a path of timelines, as PostgreSQL looks for them."""

from __future__ import annotations

from collections.abc import Callable

from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import segment_start

__all__ = ["source_of", "upcoming"]


def source_of(
    path: TimelineHistory, start: int, segment_size: int, has: Callable[[int, int], bool], at_least: int = 0
) -> int | None:
    """The timeline whose file of the segment at ``start`` recovery takes: the newest one that has it; None where none has.

    As xlogrecovery.c, XLogFileReadAnyTLI: timelines that begin behind the segment are passed over, and it never goes back to
    one below that of the segment before it, ``at_least``.
    """
    for timeline in reversed(path.timelines):
        if timeline < at_least:
            return None
        if segment_start(path.start_of(timeline), segment_size) <= start and has(timeline, start):
            return timeline
    return None


def upcoming(
    path: TimelineHistory,
    timeline: int,
    start: int,
    segment_size: int,
    has: Callable[[int, int], bool],
    *,
    count: int,
    limit_lsn: int | None = None,
) -> list[tuple[int, int]]:
    """Timeline and start of up to ``count`` segments that follow the one that recovery has, without a gap.

    None begins at ``limit_lsn`` or behind it. ``has(timeline, start)`` says what there is.
    """
    found: list[tuple[int, int]] = []
    while len(found) < count:
        start += segment_size
        if limit_lsn is not None and start >= limit_lsn:
            break
        source = source_of(path, start, segment_size, has, timeline)
        if source is None:
            break
        timeline = source
        found.append((timeline, start))
    return found
