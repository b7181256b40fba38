"""What a drill is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, get_args

import msgspec

from pgkeep.config import DrillScenario
from pgkeep.drill.record import Step
from pgkeep.repository import Repository
from pgkeep.restore.target import RecoveryTarget

__all__ = ["SCENARIOS", "DrillRequest", "OnStep", "Scenario", "Source"]

Scenario: TypeAlias = DrillScenario
SCENARIOS: tuple[Scenario, ...] = get_args(DrillScenario)

OnStep: TypeAlias = Callable[[Step], None]
"""Is told of a step of the runbook before it is done."""


class DrillRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``backup`` and ``target`` as for a restore; None: the best backup, the end of the WAL. ``written`` is the target as it was asked for.

    ``random``: a moment of the recovery window instead, chosen by ``seed`` (None: one is made up, and recorded). ``full``: checks that can be
    done in part are done in whole. ``keep`` leaves the restored directory. ``compare``: hold it against the live cluster, at one LSN.
    ``plan`` is the plan of the configuration that it is done for.
    """

    backup: str | None = None
    target: RecoveryTarget | None = None
    written: str = ""
    random: bool = False
    seed: int | None = None
    scenario: Scenario | None = None
    full: bool = False
    keep: bool = False
    compare: bool = False
    jobs: int | None = None
    plan: str | None = None
    asked_by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A repository of the cluster by its name; ``open`` raises RepositoryError, KeyFailure, StoreError."""

    name: str
    open: Callable[[], Repository]
