"""What to say of a target that cannot be reached: the nearest ones that can, on either side, and the command for them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from itertools import groupby

from pgkeep.errors import NotFoundError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.wal_events import WalEvent
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.target import RecoveryTarget, format_moment, setting_time
from pgkeep.wal.window import Branch, Start, Window, WindowStart, windows_of

__all__ = ["Nearest", "UnreachableTarget", "unreachable"]

_EVERYTHING = 1 << 64
"""Behind the last LSN that there can be."""

_SHOWN = 5
"""Restore points that an error names."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """A target that can be reached: in words, as options of ``pgkeep restore``, and where it lies."""

    words: str
    options: str
    lsn: LSN
    timeline: int
    backup: str

    def __str__(self) -> str:
        return f"{self.words} (LSN {self.lsn} on timeline {self.timeline}, from backup {self.backup})"


class UnreachableTarget(NotFoundError):
    """Neither backup nor WAL leads to the target; ``before`` and ``after`` are the nearest that can be reached, or None."""

    def __init__(
        self, message: str, *, hint: str | None = None, before: Nearest | None = None, after: Nearest | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.before = before
        self.after = after


def unreachable(target: RecoveryTarget, branches: Sequence[Branch], backup: Manifest | None) -> UnreachableTarget:
    """The error for a target that lies on none of the branches; ``backup`` is the one that was asked for."""
    where = "" if target.timeline is None else f" on timeline {target.timeline}"
    origin = "" if backup is None else f" from backup {backup.id}"
    what = f"{target}{where} cannot be reached{origin}"
    windows = [window for branch in branches for window in windows_of(branch, whole_path=True)]
    if target.kind == "time":
        before, after = _around_time(target.time, windows)
    elif target.kind == "lsn":
        before, after = _around_lsn(target.lsn, windows)
    else:
        place = _place(target, branches)
        if place is not None:
            what = f"{what}: it lies at LSN {place.lsn}, where no backup leads"
            before, after = _around_lsn(place.lsn, windows)
        elif target.kind == "xid":
            what = f"{what}: the WAL does not show its end"
            before, after = _around_xid(target.xid, branches)
        else:
            return _unknown_name(target, what, branches)
    there = " and ".join(
        f"{word} it {nearest}" for word, nearest in (("before", before), ("after", after)) if nearest is not None
    )
    closest = before or after
    return UnreachableTarget(
        f"{what}; the nearest that can be is {there}" if there else what,
        hint="pgkeep list --window shows what can be reached"
        if closest is None
        else f"pgkeep restore {closest.options}" + (f"; or {after.options}" if before and after else ""),
        before=before,
        after=after,
    )


def _around_time(moment: datetime, windows: Sequence[Window]) -> tuple[Nearest | None, Nearest | None]:
    earlier = [window for window in windows if window.end_time <= moment]
    later = [window for window in windows if window.start_time >= moment]
    before = after = None
    if earlier:
        window = max(earlier, key=lambda window: (window.end_time, window.timeline))
        before = _at_time(window, window.end_time, window.end_lsn, window.starts[-1])
    if later:
        window = min(later, key=lambda window: (window.start_time, -window.timeline))
        first = min(window.starts, key=lambda start: start.time)
        after = _at_time(window, first.time, first.lsn, first)
    return before, after


def _at_time(window: Window, moment: datetime, lsn: LSN, start: WindowStart) -> Nearest:
    options = f'--to "{setting_time(moment)}"'
    return Nearest(format_moment(moment), options, lsn, window.path.timeline_of(lsn - 1), start.backup)


def _around_lsn(lsn: LSN, windows: Sequence[Window]) -> tuple[Nearest | None, Nearest | None]:
    lower = [window for window in windows if window.end_lsn < lsn]
    higher = [window for window in windows if window.start_lsn > lsn]
    before = after = None
    if lower:
        window = max(lower, key=lambda window: (window.end_lsn, window.timeline))
        before = _at_lsn(window, window.end_lsn, window.end_time, window.starts[-1])
    if higher:
        window = min(higher, key=lambda window: (window.start_lsn, -window.timeline))
        after = _at_lsn(window, window.start_lsn, window.start_time, window.starts[0])
    return before, after


def _at_lsn(window: Window, lsn: LSN, moment: datetime, start: WindowStart) -> Nearest:
    return Nearest(format_moment(moment), f"--to-lsn {lsn}", lsn, window.path.timeline_of(lsn - 1), start.backup)


def _place(target: RecoveryTarget, branches: Sequence[Branch]) -> WalEvent | None:
    """Where a transaction's end or a restore point lies that cannot be reached."""
    for branch in branches:
        if target.kind == "xid":
            event = branch.times.find_xid(branch.first_wal, _EVERYTHING, target.xid)
        else:
            event = branch.times.find_name(branch.first_wal, _EVERYTHING, target.value)
        if event is not None:
            return event
    return None


def _around_xid(xid: int, branches: Sequence[Branch]) -> tuple[Nearest | None, Nearest | None]:
    below: list[tuple[int, Nearest]] = []
    above: list[tuple[int, Nearest]] = []
    for branch in branches:
        for _, group in groupby(branch.starts, key=lambda start: start.reach):
            starts = list(group)
            around = branch.times.around_xid(starts[0].manifest.stop_lsn, starts[0].reach, xid)
            for event, found in zip(around, (below, above), strict=True):
                if event is not None and event.xid is not None:
                    found.append((event.xid, _at_xid(branch, starts, event)))
    before = max(below, key=lambda pair: pair[0], default=None)
    after = min(above, key=lambda pair: pair[0], default=None)
    return None if before is None else before[1], None if after is None else after[1]


def _at_xid(branch: Branch, starts: Sequence[Start], event: WalEvent) -> Nearest:
    start = next(start for start in reversed(starts) if start.manifest.stop_lsn <= event.lsn)
    return Nearest(
        f"transaction {event.xid}",
        f"--to-xid {event.xid}",
        event.end_lsn,
        branch.path.timeline_of(event.lsn),
        start.manifest.id,
    )


def _unknown_name(target: RecoveryTarget, what: str, branches: Sequence[Branch]) -> UnreachableTarget:
    known = list(dict.fromkeys(point.name for branch in branches for point in branch.restore_points() if point.name))
    close = get_close_matches(target.value, known, n=3)
    if close:
        return UnreachableTarget(
            f"{what}: the WAL has no restore point of that name; did you mean {' or '.join(map(repr, close))}?",
            hint=f"pgkeep restore --to-name {shlex.quote(close[0])}",
        )
    names = ", ".join(map(repr, known[-_SHOWN:])) or "none"
    return UnreachableTarget(
        f"{what}: the WAL has no restore point of that name; the last there are: {names}",
        hint="pgkeep list --window shows them all; --to TIME goes to any moment",
    )
