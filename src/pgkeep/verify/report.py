"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Damage", "VerifyReport"]


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged object, and the cluster's file that needs it where that is known."""

    object_name: str | None
    path: str | None
    message: str


@dataclass
class VerifyReport:
    """Counts of one verification; sizes in bytes. ``remembered`` were checked lately and passed over.

    ``cold`` are backups, and ``cold_objects`` objects, that were passed over since they must be thawed to be read.
    """

    objects: int = 0
    object_bytes: int = 0
    backups: list[str] = field(default_factory=list)
    files: int = 0
    file_bytes: int = 0
    pages: int = 0
    remembered: int = 0
    leftovers: int = 0
    cold: list[str] = field(default_factory=list)
    cold_objects: int = 0
    damage: list[Damage] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage
