"""Receiving a base backup: the messages of BASE_BACKUP, their tar archives, and the server's manifest at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgkeep.backup.assembler import FileAssembler, FileFacts
from pgkeep.backup.server_manifest import ServerManifestCheck
from pgkeep.errors import ServerError
from pgkeep.postgres.replication import BaseBackup, MessageKind
from pgkeep.postgres.tar import MemberType, TarMember, TarReader
from pgkeep.progress import Progress

__all__ = ["Labels", "receive"]


@dataclass(slots=True)
class Labels:
    """The two small files that make a copy of a running cluster a backup."""

    backup_label: bytes = b""
    tablespace_map: bytes = b""


class _ArchiveReader:
    """Feeds the members of one archive to the assembler."""

    def __init__(self, prefix: bytes, assembler: FileAssembler, labels: Labels) -> None:
        self._prefix = prefix
        self._assembler = assembler
        self._labels = labels
        self._tar = TarReader()
        self._is_file = False
        self._label: str | None = None

    def feed(self, data: memoryview) -> None:
        for event in self._tar.feed(data):
            if isinstance(event, memoryview):
                self._assembler.data(event)
                if self._label is not None:
                    setattr(self._labels, self._label, getattr(self._labels, self._label) + bytes(event))
            elif isinstance(event, TarMember):
                self._begin(event)
            elif self._is_file:
                self._assembler.end()
                self._is_file, self._label = False, None

    def finish(self) -> None:
        """The archive is over. Raises DamageError where it was cut off."""
        self._tar.finish()

    def _begin(self, member: TarMember) -> None:
        path = self._prefix + member.name.removeprefix(b"./").rstrip(b"/")
        if member.type is MemberType.DIRECTORY:
            self._assembler.directory(path, member.mode)
        elif member.type is MemberType.FILE:
            self._is_file = True
            self._label = path.decode() if path in {b"backup_label", b"tablespace_map"} else None
            self._assembler.begin(FileFacts(path, member.size, member.mode, member.mtime))
        else:
            # with TABLESPACE_MAP a server sends no link at all
            raise ServerError(f"the server sent a link where none can be: {path.decode('utf-8', 'replace')}")


def receive(backup: BaseBackup, assembler: FileAssembler, check: Callable[[], None], progress: Progress) -> Labels:
    """Read a base backup to its end into the assembler, and hold it against the server's manifest.

    ``check`` is called now and then and raises what should end the backup early. Raises ServerError, DamageError.
    """
    labels = Labels()
    assembler.directory(b"", 0o700)
    archive: _ArchiveReader | None = None
    manifest: ServerManifestCheck | None = None
    received = 0
    for message in backup.messages:
        kind, body = message[0], message[1:]
        if kind == MessageKind.DATA:
            (manifest or archive or _nobody).feed(body)
            received += len(body)
            continue
        # between archives, and once a second within them
        check()
        progress.advance(received if manifest is None else 0)
        received = 0
        if kind in {MessageKind.ARCHIVE, MessageKind.MANIFEST} and archive is not None:
            archive.finish()
        if kind == MessageKind.ARCHIVE:
            oid = bytes(body).split(b"\0")[0].removesuffix(b".tar")
            archive = _ArchiveReader(b"" if oid == b"base" else b"pg_tblspc/" + oid + b"/", assembler, labels)
        elif kind == MessageKind.MANIFEST:
            assembler.drain()
            manifest = ServerManifestCheck(assembler.entry)
        elif kind != MessageKind.PROGRESS:
            raise ServerError(f"the server sent an unknown message ({chr(kind)!r}) in a base backup")
    check()
    if manifest is None:
        raise ServerError("the server sent no backup_manifest")
    manifest.finish(assembler.files)
    return labels


class _Nobody:
    """Takes data that belong to no archive, which no server sends."""

    def feed(self, _data: memoryview) -> None:
        raise ServerError("the server sent data before an archive in a base backup")


_nobody = _Nobody()
