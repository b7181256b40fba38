"""Storage classes of objects: which they have, how they are changed, and how what lies in an archive is thawed.

Amazon S3 API Reference: HeadObject, CopyObject, RestoreObject, ListObjectsV2. Azure: "Set Blob Tier", asked for by way of a signed address
(SAS), which binds neither headers nor the query. Google: an object is written again, on condition that it is still the same one; all of
its classes can be read at once.
"""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cached_property

from pgkeep.errors import StoreError
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.object_store_client import Refused, Request
from pgkeep.repository.object_store_errors import Kind
from pgkeep.repository.s3_requests import S3Requests
from pgkeep.repository.store import ObjectArchived, ObjectInfo, ObjectMissing, Store

__all__ = ["ARCHIVES", "HOT", "ObjectState", "StorageClasses", "storage_classes"]

ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE", "Archive"})
"""Classes whose objects must be thawed before they can be read."""

HOT = {"s3": "STANDARD", "gs": "STANDARD", "az": "Hot"}
"""What an object has of which a service says nothing."""

_PAGE = 1000

_MISSING = frozenset({Kind.MISSING})
_FINAL = frozenset({Kind.FINAL, Kind.MISSING})


@dataclass(frozen=True, slots=True)
class ObjectState:
    """An object as it is now. ``thawing``: it was asked for and is not there yet. ``thawed_until``: it can be read so long.

    ``lock_mode`` and ``locked_until``: nobody can delete this version before. ``version`` is its id where the bucket keeps versions.
    """

    name: str
    size: int
    storage_class: str
    thawing: bool = False
    thawed_until: datetime | None = None
    lock_mode: str | None = None
    locked_until: datetime | None = None
    version: str | None = None

    @property
    def is_archived(self) -> bool:
        """Whether it cannot be read now."""
        return self.storage_class in ARCHIVES and self.thawed_until is None


def storage_classes(store: Store) -> StorageClasses | None:
    """The classes of a store's objects; None where there are none, as in a directory."""
    return StorageClasses(store) if isinstance(store, ObjectStore) else None


class StorageClasses:
    """What a bucket's service says of its objects beside their bytes; safe for threads."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.scheme = store.address.scheme

    @cached_property
    def requests(self) -> S3Requests:
        """Signed requests. Raises StoreError where the store is not S3, ConfigError where there are no keys."""
        return S3Requests(self.store.address, self.store.clients)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if (certificates := self.store.address.options.get("ca_file")) is not None:
            context.load_verify_locations(certificates)
        return context

    def is_readable(self, name: str) -> bool:
        """Whether an object can be read now, by reading a byte of it: any reader's credentials do. Raises ObjectMissing."""
        try:
            # not by way of what was read before
            self.store.read_afresh(name, 0, 1)
        except ObjectArchived:
            return False
        return True

    def state(self, name: str) -> ObjectState:
        """Of one object, by one question that any reader may ask. Raises ObjectMissing, StoreError."""
        headers = self._headers("HEAD", name, "", {})
        assert headers is not None
        restore = headers.get("x-amz-restore", "")
        expiry = re.search(r'expiry-date="([^"]+)"', restore)
        return ObjectState(
            name=name,
            size=int(headers.get("content-length", 0)),
            storage_class=_first(headers, "x-amz-storage-class", "x-ms-access-tier", "x-goog-storage-class")
            or HOT[self.scheme],
            thawing='ongoing-request="true"' in restore
            or headers.get("x-ms-archive-status", "").startswith("rehydrate-pending"),
            thawed_until=parsedate_to_datetime(expiry[1]) if expiry is not None else None,
            lock_mode=headers.get("x-amz-object-lock-mode"),
            locked_until=_moment(headers.get("x-amz-object-lock-retain-until-date")),
            version=headers.get("x-amz-version-id"),
        )

    def list(self, prefix: str, after: str | None = None) -> Iterator[ObjectInfo]:
        """As `Store.list`, with the storage class of each; on S3 by one request for 1000 objects, elsewhere by one for each.

        ``after``: what comes before WAL of this name is left out. In the order of the service, which may not be that of names.
        Raises StoreError.
        """
        if self.scheme != "s3":
            for info in self.store.list(prefix):
                state = self.state(info.name)
                yield ObjectInfo(info.name, info.size, info.modified, state.storage_class)
            return
        root = f"{self.store.address.prefix}/" if self.store.address.prefix else ""
        query = {"list-type": "2", "prefix": root + prefix, "max-keys": str(_PAGE)}
        if after is not None:
            query["start-after"] = f"{root}{prefix}{after[8:16]}/{after}"
        while True:
            answer = self.requests.send("list", "GET", "", query=query)
            page = ET.fromstring(answer.body)  # noqa: S314 - the service's own, as trusted as its listings in JSON
            for entry in _all(page, "Contents"):
                if (size := int(_text(entry, "Size") or 0)) > 0:
                    yield ObjectInfo(
                        (_text(entry, "Key") or "").removeprefix(root),
                        size,
                        _moment(_text(entry, "LastModified")) or datetime.now(UTC),
                        _text(entry, "StorageClass") or HOT["s3"],
                    )
            token = _text(page, "NextContinuationToken")
            if _text(page, "IsTruncated") != "true" or token is None:
                return
            query["continuation-token"] = token

    def change(self, name: str, storage_class: str) -> None:
        """Give an object another class; its bytes stay as they are, and its lock too. Raises ObjectMissing, StoreError.

        Where the bucket keeps versions, the one of the old class is deleted: its lock must have ended.
        """
        if self.scheme == "gs":
            self._write_again(name, storage_class)
        elif self.scheme == "az":
            self._headers("PUT", name, "&comp=tier", {"x-ms-access-tier": storage_class})
        else:
            self._copy(name, storage_class)

    def thaw(self, name: str, tier: str, days: int) -> None:
        """Ask for an archived object; no error where that was done before. Raises ObjectMissing, StoreError."""
        if self.scheme == "az":
            self._headers(
                "PUT", name, "&comp=tier", {"x-ms-access-tier": "Hot", "x-ms-rehydrate-priority": tier}, done={409}
            )
            return
        body = (
            '<RestoreRequest xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Days>{days}</Days><GlacierJobParameters><Tier>{tier}</Tier></GlacierJobParameters></RestoreRequest>"
        ).encode()
        try:
            self.requests.send("thaw", "POST", name, query={"restore": ""}, body=[body], final=_FINAL)
        except Refused as refusal:
            if refusal.failure.kind is Kind.MISSING:
                raise ObjectMissing(f"{name} is not in {self.store.url}") from None
            if refusal.failure.code != "RestoreAlreadyInProgress":
                raise self.store.clients.error("thaw", name, refusal.failure) from None

    def _copy(self, name: str, storage_class: str) -> None:
        before = self.state(name)
        headers = {
            "x-amz-copy-source": self.requests.source + name,
            "x-amz-storage-class": storage_class,
            # an object has no metadata of its own, and some services refuse a copy onto itself that keeps it
            "x-amz-metadata-directive": "REPLACE",
            **_lock_headers(before),
        }
        try:
            answer = self.requests.send("move", "PUT", name, headers=headers, final=_MISSING)
        except Refused:
            raise ObjectMissing(f"{name} is not in {self.store.url}") from None
        new = answer.headers.get("x-amz-version-id")
        if before.version not in {None, "null"} and new not in {None, before.version}:
            self.requests.send("delete", "DELETE", name, query={"versionId": str(before.version)}, final=_MISSING)

    def _write_again(self, name: str, storage_class: str) -> None:
        def write(_request: Request) -> None:
            import obstore

            found = obstore.get(self.store.clients.download, name)
            meta, data = found.meta, bytes(found.bytes())
            obstore.put(
                self.store.clients.upload(len(data)),
                name,
                data,
                mode={"e_tag": meta["e_tag"], "version": meta["version"]},
                use_multipart=False,
                attributes={"Storage-Class": storage_class},
            )

        try:
            self.store.clients.call("move", name, write, final=_MISSING)
        except Refused:
            raise ObjectMissing(f"{name} is not in {self.store.url}") from None

    def _headers(
        self,
        method: str,
        name: str,
        more: str,
        headers: Mapping[str, str],
        done: frozenset[int] | set[int] = frozenset(),
    ) -> Message | None:
        """The headers of an answer to a request at a signed address. ``done``: statuses that are as good as a success."""
        import obstore

        client = self.store.clients.small

        def ask(_request: Request) -> Message | None:
            url = obstore.sign(client, "HEAD" if method == "HEAD" else "PUT", name, timedelta(minutes=5))  # type: ignore[call-overload, unused-ignore]
            request = urllib.request.Request(url + more, method=method, headers=dict(headers))  # noqa: S310 - http and https alone
            try:
                with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:  # noqa: S310
                    found: Message = answer.headers
                    return found
            except urllib.error.HTTPError as error:
                text = f"status code: {error.code} {error.read().decode('utf-8', 'replace')}"
                if error.code in done:
                    return None
                if error.code == 404:
                    raise FileNotFoundError(text) from None
                raise StatusError(text) from None
            except OSError as error:
                raise ConnectionError(str(error)) from error

        try:
            return self.store.clients.call("ask about" if method == "HEAD" else "move", name, ask, final=_MISSING)
        except Refused:
            raise ObjectMissing(f"{name} is not in {self.store.url}") from None


class StatusError(Exception):
    """An answer that is no success; its text is read like obstore's."""


def _lock_headers(state: ObjectState) -> dict[str, str]:
    if state.lock_mode is None or state.locked_until is None or state.locked_until <= datetime.now(UTC):
        return {}
    return {
        "x-amz-object-lock-mode": state.lock_mode,
        "x-amz-object-lock-retain-until-date": f"{state.locked_until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _first(headers: Message, *names: str) -> str | None:
    return next((headers[name] for name in names if headers.get(name)), None)


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise StoreError(f"the store gives a time that is none: {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _all(node: ET.Element, tag: str) -> list[ET.Element]:
    """Children by name, whatever the name space: not every service gives Amazon's."""
    return [child for child in node if child.tag.rpartition("}")[2] == tag]


def _text(node: ET.Element, tag: str) -> str | None:
    return next((child.text for child in _all(node, tag)), None)
