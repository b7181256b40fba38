"""What storage classes cost in time and money: the table that plans and estimates are made from, and that the configuration can correct.

Hours: Amazon S3 User Guide, "Understanding archive retrieval options"; Azure, "Blob rehydration from the archive tier". Shortest stays:
"Amazon S3 storage classes"; Google Cloud, "Storage classes"; Azure, "Access tiers for blob data". Prices are list prices in US dollars, for
us-east-1, Google's US multi-region and Azure's East US in 2026, of reading back alone: not of the network, and not of storage meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pgkeep.repository.storage_classes import ARCHIVES

__all__ = ["CLASSES", "SMALLEST", "ClassFacts", "Tier", "TierChange", "corrected", "price"]

SMALLEST = 128 << 10
"""Bytes: what is smaller costs more in a cold class than in a hot one (overhead of 40 KB an object in an archive, or a minimum charge)."""

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Tier:
    """A way of thawing: ``hours`` until the last object is there, price for each GiB and for each 1000 objects."""

    name: str
    hours: float
    per_gib: float
    per_1000: float


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """A storage class. ``minimum_days``: what goes earlier is paid for all the same. ``tiers``, quickest first; empty where it can be
    read at once, and then ``per_gib`` is what reading costs.
    """

    name: str
    minimum_days: int
    per_gib: float = 0.0
    tiers: tuple[Tier, ...] = ()

    @property
    def is_archive(self) -> bool:
        """Whether it takes a thaw."""
        return self.name in ARCHIVES

    @property
    def quickest_hours(self) -> float:
        """Until all of it can be read, at the best price that time can be bought for."""
        return min((tier.hours for tier in self.tiers), default=0.0)

    def tier(self, name: str) -> Tier | None:
        """A tier by name, in any case."""
        return next((tier for tier in self.tiers if tier.name.lower() == name.lower()), None)


CLASSES: Mapping[str, Mapping[str, ClassFacts]] = {
    "s3": {
        "STANDARD_IA": ClassFacts("STANDARD_IA", 30, 0.01),
        "ONEZONE_IA": ClassFacts("ONEZONE_IA", 30, 0.01),
        "GLACIER_IR": ClassFacts("GLACIER_IR", 90, 0.03),
        "GLACIER": ClassFacts(
            "GLACIER",
            90,
            tiers=(
                Tier("Expedited", 5 / 60, 0.03, 10.0),
                Tier("Standard", 5, 0.01, 0.05),
                Tier("Bulk", 12, 0.0, 0.0),
            ),
        ),
        "DEEP_ARCHIVE": ClassFacts(
            "DEEP_ARCHIVE", 180, tiers=(Tier("Standard", 12, 0.02, 0.10), Tier("Bulk", 48, 0.0025, 0.025))
        ),
    },
    "gs": {
        "NEARLINE": ClassFacts("NEARLINE", 30, 0.01),
        "COLDLINE": ClassFacts("COLDLINE", 90, 0.02),
        "ARCHIVE": ClassFacts("ARCHIVE", 365, 0.05),
    },
    "az": {
        "Cool": ClassFacts("Cool", 30, 0.01),
        "Cold": ClassFacts("Cold", 90, 0.03),
        "Archive": ClassFacts("Archive", 180, tiers=(Tier("High", 1, 0.13, 65.0), Tier("Standard", 15, 0.022, 6.5))),
    },
}
"""By kind of store, then by name."""


@dataclass(frozen=True, slots=True)
class TierChange:
    """What the configuration says of a tier; None where it says nothing."""

    hours: float | None = None
    per_gib: float | None = None
    per_1000: float | None = None


def corrected(facts: ClassFacts, changes: Mapping[str, TierChange]) -> ClassFacts:
    """A class with what the user knows better, by the tiers' names in any case."""
    by_name = {name.lower(): change for name, change in changes.items()}

    def tier(old: Tier) -> Tier:
        change = by_name.get(old.name.lower(), TierChange())
        return Tier(
            old.name,
            old.hours if change.hours is None else change.hours,
            old.per_gib if change.per_gib is None else change.per_gib,
            old.per_1000 if change.per_1000 is None else change.per_1000,
        )

    return replace(facts, tiers=tuple(tier(old) for old in facts.tiers))


def price(tier: Tier, objects: int, size: int) -> float:
    """What thawing so many objects of so many bytes costs."""
    return tier.per_gib * size / _GIB + tier.per_1000 * objects / 1000
