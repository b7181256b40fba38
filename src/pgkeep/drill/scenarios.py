"""The runbooks of the exercises, step by step: a drill says each before it does it, with the command that does it by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pgkeep.config import Cluster
from pgkeep.drill.record import Outcome, Step
from pgkeep.drill.request import DrillRequest, OnStep, Scenario
from pgkeep.errors import UsageError

__all__ = ["STAGED", "Runbook", "refuse_contradictions"]

STAGED: frozenset[Scenario] = frozenset({"table-dropped", "bad-migration"})
"""Those that make an incident of their own on the live server."""

_ALONE: frozenset[Scenario] = frozenset({"server-lost", "region-lost", "key-from-paper"})
"""Those in which the live server is gone, and is not asked."""


def refuse_contradictions(request: DrillRequest, cluster: Cluster) -> None:
    """Raises UsageError for what cannot be meant together."""
    scenario = request.scenario
    given = [
        name
        for name, is_given in (
            ("a target", request.target is not None),
            ("--random", request.random),
            ("--compare", request.compare),
            ("--backup", request.backup is not None),
        )
        if is_given
    ]
    if request.random and request.target is not None:
        raise UsageError("--random chooses the target, and one is named", hint="leave one of them out")
    if request.seed is not None and not request.random:
        raise UsageError("--seed says which random target, and none is asked for", hint="add --random")
    if request.compare and (request.random or request.target is not None):
        raise UsageError(
            "--compare holds the copy against the live cluster at a moment that it marks itself",
            hint="leave the target out",
        )
    if scenario in STAGED and given:
        raise UsageError(
            f"scenario {scenario} makes its own incident, and recovers to just before it", hint=f"leave {given[0]} out"
        )
    if scenario in _ALONE and request.compare:
        raise UsageError(f"in scenario {scenario} the live server is gone, so nothing can be compared with it")
    if scenario == "newest-damaged" and request.backup is not None:
        raise UsageError("scenario newest-damaged takes the backup before the newest", hint="leave --backup out")
    if scenario == "region-lost" and cluster.drill.offsite is None and len(cluster.repositories) < 2:
        raise UsageError(
            f"cluster {cluster.name} has one repository: where its region is lost, everything is",
            hint='add one elsewhere: repositories = ["main", "offsite"], then pgkeep repository create offsite',
        )


class Runbook:
    """The steps of a scenario as they are done; none outside of scenarios."""

    def __init__(self, request: DrillRequest, cluster: Cluster, on_step: OnStep | None) -> None:
        self.scenario = request.scenario
        self._cluster = cluster.name
        self._on_step = on_step
        self.steps: list[Step] = []

    @property
    def alone(self) -> bool:
        """Whether the live server is gone in this exercise, and is left alone."""
        return self.scenario in _ALONE

    @contextmanager
    def step(self, text: str, command: str = "") -> Iterator[None]:
        """A step that is done within; it has failed where that raises."""
        if self.scenario is None:
            yield
            return
        began = time.monotonic()
        outcome: Outcome = "failed"
        step = Step(text=text, command=command)
        if self._on_step is not None:
            self._on_step(step)
        try:
            yield
            outcome = "passed"
        finally:
            self.steps.append(Step(text=text, command=command, outcome=outcome, seconds=time.monotonic() - began))

    def by_hand(self, text: str, command: str = "") -> None:
        """A step that an exercise says and does not do."""
        if self.scenario is not None:
            step = Step(text=text, command=command, outcome="skipped")
            if self._on_step is not None:
                self._on_step(step)
            self.steps.append(step)

    def last_words(self) -> None:
        """What would be done next, were it no exercise."""
        if self.scenario == "table-dropped":
            self.by_hand(
                "Bring the table to the live cluster; its newer rows stay if you carry them",
                "pg_dump --table SCHEMA.TABLE RESTORED | psql LIVE; or pgkeep restore --in-place --to TIME --carry TABLE",
            )
        elif self.scenario == "bad-migration":
            self.by_hand(
                "Put the whole cluster back to before the migration, or bring back the tables that it spoiled",
                f"pgkeep restore --cluster {self._cluster} --in-place --to-xid XID --exclusive",
            )
        elif self.scenario is not None:
            self.by_hand(
                "Lead the clients to the new server", "by the name server, the pooler, or the clients' settings"
            )
            self.by_hand(
                "Take a backup of the new server at once, and receive its WAL", "pgkeep init DSN; pgkeep backup"
            )
