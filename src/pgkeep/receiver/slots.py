"""The child's side of the shared memory."""

from __future__ import annotations

import mmap
import socket
import sys

from pgkeep.receiver.frames import SLOT

__all__ = ["Slots"]


class Slots:
    """Hands out free slots of the shared memory, and waits for one to come back."""

    def __init__(self, memory: int, channel: socket.socket, *, cell_size: int, slots: int) -> None:
        self.cell_size = cell_size
        self._view = memoryview(mmap.mmap(memory, slots * cell_size))
        self._channel = channel
        self._free = list(range(slots))

    def take(self) -> int:
        """A free slot. Ends the process where the parent is gone."""
        if not self._free:
            message = self._channel.recv(SLOT.size)
            if not message:
                sys.exit(1)
            self._free.append(SLOT.unpack(message)[0])
        return self._free.pop()

    def room(self, slot: int) -> memoryview:
        """The memory of a slot."""
        return self._view[slot * self.cell_size : (slot + 1) * self.cell_size]
