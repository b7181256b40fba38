"""Cold storage as Amazon's Glacier has it, simulated, since no real one can run here.

`SimulatedGlacier` is a way to a real S3 server that keeps the objects and their storage classes; what an archive adds is answered here:
GET of an archived object is refused (InvalidObjectState), POST ?restore asks for it, HEAD says how far that is (x-amz-restore). Amazon
S3 API Reference: GetObject, RestoreObject, HeadObject, CopyObject. `SimulatedClasses` is the same without a server, over any store.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from pgkeep.repository.storage_classes import ARCHIVES, HOT, ObjectState, StorageClasses
from pgkeep.repository.store import ObjectInfo
from support.fault_proxy import Fault, FaultProxy, Message

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from pgkeep.repository.store import Store

__all__ = ["SimulatedClasses", "SimulatedGlacier"]


class SimulatedClasses(StorageClasses):
    """The classes of a store's objects, which this object alone knows of; ``scheme`` is that of the service it stands for."""

    def __init__(self, store: Store, scheme: str = "s3") -> None:
        self.store = store  # type: ignore[assignment]
        self.scheme = scheme
        self.states: dict[str, ObjectState] = {}
        self.asked = 0

    def state(self, name: str) -> ObjectState:
        """See `StorageClasses.state`."""
        self.asked += 1
        info = self.store.info(name)
        return self.states.get(name, ObjectState(name, info.size, HOT[self.scheme]))

    def list(self, prefix: str, after: str | None = None) -> Iterator[ObjectInfo]:
        """See `StorageClasses.list`."""
        for info in self.store.list(prefix):
            if after is None or info.name.rpartition("/")[2] > after:
                known = self.states.get(info.name)
                yield ObjectInfo(
                    info.name, info.size, info.modified, known.storage_class if known else HOT[self.scheme]
                )

    def change(self, name: str, storage_class: str) -> None:
        """See `StorageClasses.change`."""
        self.states[name] = ObjectState(name, self.store.info(name).size, storage_class)


@dataclass
class Thaw:
    """What was asked for: an object, its tier and days, and when it can be read."""

    key: str
    tier: str
    days: int
    ready: bool = False


@dataclass
class _Archive:
    classes: dict[str, str] = field(default_factory=dict)
    thaws: dict[str, Thaw] = field(default_factory=dict)


class SimulatedGlacier(FaultProxy):
    """A way to an S3 server whose archive classes are archives. What is asked for comes when the test says `deliver`."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._archive = _Archive()
        self._state = threading.Lock()
        self.answer = self._refuse
        self.restore_requests: list[Thaw] = []
        self.silent_after: int | None = None
        """So many requests to thaw are answered, and the others wait until this is None again."""
        self.waiting = 0

    def __enter__(self) -> SimulatedGlacier:
        super().__enter__()
        return self

    def archived(self) -> set[str]:
        """Names of the objects in an archive, below the repository's prefix ``auth``."""
        with self._state:
            return {key.partition("/auth/")[2] for key, name in self._archive.classes.items() if name in ARCHIVES}

    def deliver(self, count: int | None = None) -> int:
        """So many of those that were asked for can be read from now on, all where nothing is said; returns how many."""
        with self._state:
            waiting = [thaw for thaw in self._archive.thaws.values() if not thaw.ready][:count]
            for thaw in waiting:
                thaw.ready = True
            return len(waiting)

    def _refuse(self, message: Message) -> tuple[int, str] | None:
        """Answers that a server without an archive does not give."""
        key, query = _key(message)
        if message.method == "POST" and "restore" in query:
            self._wait_for_silence()
        with self._state:
            if message.method == "POST" and "restore" in query:
                return self._restore(key, message.body.decode())
            if message.method == "GET" and not query and self._is_frozen(key):
                return 403, _error("InvalidObjectState", "The operation is not valid for the object's storage class")
            source = message.header("x-amz-copy-source")
            if message.method == "PUT" and source is not None and self._is_frozen(unquote(source)):
                return 403, _error("InvalidObjectState", "The source object of the COPY is in an archive")
        return None

    def _wait_for_silence(self) -> None:
        with self._state:
            is_silent = self.silent_after == 0
            if self.silent_after:
                self.silent_after -= 1
            self.waiting += is_silent
        if is_silent:
            while self.silent_after is not None and not self._stopped.wait(0.02):
                pass
            raise ConnectionResetError

    def _restore(self, key: str, body: str) -> tuple[int, str]:
        if self._archive.classes.get(key) not in ARCHIVES:
            return 403, _error("InvalidObjectState", "Restore is not allowed for the object's current storage class")
        there = self._archive.thaws.get(key)
        if there is not None and not there.ready:
            return 409, _error("RestoreAlreadyInProgress", "Object restore is already in progress")
        tier, days = re.search("<Tier>(.+)</Tier>", body), re.search("<Days>(.+)</Days>", body)
        assert tier is not None
        assert days is not None
        thaw = Thaw(key, tier[1], int(days[1]), ready=there is not None)
        self._archive.thaws[key] = thaw
        self.restore_requests.append(thaw)
        return 202 if there is None else 200, ""

    def _is_frozen(self, key: str) -> bool:
        thaw = self._archive.thaws.get(key)
        return self._archive.classes.get(key) in ARCHIVES and not (thaw is not None and thaw.ready)

    def _give(self, client: socket.socket, answer: Message, request: Message, fault: Fault) -> bool:
        key, query = _key(request)
        succeeded = answer.start.split(" ")[1].startswith("2")
        with self._state:
            if request.method == "PUT" and not query and succeeded:
                self._archive.thaws.pop(key, None)
                self._archive.classes[key] = request.header("x-amz-storage-class") or "STANDARD"
            elif request.method == "DELETE" and succeeded:
                self._archive.classes.pop(key, None)
            elif request.method in {"HEAD", "GET"} and (thaw := self._archive.thaws.get(key)) is not None:
                until = format_datetime(datetime.now(UTC) + timedelta(days=thaw.days), usegmt=True)
                said = f'ongoing-request="false", expiry-date="{until}"' if thaw.ready else 'ongoing-request="true"'
                answer.headers.append(("x-amz-restore", said))
        return super()._give(client, answer, request, fault)


def _key(message: Message) -> tuple[str, dict[str, str]]:
    """Bucket and key as in a path, and what of the query is no signature."""
    parts = urlsplit(message.path)
    query = {
        name: value
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not name.lower().startswith("x-amz-") and name != "x-id"
    }
    return unquote(parts.path), query


def _error(code: str, text: str) -> str:
    return f"<Error><Code>{code}</Code><Message>{text}</Message></Error>"
