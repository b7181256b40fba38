"""The manifest: the root of a backup. A backup exists if and only if its manifest object does.

A sealed object ``clusters/<system identifier>/backups/<id>``; its plain text is the MessagePack of `Manifest`, a map
with the field names below, so that a later version can add fields.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from pgkeep.errors import DamageError, NotFoundError
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.maps import Directory
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed
from pgkeep.repository.store import ObjectMissing, Store

__all__ = [
    "BackupName",
    "Catalog",
    "DamagedPage",
    "Manifest",
    "ManifestHead",
    "Tablespace",
    "WalRange",
    "backup_time",
    "new_backup_id",
]


class Tablespace(msgspec.Struct, frozen=True):
    """A tablespace other than pg_default and pg_global: where it was, and how many bytes it held."""

    oid: int
    location: bytes
    size: int


class WalRange(msgspec.Struct, frozen=True):
    """WAL that a backup needs to become consistent: ``[start, stop)`` on one timeline; ``segments`` objects hold it."""

    timeline: int
    start_lsn: int
    stop_lsn: int
    segment_size: int
    segments: list[str]
    stored_size: int


class DamagedPage(msgspec.Struct, frozen=True):
    """A page that was not as it should be on the server when it was read; ``block`` counts from the relation's begin."""

    path: bytes
    block: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All that a restore needs to know of a backup. Sizes in bytes, LSNs as numbers, times in UTC.

    ``logical_size`` is what the files hold, ``stored_size`` what a restore reads of them, ``new_size`` what this backup
    added to the repository. ``page_size`` is the unit of the page maps; ``block_size`` the server's, and ``segment_blocks``
    of them make a full relation segment.

    ``kind`` is ``"full"`` where everything was read, ``"incremental"`` where only what changed since ``parent`` (a backup's
    id, empty for none) was; ``read_size`` is what came from the server, and ``number`` grows by one from parent to child.
    ``notes`` say why everything was read, and what else the operator should know. ``unexplained_pages`` differ from the
    parent's though no WAL has changed them. Nothing needs the parent to read the backup: it is complete by itself.
    """

    id: str
    cluster: str
    label: str
    mode: str
    system_identifier: int
    server_version: int
    from_standby: bool
    started: datetime
    finished: datetime
    timeline: int
    start_lsn: int
    stop_lsn: int
    page_size: int
    block_size: int
    segment_blocks: int
    data_checksums: bool
    backup_label: bytes
    tablespace_map: bytes
    tablespaces: list[Tablespace]
    directories: list[Directory]
    wal: WalRange
    logical_size: int
    stored_size: int
    new_size: int
    files: int
    damaged_pages: list[DamagedPage] = []
    unexplained_pages: list[DamagedPage] = []
    kind: str = "full"
    parent: str = ""
    number: int = 0
    read_size: int = 0
    notes: list[str] = []
    writer: str = ""


class ManifestHead(msgspec.Struct, frozen=True, kw_only=True):
    """What of a manifest says where in time its backup lies: a few hundred bytes, however many directories there are."""

    id: str
    cluster: str
    started: datetime
    finished: datetime
    timeline: int
    start_lsn: int
    stop_lsn: int
    wal: WalRange


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)
_head_decoder = msgspec.msgpack.Decoder(ManifestHead)

T = TypeVar("T")

_READ_AT_ONCE = 32
"""Manifests: each is a round trip to the store, and little else."""


def new_backup_id(moment: datetime) -> str:
    """An id that sorts by time, to the millisecond: ``20261123T030405.678Z-1f2e3d4c``."""
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z-{secrets.token_hex(4)}"


def backup_time(id_: str) -> datetime | None:
    """The time in an id; None where it is no id of ours."""
    try:
        return datetime.strptime(id_.partition("Z")[0], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True, order=True, slots=True)
class BackupName:
    """A backup's id and the cluster it is of; sorts by id, so by time."""

    id: str
    system_identifier: int

    @property
    def object_name(self) -> str:
        """The name of its manifest object."""
        return f"clusters/{self.system_identifier}/backups/{self.id}"


class Catalog:
    """The backups of a repository.

    ``cluster`` is a cluster's name, as its manifests have it; None means all.
    """

    def __init__(self, store: Store, keys: KeyRing) -> None:
        self._store = store
        self._keys = keys

    def names(self) -> list[BackupName]:
        """All backups, oldest first; reads no manifest."""
        return sorted(
            BackupName(info.name.rpartition("/")[2], int(cluster))
            for cluster in self._store.folders("clusters/")
            for info in self._store.list(f"clusters/{cluster}/backups/")
        )

    def find(self, reference: str, cluster: str | None = None) -> Manifest:
        """The backup that ``latest``, an id, or an unambiguous beginning of one means.

        Raises NotFoundError, DamageError.
        """
        names = self.names()
        if reference == "latest":
            for name in reversed(names):
                manifest = self.read(name)
                if cluster in {None, manifest.cluster}:
                    return manifest
            what = "no backup" if cluster is None else f"no backup of cluster {cluster}"
            raise NotFoundError(f"there is {what} in {self._store.url} yet", hint="pgkeep backup takes one")
        matches = [name for name in names if name.id.startswith(reference)]
        if len(matches) > 1 and cluster is not None:
            matches = [name for name in matches if self.read(name).cluster == cluster]
        found = [self.read(name) for name in matches] if len(matches) == 1 else []
        if found and cluster in {None, found[0].cluster}:
            return found[0]
        what = f"{len(matches)} backups have" if len(matches) > 1 else "no backup has"
        where = self._store.url if cluster is None else f"cluster {cluster} in {self._store.url}"
        raise NotFoundError(f"{what} an id that begins with {reference!r} in {where}", hint="pgkeep list shows them")

    def read(self, name: BackupName) -> Manifest:
        """A backup's manifest. Raises ObjectMissing, DamageError."""
        plain = read_sealed(self._store, self._keys, name.object_name, ObjectType.MANIFEST)
        try:
            return _decoder.decode(plain)
        except msgspec.MsgspecError as error:
            raise DamageError(f"{name.object_name} cannot be read: {error}", object_name=name.object_name) from None

    def read_all(self, cluster: str | None = None) -> Iterator[Manifest]:
        """All manifests, oldest first. Raises DamageError."""
        for manifest in _in_order(self._read_if_there, self.names()):
            if manifest is not None and cluster in {None, manifest.cluster}:
                yield manifest

    def read_heads(self, cluster: str | None = None) -> Iterator[tuple[BackupName, ManifestHead]]:
        """`read_all` without what a manifest says of files. Raises DamageError."""
        names = self.names()
        for name, head in zip(names, _in_order(self._head, names), strict=True):
            if isinstance(head, DamageError):
                raise head
            if head is not None and cluster in {None, head.cluster}:
                yield name, head

    def heads(self, system_identifier: int) -> Iterator[tuple[BackupName, datetime, ManifestHead | DamageError]]:
        """Of each of a cluster's backups the time at which it came, by the store's clock, and what of it can be read, by id.

        Raises StoreError.
        """
        infos = list(self._store.list(f"clusters/{system_identifier}/backups/"))
        names = [BackupName(info.name.rpartition("/")[2], system_identifier) for info in infos]
        for name, info, head in zip(names, infos, _in_order(self._head, names), strict=True):
            if head is not None:
                yield name, info.modified, head

    def _read_if_there(self, name: BackupName) -> Manifest | None:
        try:
            return self.read(name)
        except ObjectMissing:
            # removed since the listing
            return None

    def _head(self, name: BackupName) -> ManifestHead | DamageError | None:
        try:
            head = _head_decoder.decode(read_sealed(self._store, self._keys, name.object_name, ObjectType.MANIFEST))
        except ObjectMissing:
            # removed since the listing
            return None
        except DamageError as error:
            return error
        except msgspec.MsgspecError as error:
            return DamageError(f"{name.object_name} cannot be read: {error}", object_name=name.object_name)
        if head.id != name.id:
            return DamageError(f"{name.object_name} is the manifest of {head.id}", object_name=name.object_name)
        return head

    def commit(self, manifest: Manifest) -> None:
        """Make a backup exist. All that it names must be durable already."""
        name = BackupName(manifest.id, manifest.system_identifier).object_name
        write_sealed(self._store, self._keys, name, ObjectType.MANIFEST, _encoder.encode(manifest))


def _in_order(read: Callable[[BackupName], T], names: Sequence[BackupName]) -> Iterator[T]:
    """``read`` of each, several at once, and only so many ahead."""
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="manifests") as executor:
        pending: deque[Future[T]] = deque()
        try:
            for name in names:
                pending.append(executor.submit(read, name))
                if len(pending) > 2 * _READ_AT_ONCE:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
