"""What a restore in place has done so far, kept beside the data directory, so that it can go on or be undone after any end.

``<data directory>.pgkeep-in-place.json``: one JSON object, replaced as a whole and fsynced before each step that it announces.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import msgspec

from pgkeep.errors import BusyError, TargetError
from pgkeep.postgres.account import give_to
from pgkeep.postgres.running import owner_of

__all__ = ["Journal", "Move", "State", "TablespaceLink", "exclusive", "sync_directory"]

State = Literal["stopping", "moving", "moved", "written", "recovered", "ready", "done", "putting back"]
"""stopping: nothing is moved yet · moving: some may be · moved: the old data is aside, a new directory is being made ·
written: all files are there, recovery may have begun · recovered: what is left is rows to carry and hooks · ready: the
operator's server may be started · done: it runs · putting back: the old data comes back, step by step."""

_SUFFIX = ".pgkeep-in-place.json"


class Move(msgspec.Struct, frozen=True):
    """A directory and where it was moved to: the data directory's own comes first, then its tablespaces'."""

    place: str
    aside: str


class TablespaceLink(msgspec.Struct, frozen=True):
    """A link in ``pg_tblspc`` of the old data directory, and what it held."""

    oid: int
    place: str


class Journal(msgspec.Struct, kw_only=True):
    """One restore in place. Paths are absolute; ``started`` is ISO 8601 in UTC; ``stamp`` is the time in the names of copies.

    ``options`` and ``log_file`` are what the old server was started with, ``replaced`` where earlier attempts of this run and
    the safety copies of earlier runs lie. ``request`` is what was asked for. What recovery reached: ``lsn`` along
    ``path_timeline``; the server is on ``timeline`` since.
    """

    version: int = 1
    cluster: str
    system_identifier: int
    major: int
    data_directory: str
    started: str
    stamp: str
    state: State
    was_running: bool
    options: list[str]
    log_file: str
    unit: str | None = None
    request: dict[str, Any]
    moves: list[Move] = []
    links: list[TablespaceLink] = []
    backup: str | None = None
    path_timeline: int = 0
    timeline: int = 0
    lsn: str = ""
    tablespaces: dict[str, int] = {}
    hooks_done: list[str] = []
    carried: list[str] = []
    carry_directory: str | None = None
    earlier_copies: list[str] = []
    failed_attempts: list[str] = []

    @property
    def place(self) -> Path:
        """Where it is kept."""
        return journal_of(Path(self.data_directory))

    @property
    def has_copy(self) -> bool:
        """Whether there is a safety copy: an empty or missing data directory leaves none."""
        return bool(self.moves)

    def enter(self, state: State) -> None:
        """Announce what is done from now on; it is on disk when this returns."""
        self.state = state
        self.save()

    def save(self) -> None:
        """Write it. Raises TargetError."""
        new = self.place.with_name(self.place.name + ".new")
        try:
            with new.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if os.geteuid() == 0:
                for known in (self.data_directory, *(move.aside for move in self.moves)):
                    if (owner := owner_of(Path(known))) is not None:
                        give_to(owner, new)
                        break
            new.rename(self.place)
            sync_directory(self.place.parent)
        except OSError as error:
            raise TargetError(
                f"the journal {self.place} cannot be written: {error.strerror}",
                hint=f"see room and rights there: df -h {self.place.parent}; ls -ld {self.place.parent}",
            ) from error

    def remove(self) -> None:
        """Forget it: there is nothing to go on with, and nothing to undo."""
        self.place.unlink(missing_ok=True)
        sync_directory(self.place.parent)

    @staticmethod
    def read(data_directory: Path) -> Journal | None:
        """The journal beside a data directory; None where there is none. Raises TargetError where it cannot be read."""
        place = journal_of(data_directory)
        try:
            return msgspec.json.decode(place.read_bytes(), type=Journal)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise TargetError(
                f"{place} cannot be read: {error}",
                hint="it tells where the old data lies; look at it, and at what is beside it, before you remove it",
            ) from None


def journal_of(data_directory: Path) -> Path:
    """Where the journal of a data directory is."""
    return data_directory.with_name(data_directory.name + _SUFFIX)


@contextmanager
def exclusive(data_directory: Path) -> Iterator[None]:
    """Only one at a time may restore in place or undo it. Raises BusyError.

    A name in Linux's abstract socket namespace: it goes with the process, and leaves nothing behind.
    """
    name = sha256(os.fsencode(data_directory)).hexdigest()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as lock:
        try:
            lock.bind(f"\0pgkeep-in-place-{name}")
        except OSError:
            raise BusyError(
                f"another pgkeep restores {data_directory} in place, or undoes that", hint="wait until it ends"
            ) from None
        yield


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
