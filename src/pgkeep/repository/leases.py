"""Leases: a writer's time-limited claim on a resource, so that two jobs do not do the same work at once.

A lease is a record ``leases/<UTC time>-<random>.<renewal>``. To take one, a writer creates its own and then looks: it
holds the resource once it sees no other live lease on it. Both of two racing writers create before they look, so at
least one of them sees the other, and never do both hold. The one that sorts first waits a moment for the other to give
way, so that one of them does hold. A lease is dead when its time is over, or when its process on this machine is gone.

Credentials that may add and not delete cannot remove a lease. Then a record ``leases/<UTC time>-<random>.ended`` ends it: whoever let it
go writes that, or whoever found it dead. What has ended is passed over, and removed by the next one who can.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from pgkeep.errors import BusyError, DamageError, PgkeepError, StoreError
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import ObjectExists, ObjectInfo, ObjectMissing, Store
from pgkeep.units import format_time, utc_now

__all__ = ["Lease", "living", "oldest_lease", "running"]

_LIFETIME = timedelta(minutes=5)
"""How long a lease holds without renewal: a writer on another machine is given up for dead after it."""

_SETTLING = 5.0
"""Seconds that a writer waits for one which sorts behind it: that one gives way at once, unless it holds already."""

_ENDED = ".ended"


class Lease:
    """A claim on ``resource``, renewed in the background while held; use as a context manager.

    ``took_over`` is true when a dead writer's lease was found and ended: it may have left packs that no index covers.
    Raises BusyError, naming who holds it, where another live writer does.
    """

    def __init__(self, store: Store, resource: str) -> None:
        self._store = store
        self._resource = resource
        self._id = f"{utc_now():%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(4)}"
        self._names: list[str] = []
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.took_over = False

    @property
    def name(self) -> str:
        """The object that holds it, while it is held; a renewal gives it another one."""
        return self._names[-1]

    def __enter__(self) -> Lease:
        try:
            self._write()
            self._give_way()
        except BaseException:
            with contextlib.suppress(PgkeepError):
                # what went wrong first tells more
                self._delete(self._names)
            raise
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewer.join()
        with contextlib.suppress(PgkeepError):
            # a store that fails now keeps a lease that dies by itself
            self._delete(self._names)

    def _delete(self, names: list[str]) -> None:
        """Let it go: for good where these credentials cannot delete."""
        try:
            for name in names:
                self._store.delete(name)
        except StoreError:
            _end(self._store, _id_of(names[-1]))

    def _write(self) -> None:
        # kept before it is written: a store that fails may have created it all the same
        self._names.append(f"leases/{self._id}.{int(self._names[-1].rpartition('.')[2]) + 1 if self._names else 0}")
        fields = {
            "resource": self._resource,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "writer": self._store.writer,
            "expires": (utc_now() + _LIFETIME).isoformat(),
        }
        write_record(self._store, self._names[-1], fields)

    def _give_way(self) -> None:
        patience = time.monotonic() + _SETTLING
        while (other := self._live_other()) is not None:
            name, fields = other
            if name < self._names[0] or time.monotonic() > patience:
                raise BusyError(
                    f"another job holds {self._resource}: process {fields['pid']} on {fields['host']}",
                    hint="wait for it to end, or stop it; a job that died is passed over by itself, on this machine at"
                    f" once, from another after {format_time(datetime.fromisoformat(str(fields['expires'])))}",
                )
            time.sleep(0.02)

    def _live_other(self) -> tuple[str, dict[str, object]] | None:
        """The first live lease on the resource that is not this one; dead leases on any resource are removed."""
        # twice: a listing taken while a lease is renewed may show neither the old record nor the new one
        for _ in range(2):
            newest, over = _standing(self._store)
            _remove(self._store, over)
            for info in newest:
                if info.name in self._names:
                    continue
                try:
                    fields = read_record(self._store, info.name)
                except ObjectMissing:
                    continue
                except DamageError:
                    if utc_now() - info.modified > _LIFETIME:
                        self._end_other(info.name)
                    continue
                if not _is_alive(fields):
                    self._end_other(info.name)
                    self._store.discard_leftovers(str(fields["writer"]))
                    self.took_over = True
                elif fields["resource"] == self._resource:
                    return info.name, fields
        return None

    def _end_other(self, name: str) -> None:
        if not _remove(self._store, [name]):
            _end(self._store, _id_of(name))

    def _renew(self) -> None:
        while not self._stop.wait(_LIFETIME.total_seconds() / 5):
            with contextlib.suppress(PgkeepError):
                # four more tries before the lease runs out
                self._write()
                for name in self._names[:-1]:
                    self._store.delete(name)
                del self._names[:-1]


def oldest_lease(store: Store, *, besides: Collection[str] = ()) -> datetime | None:
    """When the job began, by its own clock, that has held a lease for longest; None where none is held.

    ``besides`` are names of leases that do not count. Raises StoreError.
    """
    others = {_id_of(name) for name in besides}
    oldest: datetime | None = None
    # twice, as in `Lease`
    for info in [*_standing(store)[0], *_standing(store)[0]]:
        try:
            if _id_of(info.name) in others or not _is_alive(read_record(store, info.name)):
                continue
            begun = datetime.strptime(_id_of(info.name)[:21], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
        except (ObjectMissing, DamageError, KeyError, ValueError):
            continue
        oldest = begun if oldest is None else min(oldest, begun)
    return oldest


def living(store: Store, *, besides: Lease | None = None) -> set[str]:
    """The ids of all leases that are alive. Raises StoreError."""
    found = set()
    for _ in range(2):
        for info in _standing(store)[0]:
            with contextlib.suppress(ObjectMissing, DamageError):
                if _is_alive(read_record(store, info.name)):
                    found.add(_id_of(info.name))
    return found if besides is None else found - {_id_of(besides.name)}


def running(store: Store) -> list[str]:
    """The resources that live leases are on, sorted. Raises StoreError."""
    resources = set()
    for _ in range(2):
        for info in _standing(store)[0]:
            with contextlib.suppress(ObjectMissing, DamageError):
                fields = read_record(store, info.name)
                if _is_alive(fields):
                    resources.add(str(fields["resource"]))
    return sorted(resources)


def _standing(store: Store) -> tuple[list[ObjectInfo], list[str]]:
    """Of each lease that has not ended the newest record, by name, and the names of all records that say nothing any more."""
    infos = {info.name: info for info in store.list("leases/")}
    ended = {_id_of(name) for name in infos if name.endswith(_ENDED)}
    newest: dict[str, ObjectInfo] = {}
    over = []
    for name, info in infos.items():
        lease = _id_of(name)
        if lease in ended:
            over.append(name)
        elif lease not in newest or _renewal(newest[lease].name) < _renewal(name):
            newest[lease] = info
    # what is taken away first must not let an ended lease live again
    over.sort(key=lambda name: name.endswith(_ENDED))
    return [newest[lease] for lease in sorted(newest)], over


def _id_of(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _renewal(name: str) -> int:
    number = name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _end(store: Store, lease: str) -> None:
    with contextlib.suppress(ObjectExists):
        write_record(store, f"leases/{lease}{_ENDED}", {"ended": utc_now().isoformat()})


def _remove(store: Store, names: list[str]) -> bool:
    """Delete records; False where these credentials cannot."""
    try:
        for name in names:
            store.delete(name)
    except StoreError:
        return False
    return True


def _is_alive(fields: dict[str, object]) -> bool:
    if utc_now() > datetime.fromisoformat(str(fields["expires"])):
        return False
    if fields["boot"] != _boot_id():
        return True
    pid = int(str(fields["pid"]))
    start = _process_start(pid)
    return start == fields["process_start"] if start is not None else _is_running(pid)


def _boot_id() -> str:
    """Names this start of this machine, and the process ids that mean the same here: containers share the machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown-{socket.gethostname()}"


def _is_running(pid: int) -> bool:
    """Whether there is such a process; /proc may hide those of other users (proc(5), hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process (proc(5), stat, field 22), or None where none is seen.

    0 for a process that has ended and that its parent has not asked for yet.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])
