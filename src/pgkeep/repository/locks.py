"""Object lock: objects that nobody can delete before a moment, whoever's credentials he has (Amazon S3, "Locking objects").

New objects are locked as they are written. What later backups share with earlier ones must stay as long as those need it, so that locks
are made longer, never shorter: by `extend`, which any writer may do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pgkeep.errors import ConfigError
from pgkeep.progress import Progress
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_client import Clients, Refused
from pgkeep.repository.object_store_errors import Kind
from pgkeep.repository.s3_requests import S3Requests
from pgkeep.repository.storage_classes import ObjectState, StorageClasses
from pgkeep.repository.store import Buffer, ObjectMissing
from pgkeep.units import utc_now

__all__ = ["Extended", "LockedPuts", "extend", "format_moment"]

_AT_ONCE = 16

_SPARE = 8
"""A lock is made longer by an eighth of its time more than needed, so that daily backups do not touch every object every day."""

_MISSING = frozenset({Kind.MISSING})


def format_moment(moment: datetime) -> str:
    """As S3 writes it, in whole seconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class LockedPuts:
    """Puts of objects that are locked from the first moment on; safe for threads."""

    def __init__(self, address: ObjectAddress, clients: Clients) -> None:
        assert address.lock is not None
        self._mode, self._time = address.lock
        self._requests = S3Requests(address, clients)

    def put(self, name: str, payload: Sequence[Buffer], *, conditional: bool, storage_class: str | None) -> None:
        """One try. Raises FileExistsError where there is such an object, and others that `read_failure` understands."""
        headers = {
            "x-amz-object-lock-mode": self._mode,
            "x-amz-object-lock-retain-until-date": format_moment(utc_now() + self._time),
        }
        if conditional:
            headers["if-none-match"] = "*"
        if storage_class is not None:
            headers["x-amz-storage-class"] = storage_class
        self._requests.put(name, payload, headers)


@dataclass
class Extended:
    """Of ``seen`` objects ``extended`` were locked for longer; ``missing`` are not there."""

    seen: int = 0
    extended: int = 0
    missing: list[str] = field(default_factory=list)
    until: datetime | None = None


def extend(
    classes: StorageClasses, names: Collection[str], until: datetime, progress: Progress, *, dry_run: bool = False
) -> Extended:
    """See that these objects are locked until a moment at least. Raises ConfigError without a lock in the address, StoreError."""
    lock = classes.store.address.lock
    if lock is None:
        raise ConfigError(
            f"{classes.store.url} locks nothing", hint='lock = "compliance" and lock_for = "14d" in its configuration'
        )
    mode, time = lock
    result = Extended(until=until)
    progress.phase("looking at locks", len(names))

    def work(name: str) -> tuple[str, bool | None]:
        try:
            state = classes.state(name)
            if not _is_short(state, until):
                return name, False
            if not dry_run:
                retain(classes, state, mode, until + time / _SPARE)
        except ObjectMissing:
            return name, None
        return name, True

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lock") as executor:
        for name, changed in executor.map(work, names):
            progress.advance(1)
            result.seen += 1
            if changed is None:
                result.missing.append(name)
            elif changed:
                result.extended += 1
    return result


def retain(classes: StorageClasses, state: ObjectState, mode: str, until: datetime) -> None:
    """Lock the version that is there. A stronger mode stays. Raises ObjectMissing, StoreError."""
    mode = "COMPLIANCE" if state.lock_mode == "COMPLIANCE" else mode
    body = (
        '<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Mode>{mode}</Mode><RetainUntilDate>{format_moment(until)}</RetainUntilDate></Retention>"
    ).encode()
    query = {"retention": ""} | ({"versionId": state.version} if state.version else {})
    try:
        classes.requests.send("lock", "PUT", state.name, query=query, body=[body], final=_MISSING, checked=True)
    except Refused:
        raise ObjectMissing(f"{state.name} is not in {classes.store.url}") from None


def _is_short(state: ObjectState, until: datetime) -> bool:
    return state.locked_until is None or state.locked_until < until.replace(microsecond=0)
