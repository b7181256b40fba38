"""From the receiver's frames to the assembler, and the server's manifest held against what was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pgkeep.backup.assembler import FileAssembler
from pgkeep.backup.server_manifest import ServerManifestCheck
from pgkeep.errors import ServerError
from pgkeep.progress import Progress
from pgkeep.receiver.frames import Cell, DirectoryAt, Finished, Frame, ManifestPart, Notice, Started
from pgkeep.receiver.parent import Receiver

__all__ = ["Received", "receive", "wait_for_start"]

_LABEL_FILES = {b"backup_label", b"tablespace_map"}


@dataclass(slots=True)
class Received:
    """What makes a copy of a running cluster a backup: two small files, and where its WAL must reach."""

    backup_label: bytes = b""
    tablespace_map: bytes = b""
    stop_lsn: int = 0


def wait_for_start(frames: Iterator[Frame], progress: Progress) -> Started:
    """The first frame but for notices: the server's checkpoint is done. Raises ServerError."""
    for frame in frames:
        if isinstance(frame, Started):
            return frame
        if isinstance(frame, Notice):
            progress.note(frame.message)
    raise ServerError("the server sent no base backup")


def receive(
    frames: Iterator[Frame],
    receiver: Receiver,
    assembler: FileAssembler,
    check: Callable[[], None],
    progress: Progress,
) -> Received:
    """Take the frames after Started to their end, and hold what was stored against the server's manifest.

    ``check`` is called with every frame and raises what should end the backup early. Raises ServerError, DamageError.
    """
    received = Received()
    manifest: ServerManifestCheck | None = None
    path = b""
    assembler.directory(b"", 0o700)
    for frame in frames:
        check()
        if isinstance(frame, Cell):
            path = frame.file.path if frame.file is not None else path
            if path in _LABEL_FILES:
                text = frame.inline if frame.inline is not None else receiver.peek(frame.slot, frame.size)
                setattr(received, path.decode(), getattr(received, path.decode()) + text)
            _take_cell(frame, receiver, assembler)
            progress.advance(frame.size)
        elif isinstance(frame, DirectoryAt):
            assembler.directory(frame.path, frame.mode)
        elif isinstance(frame, ManifestPart):
            if manifest is None:
                assembler.drain()
                manifest = ServerManifestCheck(assembler.entry)
            manifest.feed(frame.data)
        elif isinstance(frame, Notice):
            progress.note(frame.message)
        elif isinstance(frame, Finished):
            received.stop_lsn = frame.stop_lsn
    check()
    if manifest is None:
        raise ServerError("the server sent no backup_manifest")
    manifest.finish(assembler.files)
    return received


def _take_cell(frame: Cell, receiver: Receiver, assembler: FileAssembler) -> None:
    if frame.file is not None:
        assembler.begin(frame.file)
    if frame.inline is not None:
        assembler.inline(frame.inline)
    elif frame.size:
        assembler.cell(partial(receiver.load, frame.slot, frame.size), frame.size)
    if frame.last:
        assembler.end()
