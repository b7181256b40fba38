"""Recovery windows and restore points, as lines and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgkeep.cli.output import Output
    from pgkeep.wal.overview import Overview, RestorePoint
    from pgkeep.wal.window import Window

__all__ = ["overview_document", "restore_point_document", "show_overview", "show_restore_points"]


def show_overview(output: Output, overview: Overview, zone: str | None) -> None:
    """The windows, a line for each backup that one starts from, with the gaps between them."""
    from pgkeep.wal.overview import orphan_remedy

    if not overview.windows:
        output.line(f"nothing can be reached of cluster {overview.system_identifier}: there is no backup with its WAL")
    else:
        columns = ["TIMELINE", "FROM", "UNTIL", "FROM LSN", "UNTIL LSN", "BACKUP"]
        if zone is not None:
            columns[3:3] = [f"FROM ({zone})", f"UNTIL ({zone})"]
        rows = [row for window in overview.windows for row in _rows(window, zone)]
        output.table(columns, rows, right=("TIMELINE",))
    for window in overview.windows:
        if window.path.switches and window.timeline == window.path.timeline:
            switch = window.path.switches[-1]
            output.line(f"timeline {window.timeline} branches off timeline {switch.parent} at LSN {switch.lsn}")
    for timeline in overview.orphans:
        output.line(f"timeline {timeline} has WAL, but no history file, so nothing of it can be reached", "yellow")
        output.line(f"-> {orphan_remedy(timeline)}", "dim")


def _rows(window: Window, zone: str | None) -> list[tuple[str, ...]]:
    rows = []
    ends = [(start.time, start.lsn) for start in window.starts[1:]] + [(window.end_time, window.end_lsn)]
    for start, (until, end) in zip(window.starts, ends, strict=True):
        times = (_utc(start.time), _utc(until), *_local(zone, start.time, until))
        rows.append((str(window.timeline), *times, str(start.lsn), str(end), start.backup))
    if window.gap is not None:
        empty = ("",) * (2 if zone is None else 4)
        rows.append(("gap", *empty, str(window.gap.start), str(window.gap.end), "WAL is missing"))
    return rows


def show_restore_points(output: Output, points: Sequence[RestorePoint], zone: str | None) -> None:
    """A table of them; nothing where there is none."""
    if not points:
        return
    columns = ["RESTORE POINT", "TIME", "LSN", "TIMELINE", "REACHABLE"]
    if zone is not None:
        columns.insert(2, f"TIME ({zone})")
    rows = [
        (
            point.name,
            "" if point.time is None else _utc(point.time),
            *("" if point.time is None else text for text in _local(zone, point.time)),
            str(point.lsn),
            str(point.timeline),
            "yes" if point.reachable else "no",
        )
        for point in points
    ]
    output.table(columns, rows, right=("TIMELINE",))


def _utc(moment: datetime) -> str:
    from pgkeep.restore.target import format_moment

    return format_moment(moment)


def _local(zone: str | None, *moments: datetime | None) -> tuple[str, ...]:
    if zone is None:
        return ()
    return tuple("" if moment is None else moment.astimezone(ZoneInfo(zone)).isoformat(sep=" ") for moment in moments)


def overview_document(overview: Overview) -> dict[str, object]:
    """The keys that docs/reference/json.md promises."""
    return {
        "system_identifier": str(overview.system_identifier),
        "windows": [_window_document(window) for window in overview.windows],
        "restore_points": [restore_point_document(point) for point in overview.restore_points],
        "timelines_without_history": overview.orphans,
    }


def _window_document(window: Window) -> dict[str, object]:
    return {
        "timeline": window.timeline,
        "branches_off": [
            {"timeline": switch.parent, "lsn": str(switch.lsn), "reason": switch.reason}
            for switch in window.path.switches
        ],
        "start_lsn": str(window.start_lsn),
        "end_lsn": str(window.end_lsn),
        "start_time": window.start_time,
        "end_time": window.end_time,
        "starts": [{"backup": start.backup, "lsn": str(start.lsn), "time": start.time} for start in window.starts],
        "gap": None if window.gap is None else {"start_lsn": str(window.gap.start), "end_lsn": str(window.gap.end)},
    }


def restore_point_document(point: RestorePoint) -> dict[str, object]:
    """The same for a restore point."""
    return {
        "name": point.name,
        "time": point.time,
        "lsn": str(point.lsn),
        "timeline": point.timeline,
        "reachable": point.reachable,
    }
