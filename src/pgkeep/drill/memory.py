"""The records of drills in a repository, and the backups that they have proven.

A record is a sealed object ``clusters/<system identifier>/drills/<id>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.drill.record import DrillRecord, decode_record, encode_record
from pgkeep.errors import DamageError, KeyFailure, PgkeepError
from pgkeep.repository import Repository
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed

__all__ = ["DrillMemory", "Proven", "proven_backups", "read_drills", "read_everywhere", "remember"]

_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Proven:
    """That a backup came back: by which drill, when, and to which target."""

    drill: str
    time: datetime
    target: str


@dataclass(frozen=True)
class DrillMemory:
    """What drills have left in a repository, oldest first; ``damaged`` are the names of records that cannot be read."""

    records: list[DrillRecord] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def proven(self) -> dict[str, Proven]:
        """The backups that a drill has proven, by id; each with the newest such drill."""
        return {
            record.backup: Proven(record.id, record.ended, _target(record))
            for record in self.records
            if record.passed and record.backup
        }


def remember(repository: Repository, record: DrillRecord) -> str:
    """Seal a record in the repository; returns the object's name. Raises StoreError."""
    name = f"{_prefix(record.system_identifier)}{record.id}"
    write_sealed(repository.store, repository.keys, name, ObjectType.DRILL, encode_record(record))
    return name


def read_drills(
    repository: Repository, cluster: str | None = None, note: Callable[[str], None] | None = None
) -> DrillMemory:
    """The drills of a cluster, or of all. ``note`` is told of each record that is damaged: it counts for nothing. Raises StoreError."""

    def read(name: str) -> DrillRecord | DamageError:
        try:
            return decode_record(read_sealed(repository.store, repository.keys, name, ObjectType.DRILL), name)
        except DamageError as error:
            return error

    memory = DrillMemory()
    names = [
        info.name
        for system_identifier in repository.clusters()
        for info in repository.store.list(_prefix(system_identifier))
    ]
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="drills") as executor:
        for name, record in zip(names, executor.map(read, names), strict=True):
            if isinstance(record, DamageError):
                memory.damaged.append(name)
                if note is not None:
                    note(f"a drill's record counts for nothing: {record}")
            elif cluster in {None, record.cluster}:
                memory.records.append(record)
    memory.records.sort(key=lambda record: record.id)
    return memory


def read_everywhere(openers: Iterable[Callable[[], Repository]], cluster: str | None) -> list[DrillRecord]:
    """The drills of a cluster in all repositories that can be opened, oldest first. Raises what the first did where none can."""
    found: dict[str, DrillRecord] = {}
    failures: list[PgkeepError] = []
    answered = False
    for open_it in openers:
        try:
            records = read_drills(open_it(), cluster).records
        except PgkeepError as error:
            failures.append(error)
            continue
        answered = True
        found.update({record.id: record for record in records})
    if failures and not answered:
        raise failures[0]
    return [found[drill] for drill in sorted(found)]


def proven_backups(repository: Repository) -> dict[str, Proven]:
    """By id; none where the key only adds, which cannot look into records. Raises StoreError."""
    try:
        return read_drills(repository).proven
    except KeyFailure:
        return {}


def _prefix(system_identifier: int) -> str:
    return f"clusters/{system_identifier}/drills/"


def _target(record: DrillRecord) -> str:
    target = record.target
    if target is None:
        return ""
    return f"{target.kind} {target.value}".strip()
