"""Which contents the backups need, and where these are: a mark for each row of the index.

Listings and maps that backups share are looked at once. Memory is a byte for each row of the index, and 32 for each listing and map.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pgkeep.collection.references import Ids, References
from pgkeep.errors import DamageError
from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.repository.index import IndexSegment, Location
from pgkeep.repository.manifests import BackupName
from pgkeep.repository.store import ObjectMissing

__all__ = ["LiveContents", "PackUse"]

_GOOD, _DOOMED, _DISTRUSTED = range(3)
"""What a pack is worth, best first."""

_BATCH = 1 << 16
"""Ids that are looked up at once."""


@dataclass(frozen=True, slots=True)
class PackUse:
    """Stored bytes of a pack's contents, and of those that a backup needs."""

    total: int = 0
    live: int = 0


@dataclass
class LiveContents:
    """What backups need of a repository, as its index is now.

    ``doomed`` packs count where no other has a content, ``distrusted`` ones where not even a doomed one has. ``needed`` are those of the
    doomed packs that are needed all the same.
    """

    repository: Repository
    doomed: Collection[str] = ()
    distrusted: frozenset[str] = frozenset()
    references: References = field(kw_only=True)
    needed: set[str] = field(default_factory=set)
    _seen: set[bytes] = field(default_factory=set)
    _marks: list[tuple[IndexSegment, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting: list[Ids] = []
        self._waiting_ids = 0
        self._marks = [
            (
                segment,
                np.zeros(len(segment), np.bool_),
                np.array([self._rank(name) for name in segment.packs], np.uint8),
            )
            for segment in self.repository.index.segments
        ]

    def _rank(self, pack: str) -> int:
        return _DISTRUSTED if pack in self.distrusted else _DOOMED if pack in self.doomed else _GOOD

    def add(self, names: Iterable[BackupName], progress: Progress) -> None:
        """Mark all that these backups need; those that have gone by now need nothing.

        Raises DamageError where a backup's tree cannot be read, or a content of it is nowhere: then nobody knows what is needed.
        """
        for name in names:
            try:
                manifest = self.repository.catalog.read(name)
            except ObjectMissing:
                continue
            self._add([listing for directory in manifest.directories for listing in directory.listings])
            self._mark()
            progress.advance(1)

    def _add(self, listings: Iterable[bytes]) -> None:
        for leads in self.references.of_listings(self._new(listings)):
            self._wait(leads.content_ids())
            for of_map in self.references.of_maps(self._new(leads.map_ids())):
                self._wait(of_map.content_ids())

    def _new(self, meta: Iterable[bytes]) -> list[bytes]:
        """Those listings or maps that were not seen yet; they are needed, too."""
        new = [each for each in dict.fromkeys(meta) if each not in self._seen]
        self._seen.update(new)
        if new:
            self._wait(np.array(new, "S32"))
        return new

    def _wait(self, ids: Ids) -> None:
        self._waiting.append(ids)
        self._waiting_ids += len(ids)
        if self._waiting_ids >= _BATCH:
            self._mark()

    def _mark(self) -> None:
        if not self._waiting:
            return
        left, self._waiting, self._waiting_ids = np.unique(np.concatenate(self._waiting)), [], 0
        for rank in (_GOOD, _DOOMED):
            for segment, marks, ranks in self._marks:
                rows, numbers = segment.rows_of(left)
                right = ranks[segment.places()[rows, 0]] == rank
                found, first = np.unique(numbers[right], return_index=True)
                self._choose(segment, marks, rows[right][first])
                left = np.delete(left, found)
        everywhere = np.zeros(len(left), np.bool_)
        for segment, marks, _ in self._marks if len(left) else ():
            # two damaged packs need not be damaged in the same place: neither is the better one
            rows, numbers = segment.rows_of(left)
            self._choose(segment, marks, rows)
            everywhere[numbers] = True
        left = left[~everywhere]
        if len(left):
            raise DamageError(
                f"{len(left)} contents that backups need are in no index, {left[0].ljust(32, bytes(1)).hex()[:16]} first;"
                " nothing was collected",
                hint="see what is damaged: pgkeep verify; if an index object was lost: pgkeep repository reindex",
            )

    def _choose(self, segment: IndexSegment, marks: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64]) -> None:
        marks[rows] = True
        packs = {segment.packs[number] for number in np.unique(segment.places()[rows, 0])}
        # what was to become of these is decided anew
        self.needed.update(packs.intersection(self.doomed))

    @property
    def seen(self) -> Collection[bytes]:
        """The listings and maps of these backups, and of earlier ones."""
        return self._seen

    def later(self, doomed: Collection[str]) -> LiveContents:
        """For backups that came since, of which only is looked at what no earlier one has; with the index as it is now."""
        return LiveContents(self.repository, doomed, self.distrusted, references=self.references, _seen=self._seen)

    def relied_on(self, going: Collection[str]) -> dict[str, list[Location]]:
        """Where backups will find what they need and what these packs, of which nothing is marked, have too: by pack of ``going``."""
        found: dict[str, list[Location]] = {}
        for segment, _, _ in self._marks:
            chosen = np.array([name in going for name in segment.packs], np.bool_)
            if not chosen.any():
                continue
            packs = segment.places()[:, 0]
            wanted = np.flatnonzero(chosen[packs])
            ids = segment.ids()[wanted]
            for other, marks, _ in self._marks:
                rows, numbers = other.rows_of(ids)
                for row, number in zip(rows[marks[rows]].tolist(), numbers[marks[rows]].tolist(), strict=True):
                    found.setdefault(segment.packs[packs[wanted[number]]], []).append(other.location(row))
        return found

    def packs(self) -> dict[str, PackUse]:
        """Every pack that the index covers, and what is needed of it."""
        found: dict[str, PackUse] = {}
        for segment, marks, _ in self._marks:
            rows = segment.places()
            size = len(segment.packs)
            stored = rows[:, 2].astype(np.float64)
            total = np.bincount(rows[:, 0], stored, size).astype(np.int64).tolist()
            live = np.bincount(rows[:, 0], stored * marks, size).astype(np.int64).tolist()
            for name, whole, needed in zip(segment.packs, total, live, strict=True):
                there = found.get(name)
                # in two index objects a content of a pack is marked in the newer one alone
                found[name] = PackUse(whole, needed if there is None else there.live + needed)
        return found

    def of_pack(self, packs: Collection[str]) -> dict[str, list[Location]]:
        """What is needed of some packs, in order of offset."""
        found: dict[str, list[Location]] = {}
        for segment, marks, _ in self._marks:
            chosen = np.array([name in packs for name in segment.packs], np.bool_)
            if chosen.any():
                for row in np.flatnonzero(marks & chosen[segment.places()[:, 0]]).tolist():
                    location = segment.location(row)
                    found.setdefault(location.pack, []).append(location)
        for locations in found.values():
            locations.sort(key=lambda location: location.entry.offset)
        return found
