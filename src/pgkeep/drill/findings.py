"""What a drill finds out as it goes, and the record that is made of it, however far it came."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgkeep.config import Cluster
from pgkeep.drill.record import (
    Check,
    Comparison,
    DrillRecord,
    DrillTarget,
    Phase,
    Reached,
    Rpo,
    Rto,
    Step,
    new_drill_id,
)
from pgkeep.drill.request import DrillRequest
from pgkeep.drill.session import Copy
from pgkeep.errors import PgkeepError
from pgkeep.policy.rto import Prediction
from pgkeep.restore.plan import RestorePlan
from pgkeep.restore.recover import Recovered
from pgkeep.units import utc_now

__all__ = ["KEEP_HINT", "Findings"]

KEEP_HINT = "pgkeep drill --keep leaves the copy, to be looked into"


@dataclass
class Findings:
    """``rto`` is what was measured, in seconds; ``prediction`` was made before. All is None that the drill did not come to."""

    seed: int
    jobs: int
    started: datetime = field(default_factory=utc_now)
    id: str = ""
    system_identifier: int = 0
    plan: RestorePlan | None = None
    copy: Copy | None = None
    target: DrillTarget | None = None
    reached: Reached | None = None
    recovered: Recovered | None = None
    prediction: Prediction | None = None
    rto: float | None = None
    rpo: Rpo | None = None
    comparison: Comparison | None = None
    phases: list[Phase] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.id or new_drill_id(self.started)

    def record(
        self,
        request: DrillRequest,
        cluster: Cluster,
        repository: str,
        steps: Sequence[Step],
        failure: PgkeepError | None,
    ) -> DrillRecord:
        """The record; ``failure`` None where it passed."""
        plan, recovered, copy = self.plan, self.recovered, self.copy
        manifest = None if plan is None else plan.manifest
        return DrillRecord(
            id=self.id,
            cluster=cluster.name,
            system_identifier=self.system_identifier,
            repository=repository,
            started=self.started,
            ended=utc_now(),
            state="passed" if failure is None else "failed",
            asked_by=request.asked_by or _asker(),
            reason=request.reason,
            scenario=None if request.scenario is None else request.scenario.replace("-", " "),
            plan=request.plan,
            seed=self.seed,
            backup="" if manifest is None else manifest.id,
            backup_kind="" if manifest is None else manifest.kind,
            backup_started=None if manifest is None else manifest.started,
            target=self.target,
            reached=self.reached,
            server_major=0 if plan is None else plan.major,
            server_version="" if copy is None else copy.binaries.version_text,
            server_from="" if plan is None or plan.server is None else plan.server.place,
            host=socket.gethostname(),
            logical_bytes=0 if manifest is None else manifest.logical_size,
            fetched_bytes=0 if manifest is None else manifest.stored_size,
            wal_bytes=0 if plan is None else plan.recovery.wal_bytes,
            wal_waited=0.0 if recovered is None else recovered.waited,
            jobs=self.jobs,
            phases=_merged(self.phases),
            checks=self.checks,
            comparison=self.comparison,
            rpo=self.rpo,
            rto=self._rto(cluster.objectives.rto),
            steps=list(steps),
            cause=None if failure is None else str(failure),
            remedy=None if failure is None else failure.hint or KEEP_HINT,
            exit_code=0 if failure is None else failure.exit_code,
            notes=self.notes,
        )

    def _rto(self, objective: float) -> Rto | None:
        if self.rto is None:
            return None
        if self.prediction is None:
            return Rto(measured=self.rto, objective=objective)
        predicted = self.prediction
        return Rto(
            measured=self.rto, predicted=predicted.seconds, low=predicted.low, high=predicted.high, objective=objective
        )


def _merged(phases: Sequence[Phase]) -> list[Phase]:
    """One for each name: what is done in several goes, as checks of a running and of a stopped server, took so long in all."""
    merged: dict[str, Phase] = {}
    for phase in phases:
        before = merged.get(phase.name, Phase(name=phase.name, seconds=0.0))
        merged[phase.name] = Phase(
            name=phase.name, seconds=before.seconds + phase.seconds, bytes=before.bytes + phase.bytes
        )
    return list(merged.values())


def _asker() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"uid {os.geteuid()}@{socket.gethostname()}"
