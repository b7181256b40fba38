"""Timelines and their history files (src/backend/access/transam/timeline.c; PostgreSQL docs, 25.3.6 "Timelines")."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN

__all__ = ["TimelineHistory", "TimelineSwitch", "format_history", "history_name", "parse_history", "parse_history_name"]

_NAME = re.compile(r"([0-9A-F]{8})\.history", re.ASCII)
_LINE = re.compile(r"\s*(\d{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s+(.*?))?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class TimelineSwitch:
    """Timeline ``parent`` ended at ``lsn``, the first byte of the timeline after it; ``reason`` is for people."""

    parent: int
    lsn: LSN
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """A timeline and how it came about: the switches from its oldest ancestor on, each to the parent of the next one."""

    timeline: int
    switches: tuple[TimelineSwitch, ...] = ()

    @property
    def timelines(self) -> tuple[int, ...]:
        """The ancestors, oldest first, and the timeline itself."""
        return (*(switch.parent for switch in self.switches), self.timeline)

    def timeline_of(self, lsn: int) -> int:
        """The timeline that holds the byte at ``lsn`` on this path; a switch's own LSN is the newer timeline's."""
        return next((switch.parent for switch in self.switches if lsn < switch.lsn), self.timeline)

    def start_of(self, timeline: int) -> LSN:
        """Where a timeline of this path begins: 0 for the oldest. Raises ValueError for one that is not on it."""
        index = self._index(timeline)
        return self.switches[index - 1].lsn if index else LSN(0)

    def end_of(self, timeline: int) -> LSN | None:
        """Where a timeline of this path ends: None for the newest. Raises ValueError for one that is not on it."""
        index = self._index(timeline)
        return self.switches[index].lsn if index < len(self.switches) else None

    def _index(self, timeline: int) -> int:
        try:
            return self.timelines.index(timeline)
        except ValueError:
            raise ValueError(f"timeline {timeline} is no ancestor of timeline {self.timeline}") from None


def history_name(timeline: int) -> str:
    """``"00000002.history"`` for timeline 2; timeline 1 has none."""
    return f"{timeline:08X}.history"


def parse_history_name(name: str) -> int:
    """The timeline whose history a file of this name is; raises ValueError for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"not the name of a timeline history file: {name!r}")
    return int(match[1], 16)


def parse_history(timeline: int, text: str | bytes) -> TimelineHistory:
    """The history of ``timeline`` from its file; raises DamageError by the server's own rules.

    Bytes that are not UTF-8 (a restore point's name may be in any encoding) survive as surrogates.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    name = history_name(timeline)
    switches: list[TimelineSwitch] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise DamageError(f"{name} has a line that is no timeline switch: {stripped!r}", path=name)
        switch = TimelineSwitch(int(match[1]), LSN.parse(match[2]), match[3] or "")
        if switches and switch.parent <= switches[-1].parent:
            raise DamageError(f"the timelines in {name} do not increase: {stripped!r}", path=name)
        if switches and switch.lsn < switches[-1].lsn:
            raise DamageError(f"the switches in {name} go back in the WAL: {stripped!r}", path=name)
        switches.append(switch)
    if switches and switches[-1].parent >= timeline:
        raise DamageError(f"{name} names timeline {switches[-1].parent} as a parent", path=name)
    return TimelineHistory(timeline, tuple(switches))


def format_history(history: TimelineHistory) -> str:
    """The history file as a server writes it: it puts an empty line before each switch but the first."""
    return "\n".join(f"{switch.parent}\t{switch.lsn}\t{switch.reason}\n" for switch in history.switches)
