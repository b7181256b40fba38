"""What pgkeep asks of a place that keeps bytes: a handful of verbs over named objects.

An object is created once, whole, and never changes; it is visible only when it is durable. Names are ``/``-separated
segments of ``[a-z0-9A-Z._-]``; a store validates them on the way in and on the way out, so that a name can neither
leave the store nor confuse two objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote, urlsplit

from pgkeep.errors import ConfigError, StoreError

__all__ = [
    "Buffer",
    "Capabilities",
    "ObjectArchived",
    "ObjectExists",
    "ObjectInfo",
    "ObjectMissing",
    "Store",
    "check_name",
    "open_store",
]

Buffer = bytes | bytearray | memoryview

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}")


class ObjectMissing(StoreError):
    """The store answers, and has no object of this name."""


class ObjectExists(StoreError):
    """An object of this name is there already; objects are never replaced."""


class ObjectArchived(StoreError):
    """The object is there, in a storage class that must be thawed before it can be read."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it: ``size`` in bytes, ``modified`` by the store's clock.

    ``storage_class`` is there where it was asked for (`pgkeep.repository.storage_classes`), in the service's own words.
    """

    name: str
    size: int
    modified: datetime
    storage_class: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do, as a probe found out and the repository's root record says.

    ``conditional_put``: it creates an object only where there is none, and of many writers at once one wins.
    ``sorted_listing``: it lists objects sorted by name. ``protects_objects``: it refuses to replace one.
    ``denies_deletion``: these credentials cannot delete. ``keeps_versions``: what is deleted or replaced stays as a version.
    ``lock_mode`` and ``lock_seconds``: new objects are locked by default, in this mode, for so long; None where they are
    not, or where it cannot be seen. ``storage_classes``: those that it takes, and shows afterwards. ``clock_difference``:
    seconds that its clock is ahead of the prober's.
    """

    conditional_put: bool = True
    sorted_listing: bool = True
    protects_objects: bool = False
    denies_deletion: bool = False
    keeps_versions: bool = False
    lock_mode: str | None = None
    lock_seconds: int | None = None
    storage_classes: tuple[str, ...] = ()
    clock_difference: int = 0

    def fields(self) -> dict[str, object]:
        """For a record."""
        return {**asdict(self), "storage_classes": list(self.storage_classes)}

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Capabilities:
        """From a record, which a later version may have given more fields."""
        known = {name: value for name, value in fields.items() if name in cls.__slots__}
        classes = known.pop("storage_classes", ())
        assert isinstance(classes, list | tuple)
        return cls(**known, storage_classes=tuple(classes))  # type: ignore[arg-type]


class Store(Protocol):
    """A place that keeps objects.

    All verbs may be called from any thread. All raise StoreError when the store cannot do its work.
    """

    @property
    def url(self) -> str:
        """Where this is, without secrets."""

    @property
    def writer(self) -> str:
        """A random name for this process's writes, so that what a dead process left half done can be told apart."""

    @property
    def parallel_puts(self) -> int:
        """How many objects it pays to write at once: one where a single writer fills the disk, more over a network."""

    def adapt(self, capabilities: Capabilities) -> None:
        """Be told what a probe found out, before any other verb where it is known."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Create an object from the concatenated parts, which have a byte at least.

        Returns only when it is durable. Raises ObjectExists, and leaves the object alone, where there is one.
        Must not keep a reference to the parts.
        """

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """An object's bytes from ``start``; fewer than ``length`` only where it ends. Raises ObjectMissing."""

    def read_mapped(self, name: str) -> Buffer:
        """The whole object as a buffer, memory-mapped where the store can. Raises ObjectMissing."""

    def info(self, name: str) -> ObjectInfo:
        """Size and time of an object. Raises ObjectMissing."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below ``prefix`` (a folder's name ending in ``/``, or ``""`` for all), sorted by name."""

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below ``prefix`` (ending in ``/``), sorted, without listing what is in them."""

    def delete(self, name: str) -> None:
        """Remove an object; no error where there is none. Only collection, expiry and leases may call this."""

    def discard_leftovers(self, writer: str) -> None:
        """Remove what a writer that is certainly dead left half written; never an object."""

    def leftovers(self) -> int:
        """Bytes that writers left half written, or are writing now."""

    def free_bytes(self) -> int | None:
        """Room left, in bytes, or None where the store has no such limit."""


def check_name(name: str) -> str:
    """Give back ``name``, or raise StoreError where it is no object's name."""
    if _NAME.fullmatch(name) is None:
        raise StoreError(f"not a name for an object: {name!r}")
    return name


def open_store(url: str) -> Store:
    """The store at ``url``: ``file:///path`` or an absolute path, ``s3://``, ``gs://`` or ``az://bucket/prefix``.

    Raises ConfigError for an address that is not understood. Does not touch the store.
    """
    from pgkeep.repository.posix import PosixStore

    if url.startswith("/"):
        return PosixStore(url)
    if url.startswith(("s3://", "gs://", "az://")):
        from pgkeep.repository.object_store import ObjectStore
        from pgkeep.repository.object_store_address import ObjectAddress

        return ObjectStore(ObjectAddress.parse(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return PosixStore(unquote(parts.path))
    raise ConfigError(
        f"not a repository address: {url!r}",
        hint="write the address as file:///absolute/path, as an absolute path, or as s3://, gs:// or az://bucket/prefix",
    )
