"""The replication protocol's client: what a walsender is asked, and what it answers.

Protocol: PostgreSQL documentation, chapter 55.4 "Streaming Replication Protocol", for versions 15 and later. Waits with
poll(2) so that signals are handled while a server is silent.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import psycopg
from psycopg import pq

from pgkeep.errors import PgkeepError, ServerError
from pgkeep.postgres.connection import open_replication
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.replication_errors import ChecksumFailure, server_error
from pgkeep.postgres.wal_stream import EndOfStream, WalStream, status_message

__all__ = [
    "BaseBackup",
    "BaseBackupOptions",
    "ChecksumFailure",
    "MessageKind",
    "ReplicationConnection",
    "SlotState",
    "SystemIdentity",
    "TablespaceInfo",
    "WalChunk",
]

_STATUS_INTERVAL = 10.0
"""Seconds between status updates; the server gives a receiver up after wal_sender_timeout, 60 s by default."""

_CANCEL_WAIT = 2.0

_NOWHERE = LSN(0)


def _ignore(_message: str) -> None:
    """For notices that nobody wants."""


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """The answer to IDENTIFY_SYSTEM."""

    system_identifier: int
    timeline: int
    flush_lsn: LSN


@dataclass(frozen=True, slots=True)
class SlotState:
    """A physical slot: WAL is held from ``restart_lsn`` of ``timeline`` on; None where it holds none, or no more."""

    restart_lsn: LSN | None
    timeline: int | None


@dataclass(frozen=True, slots=True)
class TablespaceInfo:
    """A tablespace of the server: size in bytes, approximate; the data directory itself has neither oid nor location."""

    oid: int | None
    location: bytes | None
    size: int | None


@dataclass(frozen=True, slots=True)
class BaseBackupOptions:
    """What BASE_BACKUP is asked; ``max_rate`` in bytes a second, ``incremental`` after `upload_manifest` only."""

    label: str
    fast_checkpoint: bool = True
    verify_checksums: bool = True
    max_rate: int | None = None
    incremental: bool = False

    def command(self) -> str:
        """The command's text."""
        label = self.label.replace("'", "''")
        options = [
            f"LABEL '{label}'",
            "PROGRESS true",
            f"CHECKPOINT '{'fast' if self.fast_checkpoint else 'spread'}'",
            "WAIT false",
            "TABLESPACE_MAP true",
            f"VERIFY_CHECKSUMS {'true' if self.verify_checksums else 'false'}",
            "MANIFEST 'yes'",
            "MANIFEST_CHECKSUMS 'CRC32C'",
            "TARGET 'client'",
        ]
        if self.max_rate is not None:
            # kB a second, within the limits of basebackup.h
            options.append(f"MAX_RATE {min(max(self.max_rate >> 10, 32), 1 << 20)}")
        if self.incremental:
            options.append("INCREMENTAL true")
        return f"BASE_BACKUP ({', '.join(options)})"


class MessageKind(IntEnum):
    """The first byte of a CopyData message of BASE_BACKUP."""

    ARCHIVE = ord("n")
    DATA = ord("d")
    MANIFEST = ord("m")
    PROGRESS = ord("p")


@dataclass(slots=True)
class BaseBackup:
    """A base backup that is under way.

    Iterate `messages` to its end; only then is ``stop_lsn`` known, and the backup is good.
    """

    start_lsn: LSN
    start_timeline: int
    tablespaces: list[TablespaceInfo]
    messages: Iterator[memoryview]
    stop_lsn: LSN = _NOWHERE


@dataclass(frozen=True, slots=True)
class WalChunk:
    """Bytes of WAL from ``start``; empty for a sign of life. ``server_end`` is where the server's WAL ends."""

    start: LSN
    data: memoryview
    server_end: LSN


@dataclass
class ReplicationConnection:
    """A connection to a walsender; use as a context manager.

    Leaving it cancels what runs and closes: the server ends its backup and drops temporary slots by itself.
    """

    pgconn: pq.abc.PGconn
    notice: Callable[[str], None] = _ignore
    _busy: bool = field(default=False, init=False)

    @classmethod
    def open(cls, dsn: str, notice: Callable[[str], None] = _ignore) -> ReplicationConnection:
        """Connect. Raises ServerError."""
        connection = cls(open_replication(dsn), notice)
        connection.pgconn.notice_handler = connection._on_notice
        return connection

    def __enter__(self) -> ReplicationConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and close."""
        if self._busy and self.pgconn.status == pq.ConnStatus.OK:
            # the server may be gone, and closing is what matters
            with contextlib.suppress(psycopg.Error, OSError):
                self._cancel()
        self.pgconn.finish()

    def abandon(self) -> None:
        """Break the connection off, from any thread, without closing it; the server's walsender ends."""
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    def _cancel(self) -> None:
        """Ask the server to stop, for `_CANCEL_WAIT` seconds at most: libpq's simple call would wait for ever."""
        request = self.pgconn.cancel_conn()
        try:
            request.start()
            deadline = time.monotonic() + _CANCEL_WAIT
            while (status := request.poll()) in {pq.PollingStatus.READING, pq.PollingStatus.WRITING}:
                poll = select.poll()
                poll.register(request.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
                if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                    return
        finally:
            request.finish()

    @property
    def server_version(self) -> int:
        """``server_version_num``, as 180006."""
        return self.pgconn.server_version

    def identify_system(self) -> SystemIdentity:
        """Who the server is and how far its WAL is flushed."""
        row = self._rows("IDENTIFY_SYSTEM")[0]
        return SystemIdentity(int(row[0] or 0), int(row[1] or 0), LSN.parse((row[2] or b"0/0").decode()))

    def show(self, setting: str) -> str:
        """The value of a setting."""
        return (self._rows(f"SHOW {setting}")[0][0] or b"").decode()

    def timeline_history(self, timeline: int) -> tuple[str, bytes]:
        """Name and content of a timeline's history file; timeline 1 has none."""
        name, content = self._rows(f"TIMELINE_HISTORY {timeline}")[0]
        return (name or b"").decode(), content or b""

    def create_temporary_slot(self, name: str) -> None:
        """A physical slot that holds WAL from now on and is gone with the connection."""
        self._rows(f"CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL (RESERVE_WAL)")

    def create_slot(self, name: str) -> None:
        """A physical slot that outlives the connection and holds WAL from the last checkpoint on."""
        self._rows(f"CREATE_REPLICATION_SLOT {name} PHYSICAL (RESERVE_WAL)")

    def read_slot(self, name: str) -> SlotState | None:
        """The physical slot of this name; None where there is none. Raises ServerError for a logical one."""
        kind, lsn, timeline = self._rows(f"READ_REPLICATION_SLOT {name}")[0]
        if kind is None:
            return None
        return SlotState(LSN.parse(lsn.decode()) if lsn else None, int(timeline) if timeline else None)

    def drop_slot(self, name: str) -> None:
        """Drop a slot. Raises SlotIsBusy, SlotMissing, ServerError."""
        self._send(f"DROP_REPLICATION_SLOT {name}")
        self._result(pq.ExecStatus.COMMAND_OK)
        self._finish()

    def base_backup(self, options: BaseBackupOptions) -> BaseBackup:
        """Start a base backup; returns when the server's checkpoint is done and data is about to come."""
        self._send(options.command())
        start = self._result(pq.ExecStatus.TUPLES_OK)
        tablespaces = self._result(pq.ExecStatus.TUPLES_OK)
        self._result(pq.ExecStatus.COPY_OUT)
        backup = BaseBackup(
            start_lsn=LSN.parse((start.get_value(0, 0) or b"").decode()),
            start_timeline=int(start.get_value(0, 1) or 0),
            tablespaces=[_tablespace(tablespaces, row) for row in range(tablespaces.ntuples)],
            messages=iter(()),
        )
        backup.messages = self._backup_messages(backup)
        return backup

    def upload_manifest(self, pieces: Iterable[bytes]) -> None:
        """Give the server the manifest that the next base backup is to rest on; 17 and later. Raises ServerError."""
        self._send("UPLOAD_MANIFEST")
        self._result(pq.ExecStatus.COPY_IN)
        try:
            for piece in pieces:
                self.pgconn.put_copy_data(piece)
            self.pgconn.put_copy_end()
        except psycopg.Error:
            raise self._broken() from None
        self._finish()

    def start_replication(self, start: LSN, timeline: int, slot: str | None = None) -> None:
        """Begin to stream WAL; `wal` gives it."""
        named = f"SLOT {slot} " if slot else ""
        self._send(f"START_REPLICATION {named}PHYSICAL {start} TIMELINE {timeline}")
        self._result(pq.ExecStatus.COPY_BOTH)
        self.pgconn.nonblocking = 1

    def stream(self, start: LSN, timeline: int, slot: str | None = None) -> WalStream:
        """Begin to stream WAL, to be acknowledged by the caller. Raises ServerError.

        At the very end of a timeline that the server has left there is nothing to stream, and the answer has its ``end``.
        """
        named = f"SLOT {slot} " if slot else ""
        stream = WalStream(self, start, timeline)
        self._send(f"START_REPLICATION {named}PHYSICAL {start} TIMELINE {timeline}")
        result = self._result(pq.ExecStatus.COPY_BOTH, pq.ExecStatus.TUPLES_OK)
        if result.status == pq.ExecStatus.TUPLES_OK:
            self._finish()
            switch = LSN.parse((result.get_value(0, 1) or b"").decode())
            stream.end = EndOfStream(int(result.get_value(0, 0) or 0), switch)
        else:
            self.pgconn.nonblocking = 1
        return stream

    def end_copy(self) -> pq.abc.PGresult | None:
        """After the server's end of a COPY BOTH: end ours, read up to the command's end; the rows that came, if any.

        Raises ServerError where it was an error that ended it.
        """
        self.pgconn.nonblocking = 0
        self._await_result()
        result = self.pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.COPY_IN:
            try:
                self.pgconn.put_copy_end()
            except psycopg.Error:
                raise self._broken() from None
            self._await_result()
            result = self.pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            with contextlib.suppress(ServerError):
                self._finish()
            self._busy = False
            raise server_error(result)
        self._finish()
        return result if result is not None and result.status == pq.ExecStatus.TUPLES_OK else None

    def wal(self, durable: Callable[[], LSN], wait: float) -> Iterator[WalChunk | None]:
        """WAL as it comes, and None whenever ``wait`` seconds went by without any.

        ``durable`` is asked for the position to acknowledge. Ends where the server ends the timeline.
        """
        reported = 0.0
        while True:
            if time.monotonic() - reported > _STATUS_INTERVAL:
                self.put_copy_data(status_message(durable()))
                reported = time.monotonic()
            message = self.copy_data()
            if message is None:
                if not self.wait_readable(wait):
                    yield None
                continue
            if not message:
                self._busy = False
                return
            if message[0] == ord("w"):
                start, server_end, _ = struct.unpack_from("!QQq", message, 1)
                yield WalChunk(LSN(start), message[25:], LSN(server_end))
            elif message[0] == ord("k"):
                server_end, _, reply = struct.unpack_from("!QqB", message, 1)
                if reply:
                    reported = 0.0
                yield WalChunk(LSN(server_end), memoryview(b""), LSN(server_end))

    def put_copy_data(self, message: bytes) -> None:
        """Send a message of a COPY. Raises ServerError."""
        try:
            self.pgconn.put_copy_data(message)
            while self.pgconn.flush():
                poll = select.poll()
                poll.register(self.pgconn.socket, select.POLLOUT)
                poll.poll()
        except psycopg.Error:
            raise self._broken() from None

    def _backup_messages(self, backup: BaseBackup) -> Iterator[memoryview]:
        while True:
            message = self.copy_data()
            if message is None:
                self.wait_readable(None)
            elif message:
                yield message
            else:
                break
        result = self._result(pq.ExecStatus.TUPLES_OK)
        backup.stop_lsn = LSN.parse((result.get_value(0, 0) or b"").decode())
        self._finish()

    def copy_data(self) -> memoryview | None:
        """The next message of a COPY; None where it has not come yet, empty where the COPY is over."""
        try:
            size, message = self.pgconn.get_copy_data(1)
            if size == 0:
                self.pgconn.consume_input()
                size, message = self.pgconn.get_copy_data(1)
        except psycopg.Error:
            raise self._broken() from None
        if size == 0:
            return None
        return memoryview(message) if size > 0 else memoryview(b"")

    def _rows(self, command: str) -> list[list[bytes | None]]:
        self._send(command)
        result = self._result(pq.ExecStatus.TUPLES_OK)
        self._finish()
        return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]

    def _send(self, command: str) -> None:
        self._busy = True
        try:
            self.pgconn.send_query(command.encode())
        except psycopg.Error:
            raise self._broken() from None

    def _result(self, *expected: pq.ExecStatus) -> pq.abc.PGresult:
        self._await_result()
        result = self.pgconn.get_result()
        if result is None:
            raise self._broken()
        if result.status not in expected:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                # the next command can be sent only when this one's end has been read; the server may be gone, too
                with contextlib.suppress(ServerError):
                    self._finish()
            self._busy = False
            raise server_error(result)
        return result

    def _finish(self) -> None:
        """Read results up to the server's ReadyForQuery; an error among them is raised."""
        failed: PgkeepError | None = None
        while True:
            self._await_result()
            result = self.pgconn.get_result()
            if result is None:
                break
            if result.status == pq.ExecStatus.FATAL_ERROR:
                failed = server_error(result)
        self._busy = False
        if failed is not None:
            raise failed

    def _await_result(self) -> None:
        while self.pgconn.is_busy():
            self.wait_readable(None)
            try:
                self.pgconn.consume_input()
            except psycopg.Error:
                raise self._broken() from None

    def wait_readable(self, seconds: float | None) -> bool:
        """Wait until the server has sent something, ``seconds`` at most (None: for ever); whether it has."""
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _broken(self) -> ServerError:
        self._busy = False
        message = self.pgconn.error_message.decode("utf-8", "replace").strip() or "the connection was closed"
        return ServerError(
            f"the connection to the server broke: {_first_line(message)}",
            hint="see the server's log for the reason, then run the same command again: nothing is stored twice",
        )

    def _on_notice(self, result: pq.abc.PGresult) -> None:
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        self.notice(message.decode("utf-8", "replace"))


def temporary_slot_name() -> str:
    """A name that no other receiver uses."""
    return f"pgkeep_{os.getpid()}_{os.urandom(4).hex()}"


def _tablespace(result: pq.abc.PGresult, row: int) -> TablespaceInfo:
    oid, location, size = (result.get_value(row, column) for column in range(3))
    return TablespaceInfo(int(oid) if oid else None, location or None, int(size) << 10 if size else None)


def _first_line(message: str) -> str:
    return message.splitlines()[0]
