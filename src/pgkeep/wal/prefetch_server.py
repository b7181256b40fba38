"""The prefetcher's socket: who asks, what is answered. The form of both is in `pgkeep.wal.thin_fetch`."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from pgkeep.errors import TargetError
from pgkeep.wal.fetch import Answer, answer_of
from pgkeep.wal.fetch_files import FileFolder

__all__ = ["Handler", "PrefetchServer"]

_SOCKET = "socket"
_LONGEST_REQUEST = 8192
_REQUEST_SECONDS = 10.0
_PULSE_SECONDS = 5.0
"""How often who waits is told that there is work going on."""


class Handler(Protocol):
    """Does the work of one request."""

    def __call__(self, name: str, path: str, still_wanted: Callable[[], bool]) -> Answer | None:
        """The answer; None refuses the request, and who asks does it alone. ``still_wanted``: whether somebody waits."""


class PrefetchServer:
    """Listens in a folder, and answers each connection in a thread of its own; use as a context manager."""

    def __init__(self, folder: FileFolder, handler: Handler) -> None:
        self._folder = folder
        self._handler = handler
        self._lock = threading.Lock()
        self._waiting: set[_Connection] = set()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=run, name="wal-prefetch", daemon=True) for run in (self._accept, self._pulse)
        ]
        folder.remove(_SOCKET)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # by the descriptor: an address has room for 107 bytes, and a data directory's path may be longer
            self._listener.bind(f"/proc/self/fd/{folder.descriptor}/{_SOCKET}")
            os.chmod(_SOCKET, 0o600, dir_fd=folder.descriptor)
            if folder.owner is not None:
                os.chown(_SOCKET, *folder.owner, dir_fd=folder.descriptor, follow_symlinks=False)
        except OSError as error:
            self._listener.close()
            raise TargetError(f"cannot listen in {folder.path}: {error.strerror}") from None
        self._listener.listen()

    def __enter__(self) -> PrefetchServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more requests; those that wait find the connection closed, and do it alone."""
        self._folder.remove(_SOCKET)
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        with self._lock:
            left = list(self._waiting)
        for connection in left:
            connection.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                self._ended.wait(0.1)
                continue
            threading.Thread(
                target=self._serve, args=(_Connection(accepted),), name="wal-prefetch", daemon=True
            ).start()

    def _pulse(self) -> None:
        while not self._ended.wait(_PULSE_SECONDS):
            with self._lock:
                waiting = list(self._waiting)
            for connection in waiting:
                connection.say("wait")

    def _serve(self, connection: _Connection) -> None:
        try:
            request = connection.request()
            if request is None:
                return
            with self._lock:
                self._waiting.add(connection)
            try:
                answer = self._handler(*request, connection.is_open)
            except Exception as error:  # noqa: BLE001  (the answer tells it, and it is no "absent")
                answer = answer_of(error)
            with self._lock:
                self._waiting.discard(connection)
            connection.say("refused" if answer is None else f"{answer.code} {' '.join(answer.message.split())}")
        finally:
            connection.close()


class _Connection:
    """One who asks."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self._lock = threading.Lock()
        self._closed = False

    def request(self) -> tuple[str, str] | None:
        """Name and path; None for anything else."""
        received = b""
        self._socket.settimeout(_REQUEST_SECONDS)
        with contextlib.suppress(OSError):
            while received.count(b"\0") < 3 and len(received) < _LONGEST_REQUEST:
                chunk = self._socket.recv(_LONGEST_REQUEST)
                if not chunk:
                    break
                received += chunk
        words = received.split(b"\0")
        if len(words) != 4 or words[0] != b"fetch" or words[3]:
            return None
        return os.fsdecode(words[1]), os.fsdecode(words[2])

    def is_open(self) -> bool:
        """Whether the one who asks is still there."""
        with self._lock:
            if self._closed:
                return False
            poll = select.poll()
            poll.register(self._socket, select.POLLRDHUP)
            return not poll.poll(0)

    def say(self, line: str) -> None:
        """Send a line, to whoever still listens."""
        with self._lock, contextlib.suppress(OSError):
            if not self._closed:
                self._socket.sendall(os.fsencode(line) + b"\n")

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            self._closed = True
            self._socket.close()
