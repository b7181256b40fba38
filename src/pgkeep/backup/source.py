"""A source of pages: what the job asks of the replication protocol and of a data directory alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from pgkeep.errors import DamageError, ServerError
from pgkeep.receiver.frames import Started
from pgkeep.repository.manifests import DamagedPage, Manifest

if TYPE_CHECKING:
    from pgkeep.backup.assembler import CellCheck, FileAssembler
    from pgkeep.backup.changes import Changes
    from pgkeep.postgres.timeline import TimelineHistory

__all__ = ["ChangesUnknown", "HowRead", "ParentUnreadable", "Received", "Source", "TruncatedMeanwhile"]


class ChangesUnknown(ServerError):
    """Nobody can tell what changed since the parent; the message says why. Everything must be read."""


class TruncatedMeanwhile(ChangesUnknown):
    """Asked a moment later, it would be known what changed."""


class ParentUnreadable(DamageError):
    """Something that the parent consists of is gone or damaged: nothing can be built on it."""


@dataclass(frozen=True, slots=True)
class HowRead:
    """Whether only changes are taken (``incremental``), and the ``reasons`` why more is read than that."""

    incremental: bool
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Received:
    """What makes a copy of a running cluster a backup: two small files, and where its WAL must reach.

    ``size`` is how many bytes were read of the cluster's files.
    """

    backup_label: bytes = b""
    tablespace_map: bytes = b""
    stop_lsn: int = 0
    size: int = 0


class Source(Protocol):
    """Where pages come from; a context manager, and leaving it before `read` has ended ends the backup on the server.

    ``mode`` is what the manifest says of it. ``cell_check``, where it is not None, looks at all that is stored.
    """

    mode: str
    cell_check: CellCheck | None

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def begin(self) -> Started:
        """Begin; the server's checkpoint is done. Raises ServerError, ChangesUnknown."""

    def find_changes(self, parent: Manifest | None, history: TimelineHistory, *, explained: bool) -> HowRead:
        """Find out what changed since the parent; called once WAL is being collected. Raises ServerError, ChangesUnknown."""

    def read(
        self,
        assembler: FileAssembler,
        changes: Changes | None,
        check: Callable[[], None],
        *,
        number: int,
        deep_check: float,
    ) -> Received:
        """Give every file to the assembler, and drain it.

        ``check`` is called often, and raises what should end the backup early. Raises ServerError, DamageError.
        """

    def damaged(self) -> list[DamagedPage]:
        """Pages that were read now and whose checksum is wrong; after `read`."""
