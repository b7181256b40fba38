"""One run of the collector: what earlier runs have doomed is deleted where that is due, and what nothing needs now is doomed.

Nothing waits for it, and it waits for nobody: what cannot go now goes in a later run. In this order, so that a crash at any moment
leaves garbage at worst (the argument is in docs/explanation/collection.md):

1. what is needed is found out from the backups that are there,
2. tombstones whose time has come: what is relied on instead is read; the index without their packs, then the packs, then the tombstone,
3. of packs with little that is needed, that is stored anew,
4. a tombstone for them and for the packs with nothing that is needed; then, who is at work while it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from pgkeep.collection.live import LiveContents, PackUse
from pgkeep.collection.references import ReferenceMemory, References
from pgkeep.errors import DamageError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.cold_records import read_cold
from pgkeep.repository.content_reader import spans
from pgkeep.repository.contents import ContentWriter
from pgkeep.repository.distrust import forget_distrusted, note_distrusted, read_distrusted
from pgkeep.repository.doomed import (
    Tombstone,
    read_tombstones,
    spare,
    write_deleting,
    write_tombstone,
    write_writers,
)
from pgkeep.repository.expiries import Expiries
from pgkeep.repository.index import IndexSegment, Location, merge_segments
from pgkeep.repository.leases import Lease, living
from pgkeep.repository.manifests import BackupName
from pgkeep.repository.packs import PackKind
from pgkeep.repository.store import ObjectInfo, ObjectMissing

__all__ = ["CollectReport", "CollectRequest", "run_collect"]

_DELETED_AT_ONCE = 8

_SMALL_INDEX = 100_000
"""Entries below which an index object is put together with others, once there are `_MANY_SMALL`."""

_MANY_SMALL = 32

_INDEX_ENTRIES = 1_000_000
"""Entries that are put together in one index object at most."""


@dataclass(frozen=True)
class CollectRequest:
    """``grace`` is what passes between a tombstone and its deletion, and how old a pack must be. ``live_share``: packs of which less is needed are stored anew.

    ``dry_run``: nothing is written. ``memory``: a file of this machine, of this repository alone, where it is remembered what listings and maps
    lead to; None: they are read each time.
    """

    grace: timedelta = timedelta(days=1)
    live_share: float = 0.5
    dry_run: bool = False
    memory: Path | None = None


@dataclass
class CollectReport:
    """What was done; sizes are stored bytes of packs, ``waiting`` what earlier runs have doomed and whose time has not come.

    ``read`` are the listings and maps that were read from the repository. ``refused`` are the packs that the store did not delete, with what it said.
    """

    backups: int = 0
    read: int = 0
    packs: int = 0
    size: int = 0
    live: int = 0
    deleted: int = 0
    deleted_size: int = 0
    doomed: int = 0
    doomed_size: int = 0
    repacked: int = 0
    repacked_size: int = 0
    waiting: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_collect(request: CollectRequest, repository: Repository, progress: Progress | None = None) -> CollectReport:
    """Run the collector once. Safe to interrupt and to run again, beside any other job.

    Raises BusyError where another collector runs, DamageError where it cannot be known what backups need (nothing is deleted
    then), StoreError.
    """
    with repository.lease("collection") as lease:
        if lease.took_over:
            repository.adopt_orphans()
        with ExitStack() as stack:
            memory = None if request.memory is None else stack.enter_context(ReferenceMemory(request.memory))
            return _Collector(request, repository, lease, References(repository, memory), progress or Silent()).run()


class _Collector:
    def __init__(
        self, request: CollectRequest, repository: Repository, lease: Lease, references: References, progress: Progress
    ) -> None:
        self._request = request
        self._repository = repository
        self._store = repository.store
        self._lease = lease
        self._references = references
        self._progress = progress
        # the store's clock has dated the packs and the tombstones, too
        self._now: datetime = self._store.info(lease.name).modified
        self._gone: set[str] = set()
        self.report = CollectReport()

    def run(self) -> CollectReport:
        tombstones = self._clean_up(read_tombstones(self._store))
        # after the tombstones, and before the backups: what came in between is seen by the second look
        expiries = self._expiries()
        # before the backups: what a writer has listed that is not at work any more is among them
        at_work = living(self._store, besides=self._lease)
        backups = set(self._repository.catalog.names())
        # after the backups: what they need is in the index before they are listed
        self._repository.index.refresh()
        doomed = frozenset[str]().union(*(tombstone.packs for tombstone in tombstones))
        live = LiveContents(
            self._repository, doomed, frozenset(read_distrusted(self._store)), references=self._references
        )
        self._progress.phase("finding out what the backups need", len(backups))
        live.add(sorted(backups), self._progress)
        self.report.backups, self.report.read = len(backups), self._references.read
        self._references.forget_others(live.seen)
        tombstones = [tombstone for tombstone in tombstones if not self._is_needed(tombstone, live)]
        due = [tombstone for tombstone in tombstones if self._is_due(tombstone, at_work)]
        self.report.waiting = sum(len(tombstone.packs) for tombstone in tombstones if tombstone not in due)
        infos = {info.name: info for info in self._store.list("packs/")}
        self.report.packs, self.report.size = len(infos), sum(info.size for info in infos.values())
        uses = live.packs()
        self.report.live = sum(use.live for use in uses.values())
        self._delete([tombstone for tombstone in due if self._is_proven(tombstone, live)], infos)
        self._doom(live, uses, infos, doomed, backups, expiries)
        if not self._request.dry_run:
            forget_distrusted(self._store, live.distrusted - infos.keys() | self._gone)
        return self.report

    def _clean_up(self, tombstones: list[Tombstone]) -> list[Tombstone]:
        """Without those that were spared, and those whose collector was killed before it knew who was at work."""
        standing = []
        for tombstone in tombstones:
            if tombstone.holds and tombstone.leases is not None:
                standing.append(tombstone)
            elif not self._request.dry_run:
                self._remove_records(tombstone)
        return standing

    def _remove_records(self, tombstone: Tombstone) -> None:
        for name in tombstone.records:
            self._store.delete(name)

    def _is_needed(self, tombstone: Tombstone, live: LiveContents) -> bool:
        needed = tombstone.packs & live.needed
        if needed:
            self.report.notes.append(
                f"{len(needed)} packs were to be deleted and are needed: they stay, and {tombstone.name} is void"
            )
            if not self._request.dry_run:
                spare(self._store, tombstone.name)
        return bool(needed)

    def _is_due(self, tombstone: Tombstone, at_work: Collection[str]) -> bool:
        if self._now - tombstone.time < self._request.grace:
            return False
        assert tombstone.leases is not None
        return tombstone.leases.isdisjoint(at_work)

    def _is_proven(self, tombstone: Tombstone, live: LiveContents) -> bool:
        """Whether what backups will find elsewhere was read there: an index says what whoever could add to the repository made it say."""
        places = [place for found in live.relied_on(tombstone.packs).values() for place in found]
        damaged: str | None = None
        try:
            if not self._can_read(places):
                raise DamageError("that is cold, or this key does not read it")
            self._prove(places)
        except DamageError as error:
            damaged = error.object_name
            self.report.notes.append(f"{tombstone.name} is void, since what it names cannot be read elsewhere: {error}")
        else:
            return True
        if not self._request.dry_run:
            spare(self._store, tombstone.name)
            if damaged is not None:
                note_distrusted(self._store, damaged=[damaged])
        return False

    def _can_read(self, places: Iterable[Location]) -> bool:
        cold = read_cold(self._store).packs
        data = f"packs/{PackKind.DATA.name.lower()}/"
        reads = self._repository.keys.opens_boxes
        return all(place.pack not in cold and (reads or not place.pack.startswith(data)) for place in places)

    def _prove(self, places: list[Location]) -> None:
        if places:
            self._progress.phase("reading what is relied on instead", sum(place.entry.stored_size for place in places))
        reader = self._repository.reader()
        for pack, entries in spans(places):
            for entry, _ in reader.read(pack, entries, elsewhere=False):
                self._progress.advance(entry.stored_size)

    # Deleting

    def _delete(self, due: list[Tombstone], infos: dict[str, ObjectInfo]) -> None:
        if self._request.dry_run:
            gone = [infos[name] for tombstone in due for name in tombstone.packs if name in infos]
            self.report.deleted, self.report.deleted_size = len(gone), sum(info.size for info in gone)
            return
        for tombstone in due:
            write_deleting(self._store, tombstone)
        # after it: whoever spares one later finds that it is too late
        still = {tombstone.name: tombstone for tombstone in read_tombstones(self._store) if tombstone.holds}
        due = [still[tombstone.name] for tombstone in due if tombstone.name in still]
        gone_packs = frozenset[str]().union(*(tombstone.packs for tombstone in due))
        self._put_index_together(gone_packs)
        self._progress.phase("deleting packs", len(gone_packs))
        for tombstone in due:
            if self._delete_packs([infos[name] for name in sorted(tombstone.packs) if name in infos]):
                self._remove_records(tombstone)

    def _delete_packs(self, packs: list[ObjectInfo]) -> bool:
        """Whether all are gone."""
        refused = 0
        with ThreadPoolExecutor(_DELETED_AT_ONCE, thread_name_prefix="collect") as executor:
            for info, error in zip(packs, executor.map(self._try_to_delete, packs), strict=True):
                if error is None:
                    self._gone.add(info.name)
                    self.report.deleted += 1
                    self.report.deleted_size += info.size
                else:
                    refused += 1
                    self.report.refused.append((info.name, error))
                self._progress.advance(1)
        return not refused

    def _try_to_delete(self, info: ObjectInfo) -> str | None:
        try:
            self._store.delete(info.name)
        except ObjectMissing:
            return None
        except StoreError as error:
            return str(error)
        return None

    def _put_index_together(self, gone: Collection[str]) -> None:
        """Index objects without these packs; small ones become large ones."""
        index = self._repository.index
        index.refresh()
        segments = index.segments
        small = [segment for segment in segments if len(segment) < _SMALL_INDEX]
        chosen = [
            segment
            for segment in segments
            if any(name in gone for name in segment.packs) or (len(small) > _MANY_SMALL and segment in small)
        ]
        for group in _groups(chosen):
            new = merge_segments(self._store, self._repository.keys, group, gone)
            if new is not None:
                index.adopt(new)
            for segment in group:
                if segment.name != new:
                    self._store.delete(segment.name)
        index.refresh()

    # Dooming

    def _doom(
        self,
        live: LiveContents,
        uses: dict[str, PackUse],
        infos: dict[str, ObjectInfo],
        doomed: frozenset[str],
        backups: set[BackupName],
        expiries: dict[str, set[str]],
    ) -> None:
        old = [
            info
            for info in infos.values()
            if info.name not in doomed and self._now - info.modified >= self._request.grace
        ]
        dead = self._provable([info for info in old if not uses.get(info.name, PackUse()).live], live)
        thin = self._thin(old, uses)
        self.report.doomed, self.report.doomed_size = len(dead), sum(info.size for info in dead)
        if self._request.dry_run:
            self.report.repacked = len(thin)
            self.report.repacked_size = sum(uses[info.name].live for info in thin)
            return
        moved = self._repack(live, [info.name for info in thin], doomed)
        packs = [info.name for info in dead] + moved
        if not packs:
            return
        name = write_tombstone(self._store, packs)
        # in this order: whoever is not among them began when the tombstone was there
        leases = living(self._store, besides=self._lease)
        if self._is_needed_meanwhile(live, backups, expiries, doomed.union(packs), packs):
            self._store.delete(name)
            self.report.doomed = self.report.doomed_size = 0
            self.report.notes.append(
                "a backup came meanwhile that needs some of what could go: that is for the next run"
            )
            return
        write_writers(self._store, name, leases)

    def _provable(self, packs: list[ObjectInfo], live: LiveContents) -> list[ObjectInfo]:
        """Without those whose needed contents lie elsewhere too, but where this run could not read them to prove it."""
        relied_on = live.relied_on({info.name for info in packs})
        kept = {pack for pack, places in relied_on.items() if not self._can_read(places)}
        if kept:
            self.report.notes.append(
                f"{len(kept)} packs stay: what they hold is in other packs too, which are cold, or which this key cannot read to prove it"
            )
        return [info for info in packs if info.name not in kept]

    def _is_needed_meanwhile(
        self,
        live: LiveContents,
        backups: set[BackupName],
        expiries: dict[str, set[str]],
        doomed: frozenset[str],
        packs: Collection[str],
    ) -> bool:
        """Whether a backup that came since the first look rests on packs that were doomed then."""
        came = set(self._repository.catalog.names()) - backups
        self._repository.index.refresh()
        later = live.later(doomed)
        later.add(sorted(came), self._progress)
        known = {name.id for name in backups}
        # those that came and went are not there to be asked
        went = [id_ for name, ids in self._expiries().items() if name not in expiries for id_ in ids]
        return not later.needed.isdisjoint(packs) or any(id_ not in known for id_ in went)

    def _thin(self, packs: Iterable[ObjectInfo], uses: dict[str, PackUse]) -> list[ObjectInfo]:
        """The packs of which so little is needed that it is worth to store that anew; none that is in cold storage."""
        cold = read_cold(self._store).packs
        reads = self._repository.keys.opens_boxes
        found, locked = [], 0
        for info in packs:
            use = uses.get(info.name, PackUse())
            if use.live and use.live < use.total * self._request.live_share and info.name not in cold:
                if reads or info.name.startswith(f"packs/{PackKind.META.name.lower()}/"):
                    found.append(info)
                else:
                    locked += 1
        if locked:
            self.report.notes.append(
                f"{locked} packs are mostly garbage, and this key, which only adds, cannot store the rest anew"
            )
        return found

    def _repack(self, live: LiveContents, packs: list[str], doomed: frozenset[str]) -> list[str]:
        """Store anew what is needed of packs; those of which that is done."""
        if not packs:
            return []
        repository = self._repository
        self._progress.phase("storing anew what is needed of packs that are mostly garbage", len(packs))
        avoided = {*packs, *doomed, *live.distrusted, *read_cold(self._store).archived}
        reader, moved = repository.reader(), []
        with ContentWriter(self._store, repository.keys, repository.index, repository.parameters, avoided) as writer:
            for pack, locations in live.of_pack(packs).items():
                kind = PackKind[pack.split("/")[1].upper()]
                try:
                    for entry, compressed, plain in reader.read_both(pack, [each.entry for each in locations]):
                        writer.put_compressed(kind, entry.id, compressed, plain, entry.codec)
                except DamageError as error:
                    self.report.notes.append(f"{pack} stays as it is: {error}")
                    continue
                moved.append(pack)
                self.report.repacked += 1
                self.report.repacked_size += sum(each.entry.stored_size for each in locations)
                self._progress.advance(1)
        return moved

    def _expiries(self) -> dict[str, set[str]]:
        """The records of what expiries have removed, and the ids of the backups; one that cannot be read names one that nobody knows."""
        return {
            name: {""} if expiry is None else {backup.id for backup in expiry.backups}
            for system in self._repository.clusters()
            for name, _, expiry in Expiries(self._store, self._repository.keys, system).all()
        }


def _groups(segments: Iterable[IndexSegment]) -> Iterable[list[IndexSegment]]:
    """As many index objects at a time as make one of a size that is good to read."""
    group: list[IndexSegment] = []
    entries = 0
    for segment in segments:
        if group and entries + len(segment) > _INDEX_ENTRIES:
            yield group
            group, entries = [], 0
        group.append(segment)
        entries += len(segment)
    if group:
        yield group
