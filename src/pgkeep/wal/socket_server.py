"""The receiver's socket, where ``archive_command`` hands WAL files over; the form is in `pgkeep.wal.thin_push`."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pgkeep.errors import PgkeepError, TargetError
from pgkeep.postgres.account import ACCOUNT_VARIABLE

__all__ = ["PushServer"]

Handler = Callable[[str, BinaryIO], None]

_LONGEST_REQUEST = 4096
_LONGEST_ADDRESS = 107
"""Bytes: sockaddr_un.sun_path without its last (unix(7))."""
_REQUEST_SECONDS = 10.0
_LAST_FAILURE = 125
_PEER = struct.Struct("3i")
"""struct ucred: process, user, group."""


class PushServer:
    """Listens while it is entered, and answers each push in a thread of its own.

    ``handler`` is called with the file's name and the open file, and returns once that is durable; a PgkeepError becomes the
    answer's exit code and message. Only root, this process's own user and PostgreSQL's account may push. Raises TargetError where
    it cannot listen. A socket that a dead receiver left is replaced: who enters holds the spool.
    """

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._allowed = {0, os.geteuid()} | _server_users()
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._accept, name="wal-push", daemon=True)

    def __enter__(self) -> PushServer:
        if len(os.fsencode(self._path)) > _LONGEST_ADDRESS:
            raise TargetError(
                f"the path of the socket {self._path} is longer than {_LONGEST_ADDRESS} bytes",
                hint='name a shorter spool: wal = { spool = "/var/spool/pgkeep/auth" }',
            )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            self._listener.bind(str(self._path))
            # who may push is asked of the kernel, for each connection
            self._path.chmod(0o666)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise TargetError(
                f"cannot listen at {self._path}: {error.strerror}", hint=f"ls -ld {self._path.parent}"
            ) from None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._stop_writer, b"x")
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._stop_reader)
        os.close(self._stop_writer)

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._stop_reader in ready:
                return
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], name="wal-push", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_REQUEST_SECONDS)
            code, message = self._answer(connection)
            connection.sendall(f"{code} {' '.join(message.split())}\n".encode("utf-8", "replace"))

    def _answer(self, connection: socket.socket) -> tuple[int, str]:
        request, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 1)
        try:
            _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if user not in self._allowed:
                return 1, f"user {user} may not push WAL here"
            words = request.split(b"\0")
            if len(words) != 4 or words[0] != b"push" or len(descriptors) != 1:
                return 1, "this is no push that this pgkeep understands"
            # another offset than the client's: the same file may be pushed again
            with open(f"/proc/self/fd/{descriptors[0]}", "rb") as file:
                self._handler(os.fsdecode(words[2]), file)
        except PgkeepError as error:
            hint = f" ({error.hint})" if error.hint else ""
            return min(error.exit_code, _LAST_FAILURE), f"{error}{hint}"
        except Exception as error:  # noqa: BLE001 - whatever it is, the server must hear of it and try again
            return 1, f"unexpected {type(error).__name__}: {error}"
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return 0, ""


def _server_users() -> set[int]:
    """PostgreSQL's account on this machine, also for a receiver that runs as another one than root."""
    try:
        return {pwd.getpwnam(os.environ.get(ACCOUNT_VARIABLE) or "postgres").pw_uid}
    except KeyError:
        return set()
