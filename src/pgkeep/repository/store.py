"""What pgkeep asks of a place that keeps bytes: a handful of verbs over named objects.

An object is created once, whole, and never changes; it is visible only when it is durable. Names are ``/``-separated
segments of ``[a-z0-9A-Z._-]``; a store validates them on the way in and on the way out, so that a name can neither
leave the store nor confuse two objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote, urlsplit

from pgkeep.errors import ConfigError, StoreError

__all__ = ["Buffer", "ObjectExists", "ObjectInfo", "ObjectMissing", "Store", "check_name", "open_store"]

Buffer = bytes | bytearray | memoryview

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}")


class ObjectMissing(StoreError):
    """The store answers, and has no object of this name."""


class ObjectExists(StoreError):
    """An object of this name is there already; objects are never replaced."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it: ``size`` in bytes, ``modified`` by the store's clock."""

    name: str
    size: int
    modified: datetime


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

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Create an object from the concatenated parts.

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
    """The store at ``url``: ``file:///path`` or an absolute path.

    Raises ConfigError for an address that is not understood. Does not touch the store.
    """
    from pgkeep.repository.posix import PosixStore

    if url.startswith("/"):
        return PosixStore(url)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return PosixStore(unquote(parts.path))
    raise ConfigError(
        f"not a repository address: {url!r}",
        hint="write the address as file:///absolute/path, or as an absolute path",
    )
