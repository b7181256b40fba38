"""What a store can do, found out by doing it: once, when a repository is created in a bucket.

Below ``tmp/probe-…`` objects are created, raced for, replaced, listed, put into storage classes and deleted. What stays, because
these credentials may not delete or because the bucket locks what is new, holds a few bytes and is never looked at again.
"""

from __future__ import annotations

import contextlib
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.message import Message
from typing import Any

from pgkeep.errors import StoreError
from pgkeep.findings import Finding
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.object_store_client import Refused, Request
from pgkeep.repository.object_store_errors import Kind
from pgkeep.repository.store import Capabilities, Store
from pgkeep.units import utc_now

__all__ = ["describe", "probe"]

_RACERS, _RACES, _AT_ONCE = 3, 3, 8

_OUT_OF_TREE_ORDER = ("a-b", "a.b", "a/b", "a/c.d", "a/c/d", "a0", "b")
"""Names in order, where folders before their neighbours would be another one: ``-`` and ``.`` sort before ``/``."""

_CLASSES = {
    "s3": ("STANDARD_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"),
    "gs": ("NEARLINE", "COLDLINE", "ARCHIVE"),
    "az": ("Cool", "Cold", "Archive"),
}

_LARGEST_CLOCK_DIFFERENCE = 60
"""Seconds: leases live for minutes, and S3 refuses requests from a clock that is 15 minutes wrong."""

_ANY = frozenset({Kind.EXISTS, Kind.FINAL, Kind.MISSING, Kind.ARCHIVED})


def probe(store: Store) -> Capabilities | None:
    """Try out what is not the same everywhere; None for a directory, where nothing is in question.

    Raises StoreError where the store cannot be written and read at all.
    """
    if not isinstance(store, ObjectStore):
        return None
    return _Probe(store).run()


class _Probe:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._folder = f"tmp/probe-{secrets.token_hex(8)}/"
        self._made: list[str] = []

    def run(self) -> Capabilities:
        first = self._folder + "first"
        before = utc_now()
        self._made.append(first)
        self._store.put(first, [b"first"])
        after = utc_now()
        try:
            if self._store.get(first) != b"first":
                raise StoreError(
                    f"{self._store.url} gives back other bytes than it was given",
                    hint="no repository can be kept there: ask the service's operator",
                )
            # before it is replaced below
            ahead, headers = _ahead(self._store.info(first).modified, before, after), self._headers(first)
            return Capabilities(
                conditional_put=self._creates_once(),
                sorted_listing=self._lists_in_order(),
                protects_objects=self._refuses_to_replace(first),
                keeps_versions="x-amz-version-id" in headers,
                lock_mode=headers.get("x-amz-object-lock-mode"),
                lock_seconds=_lock_seconds(headers),
                storage_classes=self._storage_classes(),
                clock_difference=ahead,
                denies_deletion=not self._deletes(first),
            )
        finally:
            with ThreadPoolExecutor(_AT_ONCE) as executor:
                list(executor.map(self._deletes, self._made))

    def _creates_once(self) -> bool:
        """Whether of writers that race for one name exactly one wins, each time."""
        for race in range(_RACES):
            name = f"{self._folder}race-{race}"
            self._made.append(name)
            barrier = threading.Barrier(_RACERS)

            def write(racer: int, name: str = name, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return self._put(name, b"racer %d" % racer, mode="create") is None

            with ThreadPoolExecutor(_RACERS) as executor:
                if sum(executor.map(write, range(_RACERS))) != 1:
                    return False
        return True

    def _lists_in_order(self) -> bool:
        import obstore

        folder = f"{self._folder}order/"
        names = [folder + name for name in _OUT_OF_TREE_ORDER]
        self._made += names
        with ThreadPoolExecutor(_AT_ONCE) as executor:
            list(executor.map(self._put_new, names))
        clients = self._store.clients
        found = clients.call(
            "list", folder, lambda _request: [m["path"] for m in obstore.list(clients.small, folder).collect()]
        )
        if sorted(found) != names:
            raise StoreError(
                f"{self._store.url} does not list all that was just written to it",
                hint="no repository can be kept there: listings must be complete at once",
            )
        return found == names

    def _refuses_to_replace(self, name: str) -> bool:
        """Whether a put without a condition is refused, which only a policy of the bucket's owner does."""
        return self._put(name, b"first", mode="overwrite") is not None

    def _deletes(self, name: str) -> bool:
        try:
            self._store.delete(name)
        except StoreError:
            return False
        return True

    def _storage_classes(self) -> tuple[str, ...]:
        """Those that it takes, and, where that can be seen, that an object has then."""

        def takes(storage_class: str) -> bool:
            name = f"{self._folder}class-{storage_class.lower()}"
            self._made.append(name)
            if self._put_new(name, attributes={"Storage-Class": storage_class}) is not None:
                return False
            return self._headers(name).get("x-amz-storage-class", storage_class) == storage_class

        classes = _CLASSES[self._store.address.scheme]
        with ThreadPoolExecutor(_AT_ONCE) as executor:
            return tuple(name for name, taken in zip(classes, executor.map(takes, classes), strict=True) if taken)

    def _put_new(self, name: str, **options: Any) -> Refused | None:
        """Put an object where there is none. Policies demand the condition, and some services do not know it."""
        if self._put(name, b"x", mode="create", **options) is None:
            return None
        return self._put(name, b"x", mode="overwrite", **options)

    def _put(self, name: str, data: bytes, **options: Any) -> Refused | None:
        """Put it, or say why it was refused; a put that needed a second try counts as done where the object is ours."""
        clients = self._store.clients

        def write(_request: Request) -> None:
            import obstore

            obstore.put(clients.small, name, data, use_multipart=False, **options)

        try:
            clients.call("write", name, write, final=_ANY)
        except Refused as refusal:
            if refusal.request.uncertain and refusal.failure.kind is Kind.EXISTS and self._store.get(name) == data:
                return None
            return refusal
        return None

    def _headers(self, name: str) -> Message:
        """The headers of an answer, which obstore keeps to itself; of S3 alone, and empty where they cannot be had."""
        import obstore
        from obstore.store import S3Store

        client = self._store.clients.small
        if not isinstance(client, S3Store):
            return Message()
        certificates = self._store.address.options.get("ca_file")
        context = ssl.create_default_context()
        if certificates is not None:
            context.load_verify_locations(certificates)

        def ask(_request: Request) -> Message:
            url = obstore.sign(client, "HEAD", name, timedelta(minutes=5))
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http and https alone are taken
            try:
                with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                    headers: Message = answer.headers
                    return headers
            except urllib.error.HTTPError as error:
                if error.code >= 500:
                    raise ConnectionError(str(error)) from None
                return Message()
            except OSError as error:
                raise ConnectionError(str(error)) from None

        return self._store.clients.call("read", name, ask)


def _ahead(modified: datetime, before: datetime, after: datetime) -> int:
    """Seconds that a clock is ahead, at the least, which gives ``modified`` in whole seconds for something between two moments."""
    too_late, too_early = (modified - after).total_seconds() - 1, (modified - before).total_seconds() + 1
    return round(max(too_late, 0) + min(too_early, 0))


def _lock_seconds(headers: Message) -> int | None:
    until = headers.get("x-amz-object-lock-retain-until-date")
    if until is None:
        return None
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(until)
        return max(round(((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - utc_now()).total_seconds()), 0)
    return None


def describe(name: str, capabilities: Capabilities) -> list[Finding]:
    """What a person should know of it; what is weaker than it could be is a warning."""
    findings = []
    if capabilities.conditional_put:
        findings.append(Finding(name, "ok", "creates an object only where there is none"))
    else:
        findings.append(
            Finding(
                name,
                "warning",
                "replaces objects, whatever the condition (If-None-Match): pgkeep looks before it writes, and only its leases"
                " keep two writers apart",
                "let one machine alone write to this repository, or use a service with conditional writes",
            )
        )
    if capabilities.lock_mode is not None:
        days = (capabilities.lock_seconds or 0) / 86400
        findings.append(Finding(name, "ok", f"locks new objects for {days:.0f} days ({capabilities.lock_mode})"))
    elif capabilities.protects_objects and capabilities.denies_deletion:
        findings.append(Finding(name, "ok", "these credentials can neither replace nor delete an object"))
    else:
        able = " and ".join(
            verb
            for verb, denied in (
                ("replace", capabilities.protects_objects),
                ("delete", capabilities.denies_deletion),
            )
            if not denied
        )
        findings.append(Finding(name, "ok", f"no object lock: these credentials can {able} objects"))
    if not capabilities.sorted_listing:
        findings.append(Finding(name, "ok", "lists objects out of order: pgkeep lists folder by folder"))
    if capabilities.storage_classes:
        findings.append(Finding(name, "ok", f"storage classes {', '.join(capabilities.storage_classes)}"))
    if abs(capabilities.clock_difference) > _LARGEST_CLOCK_DIFFERENCE:
        findings.append(
            Finding(
                name,
                "warning",
                f"its clock and this machine's are {abs(capabilities.clock_difference)} s apart",
                "run an NTP client on this machine",
            )
        )
    return findings
