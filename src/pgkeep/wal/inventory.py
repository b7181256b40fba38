"""What a repository holds of a cluster's WAL, as one listing shows it: spans, gaps, and where each segment comes from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from pgkeep.errors import DamageError, NotFoundError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, history_name, parse_history
from pgkeep.postgres.wal import WalFileKind, classify, parse_segment_name, segment_name, segment_start
from pgkeep.repository.wal_objects import WalArchive, split_piece

__all__ = ["TimelineWal", "WalInventory", "WalSpan", "load_segment"]


@dataclass(frozen=True, slots=True)
class WalSpan:
    """An unbroken stretch of a timeline: the bytes from ``start`` up to, not including, ``end``."""

    start: LSN
    end: LSN


@dataclass
class TimelineWal:
    """The WAL of one timeline. ``pieces`` maps the start of a segment to its pieces, ``(first byte, end)`` each."""

    timeline: int
    segment_size: int
    whole: set[int] = field(default_factory=set)
    pieces: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    partial: set[int] = field(default_factory=set)
    switches: list[LSN] = field(default_factory=list)
    """Where other timelines branch off this one."""

    @classmethod
    def of(cls, timeline: int, segment_size: int, names: Iterable[str]) -> TimelineWal:
        """What these names of WAL objects say; names of other files are passed over."""
        wal = cls(timeline, segment_size)
        for name in names:
            segment, first, end = split_piece(name)
            kind = classify(segment)
            if kind is WalFileKind.SEGMENT:
                start = parse_segment_name(segment, segment_size)[1]
                if end is None:
                    wal.whole.add(start)
                else:
                    wal.pieces.setdefault(start, []).append((first, end))
            elif kind is WalFileKind.PARTIAL:
                wal.partial.add(parse_segment_name(segment.removesuffix(".partial"), segment_size)[1])
        return wal

    def chain(self, start: int) -> list[tuple[int, int]]:
        """The pieces that give the longest unbroken beginning of the segment, in order; they may overlap."""
        chain: list[tuple[int, int]] = []
        reached = 0
        for first, end in sorted(self.pieces.get(start, []), key=lambda piece: (piece[0], -piece[1])):
            if first > reached:
                break
            if end > reached:
                chain.append((first, end))
                reached = end
        return chain

    def end_in(self, start: int) -> int:
        """How many bytes of the segment that starts here can be had."""
        if start in self.whole:
            return self.segment_size
        chain = self.chain(start)
        reached = chain[-1][1] if chain else 0
        if start in self.partial:
            # the server that left it wrote nothing of worth behind the switch
            inside = [lsn - start for lsn in self.switches if start < lsn <= start + self.segment_size]
            reached = max([reached, *inside])
        return reached

    @cached_property
    def spans(self) -> list[WalSpan]:
        """Unbroken stretches, in order; as it was when first asked for."""
        spans: list[WalSpan] = []
        for start in sorted(self.whole | self.pieces.keys() | self.partial):
            size = self.end_in(start)
            if size == 0:
                continue
            if spans and spans[-1].end == start:
                spans[-1] = WalSpan(spans[-1].start, LSN(start + size))
            else:
                spans.append(WalSpan(LSN(start), LSN(start + size)))
        return spans

    def reach(self, start: int) -> LSN:
        """The end of the span that holds the byte at ``start``; ``start`` itself where none does."""
        spans = self.spans
        index = bisect_right(spans, start, key=lambda span: span.start) - 1
        return spans[index].end if index >= 0 and spans[index].end > start else LSN(start)


class WalInventory:
    """One cluster's WAL in one repository at one moment."""

    def __init__(
        self, segment_size: int, timelines: dict[int, TimelineWal], histories: dict[int, TimelineHistory]
    ) -> None:
        self.segment_size = segment_size
        self.timelines = timelines
        self._histories = histories
        for history in histories.values():
            for switch in history.switches:
                if switch.parent in timelines:
                    timelines[switch.parent].switches.append(switch.lsn)

    @classmethod
    def read(cls, archive: WalArchive, segment_size: int) -> WalInventory:
        """List what there is. Raises StoreError; DamageError for a history file that cannot be read."""
        timelines: dict[int, TimelineWal] = {}
        histories: dict[int, TimelineHistory] = {}
        for timeline in archive.timelines():
            timelines[timeline] = TimelineWal.of(timeline, segment_size, (name for name, _ in archive.names(timeline)))
            if archive.exists(history_name(timeline)):
                histories[timeline] = parse_history(timeline, archive.get(history_name(timeline)))
        return cls(segment_size, timelines, histories)

    @classmethod
    def read_end(cls, archive: WalArchive, segment_size: int) -> WalInventory:
        """`read` only the newest folders of the newest timeline of which there is WAL: where it ends, and little before.

        Raises as `read`.
        """
        timelines: dict[int, TimelineWal] = {}
        histories: dict[int, TimelineHistory] = {}
        for timeline in reversed(archive.timelines()):
            logs = archive.logs(timeline)[-2:]
            names = (name for log in logs for name, _ in archive.names(timeline, int(log, 16)))
            wal = TimelineWal.of(timeline, segment_size, names)
            if not wal.spans:
                continue
            timelines[timeline] = TimelineWal(timeline, segment_size, wal.whole, wal.pieces, wal.partial)
            if archive.exists(history_name(timeline)):
                histories[timeline] = parse_history(timeline, archive.get(history_name(timeline)))
            break
        return cls(segment_size, timelines, histories)

    @property
    def newest_timeline(self) -> int:
        """The highest number of which there is WAL or a history file; 1 where there is nothing."""
        return max([1, *self.timelines, *self._histories])

    def history(self, timeline: int) -> TimelineHistory:
        """How a timeline came about. Raises NotFoundError where its history file is not there; timeline 1 needs none."""
        if timeline in self._histories:
            return self._histories[timeline]
        if timeline == 1:
            return TimelineHistory(1)
        raise NotFoundError(
            f"the repository has no {history_name(timeline)}, so nobody knows where timeline {timeline} branches off",
            hint="push that file from the server's pg_wal: pgkeep wal push pg_wal/" + history_name(timeline),
        )

    def has_history(self, timeline: int) -> bool:
        """Whether `history` answers."""
        return timeline == 1 or timeline in self._histories

    def reach(self, path: TimelineHistory, start: int) -> LSN:
        """How far the WAL goes without a gap along ``path`` from ``start`` on; ``start`` itself where there is none."""
        position = LSN(start)
        while True:
            timeline = path.timeline_of(position)
            end = path.end_of(timeline)
            reached = self.timelines[timeline].reach(position) if timeline in self.timelines else position
            if end is None:
                return reached
            if reached < end and not self._carried_over(path, end, reached):
                return reached
            position = end

    def source(self, path: TimelineHistory, lsn: int) -> TimelineWal | None:
        """The timeline whose file of the segment at ``lsn`` serves recovery along ``path``: the newest that goes beyond its own
        beginning there, else the one that has most of the segment.

        A timeline's first segment begins with what its parent wrote of it (xlog.c, XLogInitNewTimeline); held in pieces, it may
        be cut off before its own first byte.
        """
        start = segment_start(lsn, self.segment_size)
        most: TimelineWal | None = None
        for timeline in reversed(path.timelines):
            wal = self.timelines.get(timeline)
            begins = path.start_of(timeline)
            if wal is None or segment_start(begins, self.segment_size) > start or wal.end_in(start) == 0:
                continue
            if start + wal.end_in(start) > begins:
                return wal
            if most is None or wal.end_in(start) > most.end_in(start):
                most = wal
        return most

    def _carried_over(self, path: TimelineHistory, switch: LSN, reached: LSN) -> bool:
        """Whether the rest of the parent's last segment is in a later timeline's file of the same segment."""
        start = segment_start(switch, self.segment_size)
        if reached < start:
            return False
        wal = self.source(path, switch)
        return wal is not None and start + wal.end_in(start) >= switch


def load_segment(archive: WalArchive, wal: TimelineWal, start: int) -> tuple[bytes, int]:
    """A segment's bytes, filled up with zeros, and how many of them are WAL.

    Raises NotFoundError where there is nothing of it; ObjectMissing, DamageError, StoreError.
    """
    name = segment_name(wal.timeline, start, wal.segment_size)
    if start in wal.whole:
        data = archive.get(name)
        return data, len(data)
    size = wal.end_in(start)
    chain = wal.chain(start)
    if chain and chain[-1][1] == size:
        filled = bytearray(wal.segment_size)
        for first, end in chain:
            piece = archive.get(f"{name}.{first:08x}-{end:08x}")
            if len(piece) != end - first:
                raise DamageError(f"{name} has a piece of {len(piece)} bytes instead of {end - first}", path=name)
            filled[first:end] = piece
        return bytes(filled), size
    if start in wal.partial:
        return archive.get(f"{name}.partial"), size
    raise NotFoundError(f"the repository has nothing of WAL segment {name}")
