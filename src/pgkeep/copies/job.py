"""The copy job: backups and WAL from one repository into another, so that either alone can bring the cluster back.

Each backup by itself, in the order of writing that every backup has: packs, their index, the WAL up to its stop LSN, and its manifest
last. A copy has the id of what it is a copy of. Running it again goes on where it was: nothing is sent twice that has arrived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice

import msgspec

from pgkeep.copies.raw import copy_packs, needed_packs, size_of_packs
from pgkeep.copies.reseal import TreeMover
from pgkeep.copies.transfer import Rate, Transfer
from pgkeep.copies.wal import WalCopy, Wanted, copy_wal, copy_wal_file, lacking_wal
from pgkeep.copies.walk import CommonBackup, find_common
from pgkeep.errors import DamageError, NotFoundError, RepositoryError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.keys import same_keys
from pgkeep.repository.manifests import BackupName, Manifest
from pgkeep.repository.store import ObjectExists, ObjectMissing

__all__ = [
    "CopiedBackup",
    "CopyPlan",
    "CopyReport",
    "CopyRequest",
    "copy_contents",
    "copy_leases",
    "plan_copy",
    "run_copy",
    "transfer_of",
]


class CopyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to copy. ``cluster`` None means every cluster; ``rate`` in bytes a second; ``jobs`` None: what the stores make use of.

    ``backups`` are ids, beginnings of one, or ``latest``. Without any: those newer than the newest that the destination has of their
    cluster (of a cluster that it has nothing of, only the newest one), since older ones that it lacks may have been expired there; with
    ``everything`` all that it lacks. ``wal``: and all WAL, not only what the backups need.
    """

    cluster: str | None = None
    backups: tuple[str, ...] = ()
    everything: bool = False
    wal: bool = False
    rate: int | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What would be copied. ``size`` are stored bytes: of packs where keys are shared, else the most that it can be."""

    same_keys: bool
    backups: list[Manifest]
    there: int
    packs: int
    size: int
    wal_files: int
    wal_size: int


@dataclass(frozen=True, slots=True)
class CopiedBackup:
    """A backup that is in the destination now, as that has it, and the bytes of contents that were added for it."""

    manifest: Manifest
    new_size: int


@dataclass
class CopyReport:
    """What was done. ``there`` backups were in the destination before; ``failures`` are those that could not be copied, by id."""

    same_keys: bool
    backups: list[CopiedBackup] = field(default_factory=list)
    there: int = 0
    wal: WalCopy = field(default_factory=WalCopy)
    failures: list[tuple[str, DamageError]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is in the destination."""
        return not self.failures and not self.wal.damage


def plan_copy(
    request: CopyRequest, source: Repository, destination: Repository, *, wanted_wal: Wanted | None = None
) -> CopyPlan:
    """What `run_copy` would do; writes nothing. Raises as that does."""
    transfer = transfer_of(request, source, destination, Silent())
    wanted, there = _choose(request, source, destination)
    packs: set[str] = set()
    size = 0
    for manifest in wanted:
        if transfer.same_keys:
            packs.update(needed_packs(transfer, manifest, find_common(source, destination, manifest)))
        else:
            # what of it the destination has under another id, nobody knows before it is opened
            size += manifest.stored_size if manifest is wanted[0] else manifest.new_size
    size += size_of_packs(transfer, packs)
    systems = _systems(request, source) if request.wal else []
    files = [each for system in systems for each in lacking_wal(transfer, system, wanted_wal)]
    return CopyPlan(transfer.same_keys, wanted, there, len(packs), size, len(files), sum(size for _, size in files))


def run_copy(
    request: CopyRequest,
    source: Repository,
    destination: Repository,
    progress: Progress | None = None,
    *,
    wanted_wal: Wanted | None = None,
) -> CopyReport:
    """Copy; every backup that is listed in the destination is whole there, whenever this ends.

    ``wanted_wal`` says which WAL the destination keeps; None: all of it.

    A backup that is damaged in the source is not copied, and is in the report. Raises NotFoundError, BusyError where another job writes
    this cluster's backups into the destination, KeyFailure where the keys differ and the source's do not read, StoreError,
    DifferentWalError, RepositoryError where the two are one.
    """
    progress = progress or Silent()
    transfer = transfer_of(request, source, destination, progress)
    wanted, there = _choose(request, source, destination)
    report = CopyReport(transfer.same_keys, there=there)
    systems = {manifest.system_identifier for manifest in wanted}
    if request.wal:
        systems.update(_systems(request, source))
    with ExitStack() as stack:
        for system in sorted(systems):
            stack.enter_context(copy_leases(source, destination, system, progress))
        transfer = replace(transfer, doom=destination.doom_watch())
        for manifest in wanted:
            try:
                report.backups.append(_copy_backup(transfer, manifest, find_common(source, destination, manifest)))
            except DamageError as error:
                report.failures.append((manifest.id, error))
                progress.note(f"backup {manifest.id} is not copied: {error}")
        if request.wal:
            for system in _systems(request, source):
                progress.phase("copying WAL")
                copied = copy_wal(transfer, system, wanted_wal)
                report.wal.files += copied.files
                report.wal.size += copied.size
                report.wal.damage += copied.damage
    return report


@contextmanager
def copy_leases(source: Repository, destination: Repository, system: int, progress: Progress) -> Iterator[None]:
    """Claims in both repositories, so that nothing is collected that is being read, nor what is being written.

    In the destination it is that of a backup: two writers of one cluster's backups would do the same work twice. Raises BusyError,
    StoreError.
    """
    with ExitStack() as stack:
        lease = stack.enter_context(destination.lease(f"backup of cluster {system}"))
        if lease.took_over and (packs := destination.adopt_orphans()):
            progress.note(f"a job was killed before: {packs} packs that it left are used again")
        try:
            reading = stack.enter_context(source.lease(f"copy of cluster {system} to {destination.id}"))
        except StoreError as error:
            progress.note(
                f"{source.store.url} takes no lease, so that only its grace period keeps what is read: {error}"
            )
        else:
            if reading.took_over:
                # whoever removes a dead writer's lease sees to what that has left
                source.adopt_orphans()
        yield


def transfer_of(request: CopyRequest, source: Repository, destination: Repository, progress: Progress) -> Transfer:
    """The two repositories, and what is to be known of them. Raises RepositoryError where they are one, KeyFailure, StoreError."""
    # a mirror that another program has made has the same id, and may be mended and brought up to date
    if (source.id, source.store.url) == (destination.id, destination.store.url):
        raise RepositoryError(
            f"{source.store.url} and {destination.store.url} are one repository", hint="name two: --from and --to"
        )
    same = same_keys(source.keys, destination.keys)
    return Transfer(source, destination, same, progress, Rate(request.rate), request.jobs)


def _choose(request: CopyRequest, source: Repository, destination: Repository) -> tuple[list[Manifest], int]:
    """The backups to copy, oldest first, so that each finds in the destination what it shares with the one before.

    And how many of those that are meant are there already.
    """
    there = set(destination.catalog.names())
    if request.backups:
        found = {
            _name_of(each): each for each in (source.catalog.find(word, request.cluster) for word in request.backups)
        }
        return [found[name] for name in sorted(found.keys() - there)], len(found.keys() & there)
    names = source.catalog.names()
    if not names and not request.wal:
        raise NotFoundError(f"there is no backup in {source.store.url} to copy", hint="pgkeep list --repository …")
    lacking = [name for name in names if name not in there]
    if request.everything:
        chosen = list(_readable(source, lacking, request.cluster))
    else:
        chosen = [
            manifest
            for system in sorted({name.system_identifier for name in lacking})
            for manifest in _due(
                [each for each in lacking if each.system_identifier == system],
                [each for each in there if each.system_identifier == system],
                request.cluster,
                source,
                destination,
            )
        ]
    return sorted(chosen, key=lambda manifest: manifest.id), len(names) - len(lacking)


def _due(
    lacking: Sequence[BackupName],
    there: Sequence[BackupName],
    cluster: str | None,
    source: Repository,
    destination: Repository,
) -> Iterator[Manifest]:
    """Those newer than the destination's newest, or the newest where it has none. Reads no manifest that it need not."""
    newest = next(_readable(destination, sorted(there, reverse=True), cluster), None)
    if newest is None:
        yield from islice(_readable(source, sorted(lacking, reverse=True), cluster), 1)
    else:
        yield from _readable(source, [name for name in lacking if name.id > newest.id], cluster)


def _name_of(manifest: Manifest) -> BackupName:
    return BackupName(manifest.id, manifest.system_identifier)


def _readable(repository: Repository, names: Sequence[BackupName], cluster: str | None) -> Iterator[Manifest]:
    for name in names:
        # verify tells of a manifest that is damaged, and one may have expired since; the others are copied all the same
        with suppress(DamageError, ObjectMissing):
            manifest = repository.catalog.read(name)
            if cluster in {None, manifest.cluster}:
                yield manifest


def _systems(request: CopyRequest, source: Repository) -> list[int]:
    """The clusters whose WAL is meant: all, or those that a backup of the named cluster is of."""
    if request.cluster is None:
        return source.clusters()
    return sorted(
        {manifest.system_identifier for manifest in _readable(source, source.catalog.names(), request.cluster)}
    )


def _copy_backup(transfer: Transfer, manifest: Manifest, common: CommonBackup | None) -> CopiedBackup:
    try:
        return _copy_with(transfer, manifest, common)
    except DamageError:
        if common is None:
            raise
        # the damage may be in what the destination has of the common backup
        return _copy_with(transfer, manifest, None)


def _copy_with(transfer: Transfer, manifest: Manifest, common: CommonBackup | None) -> CopiedBackup:
    copy = copy_contents(transfer, manifest, common)
    for name in manifest.wal.segments:
        copy_wal_file(transfer, manifest.system_identifier, name)
    # a twin that was quicker has committed the same
    with suppress(ObjectExists):
        transfer.commit(copy)
    return CopiedBackup(copy, copy.new_size)


def copy_contents(transfer: Transfer, manifest: Manifest, common: CommonBackup | None) -> Manifest:
    """Make a backup's contents durable in the destination, which may have some of them; its manifest as it is to be there.

    Raises DamageError, StoreError.
    """
    destination = transfer.destination
    if transfer.same_keys:
        transfer.progress.phase(f"looking for what {destination.store.url} lacks of {manifest.id}")
        packs = needed_packs(transfer, manifest, common)
        transfer.progress.phase(f"copying {manifest.id}", size_of_packs(transfer, packs))
        return msgspec.structs.replace(manifest, new_size=copy_packs(transfer, packs))
    transfer.progress.phase(f"copying {manifest.id}")
    with destination.writer(transfer.doom) as writer:
        directories = TreeMover(transfer, writer, common).move(manifest)
    return msgspec.structs.replace(manifest, directories=directories, new_size=writer.new_bytes)
