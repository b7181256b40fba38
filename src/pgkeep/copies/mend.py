"""Bringing back what is damaged or gone in one repository from another that has it whole.

Where the two share their keys, a pack is byte for byte the same object, known by its name. Else, what the backups that both have need
of it is read from the other's backups and stored anew: ids are hashes, so that what names a content finds the new one. What is damaged is
removed only once all of it is somewhere else. Leases apart, this is the one time that anything but expiry and collection deletes.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from pgkeep.copies.job import CopyRequest, copy_contents, copy_leases, transfer_of
from pgkeep.copies.raw import fetch_pack
from pgkeep.copies.transfer import Transfer
from pgkeep.copies.wal import copy_wal_file
from pgkeep.copies.walk import CommonBackup
from pgkeep.errors import DamageError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.distrust import note_distrusted
from pgkeep.repository.index import Index, Location
from pgkeep.repository.manifests import BackupName
from pgkeep.repository.packs import check_hash
from pgkeep.repository.sealed import check_sealed
from pgkeep.repository.store import ObjectMissing

__all__ = ["MendReport", "run_mend"]


@dataclass
class MendReport:
    """What was looked at (``size`` in bytes), the objects that were mended, and those that could not be, with the reason."""

    objects: int = 0
    size: int = 0
    mended: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def run_mend(
    request: CopyRequest, source: Repository, destination: Repository, progress: Progress | None = None
) -> MendReport:
    """Read every pack, manifest and WAL object of the destination, and bring back from the source what is damaged or gone.

    What the source cannot give is in the report. Raises BusyError, KeyFailure, StoreError, RepositoryError where the two are one, and
    DamageError where the destination's index is damaged.
    """
    progress = progress or Silent()
    transfer = transfer_of(request, source, destination, progress)
    with ExitStack() as stack:
        for system in destination.clusters():
            stack.enter_context(copy_leases(source, destination, system, progress))
        transfer = replace(transfer, doom=destination.doom_watch())
        mender = _Mender(transfer)
        mender.look()
        mender.mend_packs()
        # those that are gone have gone for what was stored in their stead
        note_distrusted(destination.store, whole=[name for name in mender.report.mended if name.startswith("packs/")])
        mender.mend_manifests()
        mender.mend_wal()
    return mender.report


class _Mender:
    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._lock = threading.Lock()
        self._packs: set[str] = set()
        self._sealed: list[str] = []
        self.report = MendReport()

    def look(self) -> None:
        """Find what is damaged or gone."""
        store = self._transfer.destination.store
        infos = [info for prefix in ("packs/", "clusters/") for info in store.list(prefix)]
        self._transfer.progress.phase("reading everything", sum(info.size for info in infos))
        self._packs = self._transfer.destination.index.known_packs() - {info.name for info in infos}
        with self._transfer.workers("mend") as workers:
            for info in infos:
                workers.submit(self._check, info.name, info.size)
            workers.drain()

    def _check(self, name: str, size: int) -> None:
        store = self._transfer.destination.store
        is_pack = name.startswith("packs/")
        try:
            (check_hash if is_pack else check_sealed)(store, name)
        except DamageError:
            with self._lock:
                if is_pack:
                    self._packs.add(name)
                else:
                    self._sealed.append(name)
        except ObjectMissing:
            # expired since the listing
            pass
        with self._lock:
            self.report.objects += 1
            self.report.size += size
        self._transfer.moved(size)

    def mend_packs(self) -> None:
        """The same object where the source has it, else its contents."""
        for name in sorted(self._packs) if self._transfer.same_keys else []:
            try:
                data = fetch_pack(self._transfer, name)
            except DamageError:
                continue
            self._transfer.destination.store.delete(name)
            self._transfer.destination.store.put(name, [data])
            self._packs.remove(name)
            self.report.mended.append(name)
        if not self._packs:
            return
        distrusting = _Distrusting(self._transfer.destination, self._packs)
        for backup_id, error in self._store_again(replace(self._transfer, destination=distrusting)):
            self.report.failures.append((f"what backup {backup_id} needs", str(error)))
        for name in sorted(self._packs):
            lost = {
                content_id
                for segment in self._transfer.destination.index.segments
                for content_id in segment.contents_of({name})
            }
            left = len(lost) - len(distrusting.index.find_all(lost))
            if left:
                reason = f"{left} of its {len(lost)} contents are in no backup that both repositories have"
                self.report.failures.append((name, reason))
            else:
                self._transfer.destination.store.delete(name)
                self.report.mended.append(name)

    def _store_again(self, transfer: Transfer) -> Iterator[tuple[str, DamageError]]:
        """Give the destination all contents of the backups that both have; it takes those that it lacks."""
        source, destination = transfer.source, transfer.destination
        common: CommonBackup | None = None
        for name in sorted(set(source.catalog.names()) & set(destination.catalog.names()), reverse=True):
            try:
                manifest = source.catalog.read(name)
                copy = copy_contents(transfer, manifest, common)
            except DamageError as error:
                yield name.id, error
                continue
            common = CommonBackup(manifest, source.reader(), copy, destination.reader())

    def mend_manifests(self) -> None:
        """Manifests that are damaged are written anew, for backups that the source has."""
        transfer = self._transfer
        for object_name in self._sealed:
            _, system, kind, *rest = object_name.split("/")
            if kind != "backups":
                continue
            try:
                manifest = transfer.source.catalog.read(BackupName(rest[0], int(system)))
                copy = copy_contents(transfer, manifest, None)
            except (DamageError, ObjectMissing) as error:
                self.report.failures.append((object_name, str(error)))
                continue
            transfer.destination.store.delete(object_name)
            transfer.commit(copy)
            self.report.mended.append(object_name)

    def mend_wal(self) -> None:
        """WAL that is damaged, or that a backup needs and that is gone; of the index of times, what is damaged is removed."""
        destination = self._transfer.destination
        for object_name in self._sealed:
            _, system, kind, *rest = object_name.split("/")
            if kind == "wal":
                self._mend_wal_file(int(system), rest[-1], object_name)
            elif kind == "times":
                destination.store.delete(object_name)
                self.report.mended.append(object_name)
        for name in destination.catalog.names():
            archive = destination.wal(name.system_identifier)
            try:
                segments = destination.catalog.read(name).wal.segments
            except (DamageError, ObjectMissing):
                continue
            for segment in segments:
                if not archive.exists(segment):
                    self._mend_wal_file(name.system_identifier, segment, archive.object_name(segment))

    def _mend_wal_file(self, system: int, name: str, object_name: str) -> None:
        try:
            check_sealed(self._transfer.source.store, object_name)
            if not self._transfer.same_keys:
                for _ in self._transfer.source.wal(system).stream(name):
                    pass
        except (DamageError, ObjectMissing) as error:
            self.report.failures.append((object_name, str(error)))
            return
        self._transfer.destination.store.delete(object_name)
        copy_wal_file(self._transfer, system, name)
        self.report.mended.append(object_name)


class _TrustedIndex(Index):
    """An index that does not know what lies in some packs."""

    def __init__(self, repository: Repository, distrusted: Collection[str]) -> None:
        self._distrusted = distrusted
        super().__init__(repository.store, repository.keys)

    def find(self, content_id: bytes, *, besides: Collection[str] = ()) -> Location | None:
        return self.find_all([content_id], besides=besides).get(content_id)

    def find_all(self, content_ids: Iterable[bytes], *, besides: Collection[str] = ()) -> dict[bytes, Location]:
        return super().find_all(content_ids, besides={*self._distrusted, *besides})


class _Distrusting(Repository):
    """A repository that takes what lies in some packs for lost."""

    def __init__(self, repository: Repository, distrusted: Collection[str]) -> None:
        super().__init__(
            repository.store, repository.keys, repository.id, repository.parameters, repository.capabilities
        )
        self._index = _TrustedIndex(repository, distrusted)
