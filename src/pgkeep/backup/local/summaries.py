"""The WAL summaries of a backup's parent's time, read from the data directory."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pgkeep.backup.local.walk import unreadable
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_summary import (
    SUMMARY_DIRECTORY,
    BlockChanges,
    SummaryFile,
    first_missing,
    parse_summary_name,
    summaries_between,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.low_level_backup import Sql
    from pgkeep.postgres.timeline import TimelineHistory
    from pgkeep.repository.manifests import Manifest

__all__ = ["SummariesMissing", "read_changes"]

_STUCK = 60.0
"""Seconds without progress after which the server's own base backup gives up too (WaitForWalSummarization in walsummarizer.c)."""

_POLL = 0.02

_STATE = "SELECT summarized_lsn::text, pending_lsn::text, summarizer_pid FROM pg_get_wal_summarizer_state()"


class SummariesMissing(Exception):
    """The WAL summaries do not tell what changed; the message says why."""


def read_changes(
    sql: Sql, directory: bytes, parent: Manifest, history: TimelineHistory, start: LSN, timeline: int
) -> BlockChanges:
    """What changed since the parent began, up to ``start`` on ``timeline``; waits for the server to write the last summary.

    Raises SummariesMissing.
    """
    changes = BlockChanges()
    for line, begin, end in _path(parent, history, start, timeline):
        for file in _wait(sql, directory, line, begin, end, is_last=line == timeline):
            changes.add(_read(directory, file), file.name)
    return changes


def _path(parent: Manifest, history: TimelineHistory, start: LSN, timeline: int) -> Iterator[tuple[int, int, int]]:
    """Timeline, first and last LSN of each stretch of WAL between the two backups."""
    lines = history.timelines
    if parent.timeline not in lines or timeline not in lines:
        raise SummariesMissing(f"timeline {parent.timeline} is not in the past of timeline {timeline}")
    for line in lines[lines.index(parent.timeline) : lines.index(timeline) + 1]:
        begin = parent.start_lsn if line == parent.timeline else int(history.start_of(line))
        end = history.end_of(line)
        yield line, begin, int(start) if line == timeline or end is None else int(end)


def _wait(sql: Sql, directory: bytes, timeline: int, begin: int, end: int, *, is_last: bool) -> list[SummaryFile]:
    """The summaries of a stretch, complete."""
    progress: object = None
    deadline = 0.0
    while True:
        # asked first: what the server has finished by then is seen by the look that follows
        state = sql.execute(_STATE).fetchone() if is_last else None
        files = _list(directory)
        missing = first_missing(files, timeline, begin, end)
        if missing is None:
            return summaries_between(files, timeline, begin, end)
        gap = any(file.timeline == timeline and file.start_lsn > missing for file in files)
        if state is None or state[2] is None or gap or LSN.parse(state[0]) >= end:
            raise SummariesMissing(
                f"there is no WAL summary of timeline {timeline} from {missing} on, up to {LSN(end)}"
            )
        if state != progress:
            progress, deadline = state, time.monotonic() + _STUCK
        elif time.monotonic() > deadline:
            raise SummariesMissing(f"the server's WAL summarizer makes no progress at {missing}")
        time.sleep(_POLL)


def _list(directory: bytes) -> list[SummaryFile]:
    place = os.path.join(directory, SUMMARY_DIRECTORY.encode())
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(place, error) from None
    return [file for name in names if (file := parse_summary_name(os.fsdecode(name))) is not None]


def _read(directory: bytes, file: SummaryFile) -> bytes:
    place = os.path.join(directory, SUMMARY_DIRECTORY.encode(), file.name.encode())
    try:
        with open(place, "rb") as opened:
            return opened.read()
    except FileNotFoundError:
        raise SummariesMissing(f"the server removed WAL summary {file.name}: see wal_summary_keep_time") from None
    except OSError as error:
        raise unreadable(place, error) from None
