"""From the receiver's frames to the assembler, and the server's manifest held against what was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pgkeep.backup.assembler import FileAssembler
from pgkeep.backup.server_manifest import ServerManifestCheck
from pgkeep.backup.source import Received
from pgkeep.errors import ServerError
from pgkeep.postgres.backup_label import strip_incremental_lines
from pgkeep.progress import Progress
from pgkeep.receiver.frames import (
    Cell,
    ChangedBlocks,
    ChangedFile,
    ChangedPages,
    DirectoryAt,
    FileFacts,
    Finished,
    Frame,
    ManifestPart,
    Notice,
    Started,
)
from pgkeep.receiver.parent import Receiver

if TYPE_CHECKING:
    from pgkeep.backup.changed_file_reader import ChangedFileReader
    from pgkeep.postgres.truncations import Truncations

__all__ = ["StreamReader", "wait_for_start"]

_LABEL = b"backup_label"
_TEXTS = frozenset({_LABEL, b"tablespace_map"})


def wait_for_start(frames: Iterator[Frame], progress: Progress) -> Started:
    """The first frame but for notices: the server's checkpoint is done. Raises ServerError."""
    for frame in frames:
        if isinstance(frame, Started):
            return frame
        if isinstance(frame, Notice):
            progress.note(frame.message)
    raise ServerError("the server sent no base backup")


@dataclass(slots=True)
class StreamReader:
    """Takes the frames after Started to their end; ``page_size`` and ``segment_pages`` are those of relations.

    ``truncations`` are those since the parent; only an incremental backup needs them.
    """

    receiver: Receiver
    assembler: FileAssembler
    progress: Progress
    page_size: int
    segment_pages: int
    truncations: Truncations | None = None
    received: Received = field(default_factory=Received)
    _file: FileFacts | None = None
    _text: bytes = b""
    _changed: ChangedFileReader | None = None
    _manifest: ServerManifestCheck | None = None

    def read(self, frames: Iterator[Frame], check: Callable[[], None]) -> Received:
        """Store what comes, and hold it against the server's manifest.

        ``check`` is called with every frame and raises what should end the backup early. Raises ServerError, DamageError.
        """
        self.assembler.directory(b"", 0o700)
        for frame in frames:
            check()
            self._take(frame)
        check()
        if self._manifest is None:
            raise ServerError("the server sent no backup_manifest")
        self._manifest.finish(self.assembler.files)
        return self.received

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Cell):
            self._take_cell(frame)
        elif isinstance(frame, ChangedFile):
            # numpy comes with it, and a full read does without
            from pgkeep.backup.changed_file_reader import ChangedFileReader

            assert self.truncations is not None
            self._changed = ChangedFileReader(frame, self.page_size, self.segment_pages, self.truncations)
            self.progress.advance(frame.header_size)
            self._begin_changed()
        elif isinstance(frame, ChangedBlocks):
            assert self._changed is not None
            self._changed.numbers += frame.numbers
            self._begin_changed()
        elif isinstance(frame, ChangedPages):
            self._take_pages(frame)
        elif isinstance(frame, DirectoryAt):
            self.assembler.directory(frame.path, frame.mode)
        elif isinstance(frame, ManifestPart):
            if self._manifest is None:
                self.assembler.drain()
                self._manifest = ServerManifestCheck(self.assembler.arrived)
            self._manifest.feed(frame.data)
        elif isinstance(frame, Notice):
            self.progress.note(frame.message)
        elif isinstance(frame, Finished):
            self.received.stop_lsn, self.received.size = frame.stop_lsn, frame.received

    def _take_cell(self, frame: Cell) -> None:
        self.progress.advance(frame.size)
        if frame.file is not None:
            self._file = frame.file
        assert self._file is not None
        if self._file.path in _TEXTS:
            self._take_text(frame, self._file)
            return
        if frame.file is not None:
            self.assembler.begin(frame.file)
        if frame.inline is not None:
            self.assembler.inline(frame.inline)
        elif frame.size:
            self.assembler.cell(partial(self.receiver.load, frame.slot, frame.size), frame.size)
        if frame.last:
            self.assembler.end()

    def _take_text(self, frame: Cell, file: FileFacts) -> None:
        """The lines of backup_label that name another backup are left out: ours is complete by itself."""
        if frame.inline is not None:
            self._text += frame.inline
        elif frame.size:
            self._text += self.receiver.load(frame.slot, frame.size)
        if not frame.last:
            return
        arrived, self._text = self._text, b""
        text = strip_incremental_lines(arrived) if file.path == _LABEL else arrived
        setattr(self.received, file.path.decode(), text)
        self.assembler.put(file, text, arrived)

    def _begin_changed(self) -> None:
        """Once all numbers of changed pages are known; without any, that is all of the file."""
        changed = self._changed
        assert changed is not None
        if not changed.is_complete:
            return
        self.assembler.begin_changed(*changed.begin())
        if not changed.count:
            self.assembler.end()

    def _take_pages(self, frame: ChangedPages) -> None:
        changed = self._changed
        assert changed is not None
        size = frame.count * self.page_size
        self.progress.advance(size)
        self.assembler.pages(partial(self.receiver.load, frame.slot, size), changed.next_pages(frame.count))
        if not changed.left:
            self.assembler.end()
