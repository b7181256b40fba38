"""The parent's side of the receiver: starts it, takes its frames, gives its slots back."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import msgspec

from pgkeep.errors import PgkeepError, ServerError
from pgkeep.receiver.frames import LONGEST_FRAME, SLOT, UPLOAD_END, Failed, Finished, Frame, ReceiverOrder, decode_frame

__all__ = ["Receiver"]


class Receiver:
    """Use as a context manager, then `begin`; `frames` gives the backup, `load` a slot's bytes."""

    def __init__(self, *, cell_size: int, slots: int) -> None:
        """``slots`` cells of ``cell_size`` bytes lie between the receiver and us."""
        self._cell_size = cell_size
        self._slots = slots

    def __enter__(self) -> Self:
        self._memory = os.memfd_create("pgkeep-cells", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, self._slots * self._cell_size)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "pgkeep.receiver.child", str(self._memory), str(theirs.fileno())]
        with theirs:
            # the order goes through the socket: a DSN may hold a password, and everybody sees command lines
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._memory, theirs.fileno()),
            )
        return self

    def begin(self, order: ReceiverOrder, manifest: Iterable[bytes] = ()) -> None:
        """Start the backup; ``manifest`` is what an incremental one uploads first, in pieces of some 32 KiB."""
        self._socket.send(msgspec.msgpack.encode(order))
        if not order.incremental:
            return
        # where the child fails meanwhile, `frames` tells why
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in manifest:
                for start in range(0, len(piece), LONGEST_FRAME):
                    self._socket.send(piece[start : start + LONGEST_FRAME])
            self._socket.send(UPLOAD_END)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        if error is not None:
            self._process.terminate()
        self._process.wait()
        os.close(self._memory)

    def frames(self) -> Iterator[Frame]:
        """What comes, up to Finished. Raises what the child raised, and ServerError where it died."""
        while True:
            data = self._socket.recv(LONGEST_FRAME)
            if not data:
                code = self._process.wait()
                raise ServerError(f"the process that receives the base backup died (exit code {code})")
            frame = decode_frame(data)
            if isinstance(frame, Failed):
                raised: PgkeepError = pickle.loads(frame.error)  # noqa: S301 - written by our own child
                raise raised
            yield frame
            if isinstance(frame, Finished):
                return

    def peek(self, slot: int, size: int) -> bytes:
        """The bytes in a slot, which stays taken."""
        # pread copies without Python's lock, unlike a slice of mapped memory
        return os.pread(self._memory, size, slot * self._cell_size)

    def load(self, slot: int, size: int) -> bytes:
        """The bytes in a slot, which is free again afterwards; for any thread."""
        data = self.peek(slot, size)
        self._socket.send(SLOT.pack(slot))
        return data
