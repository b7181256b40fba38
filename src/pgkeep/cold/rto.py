"""Whether rules for cold storage and the objectives for recovery go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pgkeep.cold.prices import ClassFacts
from pgkeep.units import format_duration

__all__ = ["ColdRule", "Objective", "conflicts"]


@dataclass(frozen=True, slots=True)
class ColdRule:
    """What is older than ``after`` seconds goes to ``storage_class``."""

    after: float
    storage_class: str


@dataclass(frozen=True, slots=True)
class Objective:
    """Of a cluster: within ``rto`` seconds it must be back, at every moment of the last ``span`` seconds."""

    cluster: str
    rto: float
    span: float


def conflicts(rules: Sequence[ColdRule], facts: Mapping[str, ClassFacts], objectives: Iterable[Objective]) -> list[str]:
    """A sentence for each objective that a rule would break. The newest backup is never moved, so that a span of 0 is always held."""
    found = []
    for objective in objectives:
        for rule in rules:
            known = facts.get(rule.storage_class)
            takes = 0.0 if known is None else known.quickest_hours * 3600
            if takes > objective.rto and rule.after < objective.span:
                found.append(
                    f"cluster {objective.cluster} must be back within {format_duration(objective.rto)} for"
                    f" {format_duration(objective.span)}, and what is older than {format_duration(rule.after)} would first"
                    f" be thawed from {rule.storage_class} for {format_duration(takes)} at the least"
                )
    return found
