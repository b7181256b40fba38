"""The receiving process: BASE_BACKUP's messages, cut into cells, laid into shared memory, told of in frames."""

from __future__ import annotations

import ctypes
import pickle
import signal
import socket
import sys
from collections.abc import Iterator

import msgspec

from pgkeep.errors import PgkeepError, ServerError
from pgkeep.postgres.incremental_file import real_path
from pgkeep.postgres.layout import parse_relation_path
from pgkeep.postgres.replication import BaseBackupOptions, MessageKind, ReplicationConnection
from pgkeep.postgres.tar import MemberType, TarMember, TarReader
from pgkeep.receiver.changed import ChangedMember
from pgkeep.receiver.frames import (
    LONGEST_FRAME,
    UPLOAD_END,
    Cell,
    DirectoryAt,
    Failed,
    FileFacts,
    Finished,
    Frame,
    ManifestPart,
    Notice,
    ReceiverOrder,
    Started,
    encode_frame,
)
from pgkeep.receiver.slots import Slots

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1


class _ArchiveReader:
    """Cuts the members of one archive into cells."""

    def __init__(self, prefix: bytes, child: _Child) -> None:
        self._prefix = prefix
        self._child = child
        self._tar = TarReader()
        self._facts: FileFacts | None = None
        self._is_file = False
        self._inline: bytearray | None = None
        self._changed: ChangedMember | None = None
        self._slot = -1
        self._filled = 0
        self._room = memoryview(b"")

    def feed(self, data: memoryview) -> None:
        for event in self._tar.feed(data):
            if isinstance(event, memoryview):
                self._take(event)
            elif isinstance(event, TarMember):
                self._begin(event)
            elif self._changed is not None:
                self._changed.end()
                self._changed = None
            elif self._is_file:
                self._send(last=True)
                self._is_file = False

    def finish(self) -> None:
        """The archive is over. Raises DamageError where it was cut off."""
        self._tar.finish()

    def _begin(self, member: TarMember) -> None:
        path = self._prefix + member.name.removeprefix(b"./").rstrip(b"/")
        if member.type is MemberType.DIRECTORY:
            self._child.send(DirectoryAt(path, member.mode))
        elif member.type is MemberType.FILE:
            real = real_path(path) if self._child.incremental else None
            if real is not None and parse_relation_path(real) is not None:
                facts = FileFacts(real, member.size, member.mode, member.mtime)
                self._changed = ChangedMember(facts, self._child.slots, self._child.send, self._child.page_size)
                return
            self._is_file = True
            self._facts = FileFacts(path, member.size, member.mode, member.mtime)
            self._inline = bytearray() if member.size <= self._child.inline_size else None
        else:
            # with TABLESPACE_MAP a server sends no link at all
            raise ServerError(f"the server sent a link where none can be: {path.decode('utf-8', 'replace')}")

    def _take(self, piece: memoryview) -> None:
        if self._changed is not None:
            self._changed.take(piece)
            return
        if self._inline is not None:
            self._inline += piece
            return
        while piece:
            if self._slot < 0:
                self._slot = self._child.slots.take()
                self._room = self._child.slots.room(self._slot)
                self._filled = 0
            part = piece[: len(self._room) - self._filled]
            end = self._filled + len(part)
            self._room[self._filled : end] = part
            self._filled = end
            piece = piece[len(part) :]
            if self._filled == len(self._room):
                self._send(last=False)

    def _send(self, *, last: bool) -> None:
        inline = None if self._inline is None else bytes(self._inline)
        size = len(inline) if inline is not None else self._filled if self._slot >= 0 else 0
        self._child.send(Cell(self._facts, self._slot, size, last, inline))
        self._facts, self._slot = None, -1


class _Child:
    """The receiving process."""

    def __init__(self, memory: int, channel: socket.socket) -> None:
        self._channel = channel
        data = channel.recv(LONGEST_FRAME)
        if not data:
            # the parent gave up before it began
            sys.exit(1)
        order = msgspec.msgpack.decode(data, type=ReceiverOrder)
        self._order = order
        self.inline_size = order.inline_size
        self.incremental = order.incremental
        self.page_size = order.page_size
        self.slots = Slots(memory, channel, cell_size=order.cell_size, slots=order.slots)

    def send(self, frame: Frame) -> None:
        self._channel.send(encode_frame(frame))

    def run(self) -> None:
        try:
            with ReplicationConnection.open(self._order.dsn, lambda message: self.send(Notice(message))) as connection:
                self._receive(connection)
        except PgkeepError as error:
            self.send(Failed(pickle.dumps(error)))
        # a socket closed with something unread in it would take our last frame with it
        while self._channel.recv(LONGEST_FRAME):
            pass

    def _receive(self, connection: ReplicationConnection) -> None:
        order = self._order
        if connection.identify_system().system_identifier != order.system_identifier:
            raise ServerError(
                "the DSN leads to two different clusters", hint="name one server in it, or standbys of one cluster"
            )
        if order.incremental:
            connection.upload_manifest(self._manifest_to_upload())
        backup = connection.base_backup(
            BaseBackupOptions(
                label=order.label,
                fast_checkpoint=order.fast_checkpoint,
                verify_checksums=order.verify_checksums,
                max_rate=order.max_rate,
                incremental=order.incremental,
            )
        )
        tablespaces = [(tablespace.oid, tablespace.location, tablespace.size) for tablespace in backup.tablespaces]
        self.send(Started(int(backup.start_lsn), backup.start_timeline, tablespaces))
        archive: _ArchiveReader | None = None
        is_manifest = False
        received = 0
        for message in backup.messages:
            kind, body = message[0], message[1:]
            if kind == MessageKind.DATA:
                if is_manifest:
                    self.send(ManifestPart(bytes(body)))
                elif archive is not None:
                    received += len(body)
                    archive.feed(body)
            elif kind in {MessageKind.ARCHIVE, MessageKind.MANIFEST}:
                if archive is not None:
                    archive.finish()
                is_manifest = kind == MessageKind.MANIFEST
                oid = bytes(body).split(b"\0")[0].removesuffix(b".tar")
                archive = _ArchiveReader(b"" if oid == b"base" else b"pg_tblspc/" + oid + b"/", self)
            elif kind != MessageKind.PROGRESS:
                raise ServerError(f"the server sent an unknown message ({chr(kind)!r}) in a base backup")
        self.send(Finished(int(backup.stop_lsn), received))

    def _manifest_to_upload(self) -> Iterator[bytes]:
        """What the parent sends after the order. Ends the process where the parent is gone."""
        while (part := self._channel.recv(LONGEST_FRAME)) != UPLOAD_END:
            if not part:
                sys.exit(1)
            yield part


def _main() -> None:
    memory, channel = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches the whole foreground group; the parent decides, and ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _Child(memory, channel).run()
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(1)
    # the parent ends us after an error, and we end by ourselves already
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    _main()
