"""What ``archive_command`` hands to a running receiver: mostly WAL that came by the stream already.

A segment is answered for once the very same bytes are durable: in the spool, or in every repository. What the stream does not
bring (``.history``, ``.backup`` and ``.partial`` files, and segments from before it began) is stored in every repository at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO

from pgkeep.errors import DamageError, ServerError, StoreError, UsageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import parse_history_name
from pgkeep.postgres.wal import (
    SEGMENT_HEADER_SIZE,
    WalFileKind,
    check_segment_header,
    classify,
    parse_segment_name,
    read_segment_header,
)
from pgkeep.repository.wal_objects import DifferentWalError, WalArchive
from pgkeep.wal.spool import Position, Spool, SpoolSegment

__all__ = ["PushedFiles"]

_STREAM_WAIT = 20.0
"""Seconds that the stream has to bring a segment that the server has archived already."""

_POLL = 0.005
_MOST_BYTES = 1 << 30


class PushedFiles:
    """The handler of pushed files; safe for threads. ``archives`` opens every repository, by name."""

    def __init__(
        self,
        spool: Callable[[], Spool | None],
        archives: Callable[[int], Mapping[str, WalArchive]],
        is_streaming: Callable[[], bool],
    ) -> None:
        self._spool = spool
        self._archives = archives
        self._is_streaming = is_streaming

    def __call__(self, name: str, file: BinaryIO) -> None:
        """Return once the file is durable.

        Raises DamageError for a segment that is another one than its name says, DifferentWalError where other bytes are there,
        StoreError, UsageError, ServerError where no spool tells yet which cluster this is.
        """
        spool = self._spool()
        kind = classify(name)
        if kind is None:
            raise UsageError(f"not the name of a WAL file: {name!r}")
        if spool is None:
            raise ServerError("the receiver has not reached its server yet", hint="the server tries again by itself")
        if kind is WalFileKind.SEGMENT:
            self._take_segment(name, file, spool)
            return
        if kind is WalFileKind.PARTIAL:
            _check_segment(name.removesuffix(".partial"), file, spool)
        data = file.read(_MOST_BYTES + 1)
        # a history that the stream brought is in the spool before the timeline's first byte
        if kind is not WalFileKind.HISTORY or spool.histories.get(parse_history_name(name)) != data:
            self._store(name, data, spool)

    def _take_segment(self, name: str, file: BinaryIO, spool: Spool) -> None:
        timeline, start = _check_segment(name, file, spool)
        deadline = time.monotonic() + _STREAM_WAIT
        end = Position(timeline, LSN(start + spool.identity.segment_size))
        while True:
            segment = next((held for held in spool.segments() if held.name == name), None)
            if segment is not None and segment.complete and segment.first == segment.start:
                try:
                    same = _is_same(spool, segment, file)
                except (DamageError, StoreError):
                    # it left the spool meanwhile, or is damaged there: the repositories are asked
                    break
                if not same:
                    raise DifferentWalError(
                        f"the server archives other bytes as {name} than it streamed",
                        hint="is another server's archive_command set to this cluster?",
                    )
                return
            durable = spool.durable
            comes = durable is not None and durable.timeline == timeline and durable < end and self._is_streaming()
            if not comes or time.monotonic() > deadline:
                break
            with spool.changed:
                spool.changed.wait(_POLL)
        # shipped already, or never to come by the stream
        file.seek(0)
        self._store(name, file.read(_MOST_BYTES + 1), spool)

    def _store(self, name: str, data: bytes, spool: Spool) -> None:
        for archive in self._archives(spool.identity.system_identifier).values():
            # what was shipped already is compared, and not sealed and written once more
            if not archive.holds(name, data):
                archive.put(name, data)


def _check_segment(name: str, file: BinaryIO, spool: Spool) -> tuple[int, LSN]:
    """Timeline and start of the segment, by its name; the file is left at its beginning."""
    size = spool.identity.segment_size
    try:
        timeline, start = parse_segment_name(name, size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = file.seek(0, os.SEEK_END)
    file.seek(0)
    if found != size:
        raise DamageError(f"WAL segment {name} has {found} bytes instead of {size}", path=name)
    check_segment_header(
        read_segment_header(file.read(SEGMENT_HEADER_SIZE)),
        system_identifier=spool.identity.system_identifier,
        timeline=timeline,
        start=start,
        segment_size=size,
    )
    file.seek(0)
    return timeline, start


def _is_same(spool: Spool, segment: SpoolSegment, file: BinaryIO) -> bool:
    file.seek(0)
    return all(file.read(len(part)) == part for part in spool.read(segment, segment.first, segment.end))
