"""Which backup to start from, along which timelines, and where exactly PostgreSQL will stop; or why it cannot be.

The stops are the server's own (recoveryStopsBefore, recoveryStopsAfter and PerformWalRecovery in
src/backend/access/transam/xlogrecovery.c): a time is compared with the ends of transactions alone, and the first record
that passes it ends recovery, wherever the clocks jumped; a target that no record passes is an error, unless all is known to
be there up to it; a stop before the backup's end is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

from pgkeep.errors import DamageError, NotFoundError, StoreError, UsageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import segment_start
from pgkeep.postgres.wal_events import WalEvent
from pgkeep.repository.manifests import Manifest
from pgkeep.restore.nearest import unreachable
from pgkeep.restore.target import RecoveryPlan, RecoveryTarget, format_moment, setting_time
from pgkeep.wal.inventory import WalInventory
from pgkeep.wal.times import WalTimes
from pgkeep.wal.window import Branch, Start, WalStamp, branches

__all__ = ["choose"]

_TICK = timedelta(microseconds=1)

_PAGE_SIZE, _PAGE_HEADER, _SEGMENT_HEADER = 8192, 24, 40
"""XLOG_BLCKSZ, SizeOfXLogShortPHD and SizeOfXLogLongPHD (src/include/access/xlog_internal.h)."""


@dataclass(frozen=True)
class _Stop:
    """A way to the target. ``settings`` are those of the target itself; ``needs`` is the end of the record that the server
    must see to stop, where that lies behind ``lsn``.

    ``lived`` is false where the timeline that it stops on had not begun at the target's time.
    """

    branch: Branch
    start: Start
    lsn: LSN
    settings: dict[str, str]
    needs: int = 0
    lived: bool = True
    open_ended: bool = False
    notes: tuple[str, ...] = ()

    @property
    def timeline(self) -> int:
        """Whose WAL lies just before the stop."""
        return self.branch.path.timeline_of(self.lsn - 1)


def choose(
    target: RecoveryTarget,
    manifests: Sequence[Manifest],
    inventory: WalInventory,
    times: WalTimes,
    *,
    backup: Manifest | None = None,
    stamps: Sequence[WalStamp] = (),
    strict: bool = True,
) -> tuple[Manifest, RecoveryPlan]:
    """The backup and the recovery that reach a target. ``manifests`` are the backups of one cluster, ``backup`` the one to take.

    Where the target lies on several branches, the newest is taken whose timeline had begun by then, and a note says so.
    ``strict``: the end of the WAL is not one that has more behind a gap. Raises UnreachableTarget, naming what can be
    reached instead; UsageError, NotFoundError; StoreError where the WAL of ``backup`` itself is lost.
    """
    _refuse_contradictions(target)
    if backup is not None:
        manifests = [backup]
    if not manifests:
        raise NotFoundError("there is no backup to start from", hint="pgkeep backup takes one")
    found = branches(manifests, inventory, times, stamps)
    if target.timeline is not None:
        inventory.history(target.timeline)
        found = [branch for branch in found if branch.timeline == target.timeline]
    if not found:
        raise _no_branch(target, manifests, backup, inventory)
    stops = [stop for branch in found if (stop := _stop_on(branch, target)) is not None]
    if not stops:
        raise unreachable(target, found, backup)
    others: list[_Stop]
    if target.kind == "immediate":
        best, others = max(stops, key=lambda stop: stop.start.manifest.id), []
    elif target.kind == "latest":
        best, others = _check_gap(stops[0], strict=strict, chosen=backup is not None), []
    else:
        # the first of several: branches come newest first
        best = min(stops, key=lambda stop: not stop.lived)
        others = [stop for stop in stops if (stop.timeline, stop.lsn) != (best.timeline, best.lsn)]
    return best.start.manifest, _plan(target, best, others, inventory)


def _refuse_contradictions(target: RecoveryTarget) -> None:
    if target.exclusive and target.kind in {"immediate", "latest", "name"}:
        raise UsageError(
            f"nothing stops just before {target}", hint="--exclusive goes with --to, --to-lsn and --to-xid"
        )
    if target.standby and target.kind != "latest":
        raise UsageError("a standby does not stop at a target", hint="--standby goes with --latest")
    if target.kind == "latest" and target.action != "promote":
        raise UsageError(
            f"a server cannot {target.action} where the WAL ends",
            hint=f"name a moment (--to, --to-lsn, --to-xid, --to-name) for --action {target.action}",
        )


def _no_branch(
    target: RecoveryTarget, manifests: Sequence[Manifest], backup: Manifest | None, inventory: WalInventory
) -> NotFoundError | StoreError:
    if target.timeline is not None:
        what = "no backup lies" if backup is None else f"backup {backup.id} does not lie"
        return NotFoundError(
            f"{what} on the path to timeline {target.timeline}", hint="pgkeep list --window shows what can be reached"
        )
    newest = manifests[-1]
    inventory.history(newest.timeline)
    return StoreError(
        f"backup {newest.id} needs WAL that the repository has lost, from {LSN(newest.start_lsn)} to"
        f" {LSN(newest.stop_lsn)}",
        hint="restore another backup: pgkeep list",
    )


def _stop_on(branch: Branch, target: RecoveryTarget) -> _Stop | None:
    """The best way to a target on one branch."""
    if target.kind == "immediate":
        # any other timeline of the backup's would do as well
        own = [start for start in branch.starts if target.timeline or start.manifest.timeline == branch.timeline]
        return max((_end_of(branch, start) for start in own), key=lambda s: s.start.manifest.id, default=None)
    if target.kind == "latest":
        return _end_of_wal(branch, branch.starts[-1])
    # starts that share an unbroken stretch of WAL meet the same records
    stretches = [list(group) for _, group in groupby(branch.starts, key=lambda start: start.reach)]
    look = {"time": _at_time, "lsn": _at_lsn, "xid": _at_xid, "name": _at_name}[target.kind]
    return next((stop for group in reversed(stretches) if (stop := look(branch, group, target)) is not None), None)


def _end_of(branch: Branch, start: Start) -> _Stop:
    return _Stop(branch, start, LSN(start.manifest.stop_lsn), {"recovery_target": "immediate"})


def _end_of_wal(branch: Branch, start: Start) -> _Stop:
    return _Stop(branch, start, branch.last_record_end(start), {}, open_ended=True)


def _after_last_record(branch: Branch, start: Start, note: str) -> _Stop:
    """Everything there is, and no more: PostgreSQL would take the end of the WAL for a target that was not reached."""
    record = branch.last_record(start)
    settings = {"recovery_target": "immediate"}
    if record is not None and record.end_lsn > start.manifest.stop_lsn:
        settings = {"recovery_target_lsn": str(record.lsn), "recovery_target_inclusive": "on"}
    return _Stop(branch, start, branch.last_record_end(start), settings, notes=(note,))


def _at_time(branch: Branch, starts: Sequence[Start], target: RecoveryTarget) -> _Stop | None:
    moment = target.time - _TICK if target.exclusive else target.time
    candidates = list(starts)
    while candidates:
        first = candidates[0]
        event = branch.times.first_end_after(first.manifest.start_lsn, first.reach, moment)
        if event is None:
            return _at_end(branch, candidates, moment)
        for start in reversed(candidates):
            if start.manifest.stop_lsn <= event.lsn and branch.since(start) <= moment:
                return _before_event(branch, start, event, target)
        # where the clock was set back, a later backup may meet the target once more
        candidates = [start for start in candidates if start.manifest.start_lsn > event.lsn]
    return None


def _at_end(branch: Branch, starts: Sequence[Start], moment: datetime) -> _Stop | None:
    """No transaction ended after the target: it is reached only where nothing is missing up to it."""
    start = next((start for start in reversed(starts) if branch.since(start) <= moment), None)
    if start is None or moment > branch.known_until(start):
        return None
    return _after_last_record(branch, start, "no transaction ended after that: all there is will be replayed")


def _before_event(branch: Branch, start: Start, event: WalEvent, target: RecoveryTarget) -> _Stop:
    settings = {"recovery_target_time": setting_time(target.time), "recovery_target_inclusive": _inclusive(target)}
    return _Stop(
        branch,
        start,
        _end_before(event.lsn, start.manifest.wal.segment_size),
        settings,
        needs=event.end_lsn,
        lived=_had_begun(branch, start, event, target.time),
    )


def _had_begun(branch: Branch, start: Start, event: WalEvent, moment: datetime) -> bool:
    """Whether the timeline of ``event`` had begun at ``moment``; if not, the server lived on its parent then."""
    timeline = branch.path.timeline_of(event.lsn)
    begin = branch.path.start_of(timeline)
    if begin <= start.manifest.stop_lsn:
        return True
    ended = branch.times.last_end_before(begin, event.lsn)
    born = branch.born(timeline)
    return ended is not None or born is None or born <= moment


def _at_lsn(branch: Branch, starts: Sequence[Start], target: RecoveryTarget) -> _Stop | None:
    lsn = target.lsn
    start = next((start for start in reversed(starts) if start.manifest.stop_lsn <= lsn <= start.reach), None)
    if start is None:
        return None
    record = branch.record_from(lsn)
    if record is not None and record.end_lsn <= start.reach:
        settings = {"recovery_target_lsn": target.value, "recovery_target_inclusive": _inclusive(target)}
        end = _end_before(record.lsn, start.manifest.wal.segment_size) if target.exclusive else record.end_lsn
        return _Stop(branch, start, end, settings, needs=record.end_lsn)
    if lsn > branch.last_record_end(start):
        return None
    return _after_last_record(branch, start, f"no record begins at {lsn} or later: all there is will be replayed")


def _at_xid(branch: Branch, starts: Sequence[Start], target: RecoveryTarget) -> _Stop | None:
    settings = {"recovery_target_xid": target.value, "recovery_target_inclusive": _inclusive(target)}
    events = _every(lambda lsn: branch.times.find_xid(lsn, starts[0].reach, target.xid), starts[0])
    for number in reversed(range(len(events))):
        event = events[number]
        # ids come again after four billion transactions, and the server stops at the first
        since = events[number - 1].lsn if number else -1
        for start in reversed(starts):
            if since < start.manifest.start_lsn and start.manifest.stop_lsn <= event.lsn:
                end = _end_before(event.lsn, start.manifest.wal.segment_size) if target.exclusive else event.end_lsn
                notes = ("this transaction was rolled back",) if event.kind == "abort" else ()
                return _Stop(branch, start, end, settings, needs=event.end_lsn, notes=notes)
    return None


def _at_name(branch: Branch, starts: Sequence[Start], target: RecoveryTarget) -> _Stop | None:
    points = _every(lambda lsn: branch.times.find_name(lsn, starts[0].reach, target.value), starts[0])
    for number in reversed(range(len(points))):
        point = points[number]
        start = next((start for start in reversed(starts) if start.manifest.stop_lsn <= point.lsn), None)
        if start is None:
            continue
        settings = {"recovery_target_name": target.value}
        if number and points[number - 1].lsn >= start.manifest.start_lsn:
            # the server would stop at the first of this name
            settings = {"recovery_target_lsn": str(point.lsn), "recovery_target_inclusive": "on"}
        notes = tuple(
            f"the name was given before, at {_when(other)} (LSN {other.lsn}): --to-lsn {other.lsn} takes that one"
            for other in points[:number]
        )
        return _Stop(branch, start, point.end_lsn, settings, notes=notes)
    return None


def _every(find: Callable[[int], WalEvent | None], start: Start) -> list[WalEvent]:
    """All events that ``find`` finds from the start on, each time going on behind the one before."""
    events: list[WalEvent] = []
    event = find(start.manifest.start_lsn)
    while event is not None:
        events.append(event)
        event = find(event.end_lsn)
    return events


def _inclusive(target: RecoveryTarget) -> str:
    return "off" if target.exclusive else "on"


def _end_before(lsn: LSN, segment_size: int) -> LSN:
    """Where the record before the one at ``lsn`` ends, as the server says it: page headers lie between them."""
    if lsn % segment_size == _SEGMENT_HEADER:
        return LSN(lsn - _SEGMENT_HEADER)
    return LSN(lsn - _PAGE_HEADER if lsn % _PAGE_SIZE == _PAGE_HEADER else lsn)


def _when(event: WalEvent) -> str:
    return "an unknown time" if event.time is None else format_moment(event.time)


def _check_gap(stop: _Stop, *, strict: bool, chosen: bool) -> _Stop:
    """The end of the WAL is no "latest" where more WAL lies behind a gap."""
    gap = stop.branch.gap_after(stop.start.reach)
    if gap is None:
        return stop
    words = f"WAL is missing from {gap.start} to {gap.end}, and what lies behind cannot be reached"
    if not strict:
        return replace(stop, notes=(*stop.notes, words))
    advice = " or leave the backup out, to start from a later one" if chosen else ""
    raise NotFoundError(
        f"the end of the WAL cannot be reached from backup {stop.start.manifest.id}: {words}",
        hint=f"pgkeep restore --to-lsn {stop.lsn} goes as far as it can{advice}; pgkeep list --window",
    )


def _plan(target: RecoveryTarget, best: _Stop, others: Sequence[_Stop], inventory: WalInventory) -> RecoveryPlan:
    manifest, path = best.start.manifest, _followed(target, best, inventory)
    settings = {**best.settings, "recovery_target_timeline": str(path.timeline)}
    notes = list(best.notes)
    if best.settings:
        settings["recovery_target_action"] = target.action
    if target.standby and path.timeline == inventory.newest_timeline:
        settings["recovery_target_timeline"] = "latest"
    elif target.standby:
        notes.append(
            f"the standby stays on timeline {path.timeline}: newer ones do not branch off it, or have no backup"
        )
    notes += [
        f"the target lies on timeline {stop.timeline} too, at LSN {stop.lsn}: --timeline {stop.branch.timeline} takes that"
        for stop in others
    ]
    if not best.lived:
        notes.append(f"timeline {path.timeline} had not begun by then: recovery stops where it branches off")
    if target.kind == "latest" and target.timeline is None and inventory.newest_timeline > path.timeline:
        notes.append(f"timeline {inventory.newest_timeline} is newer, but no backup leads to it")
    start_lsn = manifest.start_lsn
    ended = counted = best.branch.times.last_end_before(start_lsn, best.lsn)
    if ended is not None and ended.end_lsn >= best.lsn and "recovery_target_lsn" in best.settings:
        counted = best.branch.times.last_end_before(start_lsn, ended.lsn)
    return RecoveryPlan(
        target=target,
        backup=manifest.id,
        path=path,
        start_lsn=LSN(start_lsn),
        consistent_lsn=LSN(manifest.stop_lsn),
        stop_lsn=best.lsn,
        stop_timeline=best.timeline,
        stop_time=None if ended is None else ended.time,
        told_time=None if counted is None else counted.time,
        next_time=_next_time(target, best),
        open_ended=best.open_ended,
        segment_size=manifest.wal.segment_size,
        settings=settings,
        signal="standby.signal" if target.standby else "recovery.signal",
        notes=notes,
    )


def _followed(target: RecoveryTarget, best: _Stop, inventory: WalInventory) -> TimelineHistory:
    """The path that the server is told to follow: no further than to the timeline that it stops on.

    A server that is to follow a newer timeline and stops before that begins calls itself a child of it all the same, and writes a
    history that goes back in the WAL (xlog.c, writeTimeLineHistory is given recoveryTargetTLI).
    """
    path, timeline = best.branch.path, best.timeline
    if timeline == path.timeline or target.standby or target.kind == "latest" or not inventory.has_history(timeline):
        return path
    end, own = path.end_of(timeline), inventory.timelines.get(timeline)
    needed = max(best.lsn, best.needs)
    start = segment_start(needed - 1, inventory.segment_size)
    if end is None or best.lsn >= end or needed > end or own is None or start + own.end_in(start) < needed:
        return path
    return inventory.history(timeline)


def _next_time(target: RecoveryTarget, best: _Stop) -> datetime | None:
    """For people: what lies behind the stop is not needed, and may be damaged."""
    if target.kind in {"immediate", "latest"}:
        return None
    with suppress(DamageError, StoreError):
        following = best.branch.times.first_end_after(best.lsn, best.start.reach, datetime.min.replace(tzinfo=UTC))
        return None if following is None else following.time
    return None
