"""What a backup needs, and what of that lies in an archive: asked before a restore, a verification or an export touches anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.cold.prices import CLASSES, ClassFacts, price
from pgkeep.errors import DamageError
from pgkeep.postgres.timeline import TimelineHistory
from pgkeep.postgres.wal import parse_segment_name, segment_name, segment_start
from pgkeep.repository import Repository
from pgkeep.repository.cold_records import Cold, read_cold
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.storage_classes import ARCHIVES, ObjectState, StorageClasses, storage_classes
from pgkeep.repository.store import ObjectArchived, ObjectMissing
from pgkeep.repository.tree import BackupTree
from pgkeep.units import format_duration, format_size

__all__ = [
    "ColdBackup",
    "ColdNeed",
    "archived_needs",
    "format_hours",
    "packs_of",
    "refuse_cold",
    "suspects",
    "thaw_hint",
    "tier_lines",
    "wal_between",
]

_CONTENTS_AT_ONCE = 100_000
_ASKED_AT_ONCE = 16
_SHOWN = 3


@dataclass
class ColdNeed:
    """The objects that a piece of work needs and that cannot be read now; ``facts`` are of their classes, by name."""

    objects: list[ObjectState] = field(default_factory=list)
    facts: dict[str, ClassFacts] = field(default_factory=dict)
    thawed_until: datetime | None = None
    """When the first of those that were thawed freezes again."""
    thawed: int = 0

    @property
    def size(self) -> int:
        """Bytes of these objects."""
        return sum(state.size for state in self.objects)

    @property
    def thawing(self) -> int:
        """How many were asked for already."""
        return sum(state.thawing for state in self.objects)

    @property
    def by_class(self) -> dict[str, tuple[int, int]]:
        """Objects and bytes of each class."""
        counts, sizes = Counter[str](), Counter[str]()
        for state in self.objects:
            counts[state.storage_class] += 1
            sizes[state.storage_class] += state.size
        return {name: (counts[name], sizes[name]) for name in sorted(counts)}

    @property
    def quickest_hours(self) -> float:
        """The least that a thaw of all takes: a part of the predicted time to recover."""
        return max((self.facts[name].quickest_hours for name in self.by_class if name in self.facts), default=0.0)

    def choices(self) -> Iterator[tuple[str, str, float, float]]:
        """Class, tier, hours and price for what is not asked for yet."""
        for name in self.by_class:
            waiting = [state for state in self.objects if state.storage_class == name and not state.thawing]
            for tier in self.facts[name].tiers if name in self.facts and waiting else ():
                yield name, tier.name, tier.hours, price(tier, len(waiting), sum(state.size for state in waiting))

    def document(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "objects": len(self.objects),
            "bytes": self.size,
            "thawing": self.thawing,
            "thawed": self.thawed,
            "thawed_until": self.thawed_until,
            "classes": [
                {"class": name, "objects": count, "bytes": size} for name, (count, size) in self.by_class.items()
            ],
            "tiers": [
                {"class": name, "tier": tier, "hours": hours, "price": round(cost, 2)}
                for name, tier, hours, cost in self.choices()
            ],
        }


class ColdBackup(ObjectArchived):
    """A backup needs objects that must be thawed first; ``need`` says which, how long it takes and what it costs."""

    def __init__(
        self, message: str, *, hint: str | None = None, need: ColdNeed | None = None, backup: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.need = need
        self.backup = backup


def packs_of(repository: Repository, manifest: Manifest) -> set[str]:
    """The data packs that a restore of a backup reads. Raises DamageError, StoreError."""
    tree = BackupTree(manifest, repository.reader())
    packs: set[str] = set()
    contents: set[bytes] = set()

    def place() -> None:
        found = repository.index.find_all(contents)
        if len(found) < len(contents):
            lost = next(content for content in contents if content not in found)
            raise DamageError(
                f"backup {manifest.id} needs content {lost.hex()[:16]}, which is in no index",
                hint="pgkeep repository reindex",
            )
        packs.update(location.pack for location in found.values())
        contents.clear()

    for file in tree.files():
        if file.entry.map_id is not None or file.entry.extents:
            contents.update(extent.id for extent in tree.extents(file))
            if len(contents) >= _CONTENTS_AT_ONCE:
                place()
    place()
    return {pack for pack in packs if pack.startswith("packs/data/")}


def wal_between(path: TimelineHistory, start: int, end: int, size: int) -> Iterator[str]:
    """The names of the whole segments on a path that hold the bytes ``[start, end)``; of a switch's, both timelines'."""
    position = segment_start(start, size)
    while position < end:
        timelines = {path.timeline_of(max(position, start)), path.timeline_of(min(position + size, end) - 1)}
        for timeline in sorted(timelines):
            yield segment_name(timeline, position, size)
        position = segment_start(position + size, size)


def suspects(
    repository: Repository, cold: Cold, manifest: Manifest, packs: Iterable[str], wal: Iterable[str]
) -> list[str]:
    """Of packs and WAL segments the objects that may lie in an archive, by the records."""
    archive = repository.wal(manifest.system_identifier)
    store = repository.store
    from_the_start = isinstance(store, ObjectStore) and store.address.options.get("storage_class") in ARCHIVES
    found = set(packs) if from_the_start else cold.archived.intersection(packs)
    last = {
        int(place.partition("/")[2], 16): name
        for place, name in cold.wal.items()
        if place.partition("/")[0] == str(manifest.system_identifier)
    }
    for name in wal:
        if name[:24] <= last.get(_timeline(name), ""):
            found.add(archive.object_name(name))
    return sorted(found)


def _timeline(name: str) -> int:
    try:
        return int(name[:8], 16)
    except ValueError:
        return 0


def archived_needs(
    classes: StorageClasses, names: Collection[str], facts: Mapping[str, ClassFacts] | None = None
) -> ColdNeed:
    """Which of these objects cannot be read now: the store is asked for each, side by side. Raises StoreError.

    ``facts`` are those of the configuration; None: as they come.
    """
    need = ColdNeed(facts=dict(CLASSES[classes.scheme] if facts is None else facts))

    def ask(name: str) -> ObjectState | None:
        try:
            return classes.state(name)
        except ObjectMissing:
            # whoever reads it says so, or finds its pieces
            return None

    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="storage class") as executor:
        for state in executor.map(ask, names):
            if state is None:
                continue
            if state.is_archived:
                need.objects.append(state)
            elif state.thawed_until is not None:
                need.thawed += 1
                need.thawed_until = min(state.thawed_until, need.thawed_until or state.thawed_until)
    return need


def refuse_cold(
    repository: Repository,
    manifest: Manifest,
    *,
    path: TimelineHistory | None = None,
    end: int | None = None,
    work: str = "restore",
) -> ColdNeed | None:
    """Before any work: raise ColdBackup where what a backup needs lies in an archive.

    ``path`` and ``end``: WAL is replayed along it up to there; without, the backup's own is all. Returns what was thawed, None
    where nothing is cold. Raises StoreError, DamageError.
    """
    classes = storage_classes(repository.store)
    if classes is None:
        return None
    cold = read_cold(repository.store)
    names = candidates(repository, cold, manifest, path=path, end=end)
    if not names:
        return None
    need = archived_needs(classes, names)
    if not need.objects:
        return need
    first = ", ".join(state.name for state in need.objects[:_SHOWN])
    what = " and ".join(
        f"{count:,} objects in {name}, {format_size(size)}" for name, (count, size) in need.by_class.items()
    )
    asked = f"; {need.thawing:,} of them are being thawed" if need.thawing else ""
    raise ColdBackup(
        f"backup {manifest.id} cannot be read to {work} it: it needs {what}, that must be thawed first ({first}"
        + (", …" if len(need.objects) > _SHOWN else "")
        + f"){asked}",
        hint=thaw_hint(manifest.id, need),
        need=need,
        backup=manifest.id,
    )


def thaw_hint(backup: str, need: ColdNeed) -> str:
    """What to do, with the choices that there are."""
    choices = "; ".join(tier_lines(need))
    return f"pgkeep thaw {backup} --wait" + (f" (--tier: {choices})" if choices else "")


def candidates(
    repository: Repository,
    cold: Cold,
    manifest: Manifest,
    *,
    path: TimelineHistory | None = None,
    end: int | None = None,
) -> list[str]:
    """The objects that a restore needs and that may be archived; reads nothing of the backup where nothing is cold."""
    store = repository.store
    archived_at_once = isinstance(store, ObjectStore) and store.address.options.get("storage_class") in ARCHIVES
    packs = packs_of(repository, manifest) if cold.archived or archived_at_once else set()
    wal = list(manifest.wal.segments)
    if path is not None and end is not None and cold.wal:
        wal += wal_between(path, manifest.start_lsn, end, manifest.wal.segment_size)
    return suspects(repository, cold, manifest, packs, wal)


def tier_lines(need: ColdNeed) -> list[str]:
    """The choices, a few words each: time and price as the table has them."""
    return [f"{tier} ({name}): {format_hours(hours)}, about ${cost:.2f}" for name, tier, hours, cost in need.choices()]


def format_hours(hours: float) -> str:
    """For people: ``about 5 h``."""
    return format_duration(hours * 3600)


def segment_of(name: str, size: int) -> tuple[int, int] | None:
    """Timeline and first byte of a whole segment's object; None for pieces, history files and the rest."""
    try:
        timeline, start = parse_segment_name(name, size)
    except ValueError:
        return None
    return timeline, int(start)
