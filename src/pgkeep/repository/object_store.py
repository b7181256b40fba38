"""A store in a bucket: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

An object is one put with ``If-None-Match: *`` (Google: ``ifGenerationMatch=0``): it is there whole or not at all, and never
replaced. A put whose answer was lost is made again; where it meets an object then, the bytes decide whose it is. Where a
service takes no notice of the condition, the store looks before it writes, and leases alone keep two writers apart.

Listings come in order of names from the clouds' own services. Others give them as their folders lie; there, folders are listed one by
one and put in order here.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pgkeep.errors import StoreError
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_ahead import ReadAhead
from pgkeep.repository.object_store_client import SMALL, Clients, Patience, Refused, Request
from pgkeep.repository.object_store_errors import Kind, read_failure
from pgkeep.repository.store import Buffer, Capabilities, ObjectExists, ObjectInfo, ObjectMissing, check_name

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from pgkeep.repository.locks import LockedPuts

__all__ = ["ObjectStore"]

_PAGE = 1000
"""Objects in a page of a listing, the most that S3 gives at once."""

_LISTINGS_AT_ONCE = 8
"""Folders that are listed ahead: each takes a round trip."""

_PARALLEL_PUTS = 4

_MAPPED = 8 << 20
"""Bytes up to which a whole object stays in memory; a larger one is brought in pieces into a file without a name."""

_PIECES_AT_ONCE = 4

_LOCKED = ("packs/", "clusters/", "keys/", "index/", "pgkeep.json")
"""What is locked where the address says so: all that a restore reads. Leases and memories must be able to go."""

_MISSING = frozenset({Kind.MISSING})
_MISSING_OR_RANGE = frozenset({Kind.MISSING, Kind.RANGE})
_EXISTS = frozenset({Kind.EXISTS})


class ObjectStore:
    """Objects of a bucket below a prefix; see `pgkeep.repository.store.Store`."""

    def __init__(self, address: ObjectAddress, patience: Patience | None = None) -> None:
        self._address = address
        self._clients = Clients(address, patience)
        self._capabilities = Capabilities(sorted_listing=address.lists_in_order)
        self._writer = secrets.token_hex(8)
        self._has_bucket = False
        self._ahead = ReadAhead(self._get)

    @property
    def url(self) -> str:
        """The store's address."""
        return str(self._address)

    @property
    def address(self) -> ObjectAddress:
        """The same, taken apart."""
        return self._address

    @property
    def clients(self) -> Clients:
        """The connections, for what no verb of a store does."""
        return self._clients

    @cached_property
    def _locked(self) -> LockedPuts:
        # only here: archive_command opens a store for every segment
        from pgkeep.repository.locks import LockedPuts

        return LockedPuts(self._address, self._clients)

    @property
    def writer(self) -> str:
        """See `Store.writer`."""
        return self._writer

    @property
    def parallel_puts(self) -> int:
        """See `Store.parallel_puts`."""
        return _PARALLEL_PUTS

    def adapt(self, capabilities: Capabilities) -> None:
        """See `Store.adapt`."""
        self._capabilities = capabilities

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Store.put`."""
        check_name(name)
        payload = list(parts)
        client = self._clients.upload(sum(map(len, payload)))
        is_conditional = self._capabilities.conditional_put
        storage_class = self._address.options.get("storage_class") if name.startswith("packs/data/") else None

        def write(_request: Request) -> None:
            import obstore

            # it was not there before the first try, so that what is there now is judged by its bytes
            if not is_conditional and self._size(name) is not None:
                raise FileExistsError(name)
            if self._address.lock is not None and name.startswith(_LOCKED):
                self._locked.put(name, payload, conditional=is_conditional, storage_class=storage_class)
                return
            obstore.put(
                client,
                name,
                payload,
                mode="create" if is_conditional else "overwrite",
                use_multipart=False,
                attributes={"Storage-Class": storage_class} if storage_class is not None else None,
            )

        while True:
            try:
                self._clients.call("write", name, write, final=_EXISTS)
            except Refused as refusal:
                there = self._holds(name, payload) if refusal.request.uncertain else False
                if there is None:
                    # made by the try without an answer, and deleted by somebody since
                    continue
                if not there:
                    raise ObjectExists(f"{name} is in {self.url} already") from None
            self._has_bucket = True
            return

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        check_name(name)
        if length is None:
            return self._get(name, start, None)
        if length <= 0:
            self.info(name)
            return b""
        return self._ahead.get(name, start, length)

    def _get(self, name: str, start: int, length: int | None) -> bytes:
        wanted: Any = None
        if length is not None:
            wanted = (start, start + length)
        elif start > 0:
            wanted = {"offset": start}
        client = self._clients.small if length is not None and length <= SMALL else self._clients.download

        def read(_request: Request) -> bytes:
            import obstore

            result = obstore.get(client, name, options=None if wanted is None else {"range": wanted})
            first, end = result.range
            data = bytes(result.bytes())
            if len(data) != end - first or first != (start if end > first else first):
                raise ConnectionError("the answer was cut off")
            return data

        try:
            return self._clients.call("read", name, read, final=_MISSING_OR_RANGE)
        except Refused as refusal:
            if refusal.failure.kind is Kind.RANGE:
                return b""
            raise self._missing(name) from None

    def read_afresh(self, name: str, start: int, length: int) -> bytes:
        """`get`, of what the store has now, whatever was read before."""
        return self._get(name, start, length)

    def read_mapped(self, name: str) -> Buffer:
        """See `Store.read_mapped`."""
        size = self.info(name).size
        if size <= _MAPPED:
            return self.get(name)
        with tempfile.TemporaryFile(prefix="pgkeep-") as file, ThreadPoolExecutor(_PIECES_AT_ONCE) as executor:

            def bring(start: int) -> None:
                piece = memoryview(self.get(name, start, min(_MAPPED, size - start)))
                while piece:
                    written = os.pwrite(file.fileno(), piece, start)
                    piece, start = piece[written:], start + written

            try:
                os.truncate(file.fileno(), size)
                for _ in executor.map(bring, range(0, size, _MAPPED)):
                    pass
            except OSError as error:
                raise StoreError(
                    f"cannot keep {name} of {self._address.place} in {tempfile.gettempdir()}: {error.strerror}",
                    hint=f"free {size} bytes there, or name another place with TMPDIR",
                ) from error
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))

    def info(self, name: str) -> ObjectInfo:
        """See `Store.info`."""
        check_name(name)
        return _info(self._head(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        folder = check_name(prefix.rstrip("/")) + "/" if prefix else ""
        found = self._in_order(folder) if self._capabilities.sorted_listing else self._by_folders(folder)
        for info in found:
            if folder or not info.name.startswith("tmp/"):
                yield info

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        folders, _ = self._folder(check_name(prefix.rstrip("/")) + "/")
        return sorted(folder[:-1].rpartition("/")[2] for folder in folders)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        check_name(name)

        def remove(_request: Request) -> None:
            import obstore

            obstore.delete(self._clients.small, name)

        with contextlib.suppress(Refused):
            self._clients.call("delete", name, remove, final=_MISSING)
        self._ahead.forget(name)

    def discard_leftovers(self, writer: str) -> None:
        """See `Store.discard_leftovers`: a put that broke off leaves nothing."""

    def leftovers(self) -> int:
        """See `Store.leftovers`."""
        return 0

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return None

    def _size(self, name: str) -> int | None:
        try:
            return self._head(name)["size"]
        except ObjectMissing:
            return None

    def _head(self, name: str) -> ObjectMeta:
        def ask(_request: Request) -> ObjectMeta:
            import obstore

            try:
                return obstore.head(self._clients.small, name)
            except Exception as error:
                failure = read_failure(error)
                if failure.kind is Kind.TRANSIENT or (failure.kind is Kind.MISSING and self._has_bucket):
                    raise
                # an answer to HEAD has no body that would say why: no such bucket, wrong key, wrong clock
                return obstore.get(self._clients.small, name, options={"range": (0, 1)}).meta

        try:
            found = self._clients.call("read", name, ask, final=_MISSING)
        except Refused:
            self._has_bucket = True
            raise self._missing(name) from None
        self._has_bucket = True
        return found

    def _holds(self, name: str, payload: Sequence[Buffer]) -> bool | None:
        """Whether an object has just these bytes; None where there is no such object."""
        try:
            there = memoryview(self.get(name))
        except ObjectMissing:
            return None
        position = 0
        for part in payload:
            if there[position : position + len(part)] != part:
                return False
            position += len(part)
        return position == len(there)

    def _missing(self, name: str) -> ObjectMissing:
        return ObjectMissing(f"{name} is not in {self.url}")

    def _in_order(self, folder: str) -> Iterator[ObjectInfo]:
        """The service's own order; after a failure it goes on behind the last name."""
        last: str | None = None
        pages: Any = None

        def next_page(_request: Request) -> Sequence[ObjectMeta]:
            import obstore

            nonlocal pages
            try:
                if pages is None:
                    pages = iter(obstore.list(self._clients.small, folder or None, offset=last, chunk_size=_PAGE))
                page: Sequence[ObjectMeta] = next(pages, ())
                return page
            except Exception:
                pages = None
                raise

        while page := self._clients.call("list", folder or "the repository", next_page):
            for info in _infos(page):
                if last is not None and info.name <= last:
                    raise StoreError(
                        f"{self._address.place} does not list its objects in order any more: {info.name} came after {last}",
                        hint="name the service that keeps the bucket with endpoint = …, so that its order is not relied on",
                    )
                last = info.name
                yield info

    def _by_folders(self, folder: str) -> Iterator[ObjectInfo]:
        with ThreadPoolExecutor(_LISTINGS_AT_ONCE, thread_name_prefix="listing") as executor:
            try:
                yield from self._walk(executor, self._folder(folder))
            finally:
                executor.shutdown(cancel_futures=True)

    def _walk(
        self, executor: ThreadPoolExecutor, level: tuple[Sequence[str], Sequence[ObjectInfo]]
    ) -> Iterator[ObjectInfo]:
        folders, objects = level
        ahead: list[Future[tuple[Sequence[str], Sequence[ObjectInfo]]]] = []
        begun = iter(folders)

        def begin() -> None:
            if (following := next(begun, None)) is not None:
                ahead.append(executor.submit(self._folder, following))

        for _ in range(_LISTINGS_AT_ONCE):
            begin()
        infos = {info.name: info for info in objects}
        for name in sorted([*folders, *infos]):
            if name.endswith("/"):
                inside = ahead.pop(0).result()
                begin()
                yield from self._walk(executor, inside)
            else:
                yield infos[name]

    def _folder(self, folder: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Folders (ending in ``/``, sorted) and objects right in a folder."""

        def ask(_request: Request) -> Any:
            import obstore

            return obstore.list_with_delimiter(self._clients.small, folder or None)

        found = self._clients.call("list", folder or "the repository", ask)
        folders = sorted(f"{name}/" for name in found["common_prefixes"])
        for name in folders:
            check_name(name[:-1])
        return folders, _infos(found["objects"])


def _infos(metas: Sequence[ObjectMeta]) -> Sequence[ObjectInfo]:
    """All but objects without a byte, which some services make of folders."""
    return [_info(meta) for meta in metas if meta["size"]]


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(check_name(meta["path"]), meta["size"], meta["last_modified"].astimezone(UTC))
