"""From a question to a plan: which backup, which moment, and whether that is still what was asked for."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from pgkeep.cold.needs import ColdBackup
from pgkeep.config import Cluster, DrillSettings
from pgkeep.drill.findings import Findings
from pgkeep.drill.fingerprint import SourceFingerprints
from pgkeep.drill.incident import Incident
from pgkeep.drill.isolation import copy_settings
from pgkeep.drill.memory import read_drills
from pgkeep.drill.moment import random_moment, resolved, window_of
from pgkeep.drill.places import DrillPlace
from pgkeep.drill.predicted import measured_restores
from pgkeep.drill.programs import copy_programs
from pgkeep.drill.reached import timeline_now
from pgkeep.drill.record import DrillTarget, Phase, Rpo
from pgkeep.drill.request import DrillRequest
from pgkeep.drill.scenarios import Runbook
from pgkeep.errors import NotFoundError, PgkeepError, RecoveryError
from pgkeep.policy.rto import RtoModel, Work
from pgkeep.postgres.binaries import ServerBinaries
from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.plan import RestorePlan, RestoreRequest, choose_backup, make_plan
from pgkeep.restore.target import RecoveryTarget, latest
from pgkeep.units import format_duration
from pgkeep.wal.overview import Overview, orphan_remedy
from pgkeep.wal.stamps import receiver_stamps

__all__ = ["Planner", "option_of"]

_POLL = 0.5
"""Seconds between looks for WAL that is on its way."""


class Planner:
    """Plans one drill in one repository; what it finds out goes into ``found``. ``name`` is the repository's."""

    def __init__(
        self,
        request: DrillRequest,
        cluster: Cluster,
        repository: Repository,
        name: str,
        runbook: Runbook,
        found: Findings,
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self._request = request
        self._cluster = cluster
        self._repository = repository
        self._name = name
        self._runbook = runbook
        self._found = found
        self._progress = progress
        self._note = note
        self._overview: Overview | None = None

    def plan(
        self, place: DrillPlace, incident: Incident | None, fingerprints: SourceFingerprints | None
    ) -> RestorePlan:
        """Raises what `make_plan` raises; NotFoundError where the latest is not what is latest; RecoveryError for WAL that does not come."""
        plan = self._find_warm(place, incident, fingerprints)
        self._found.plan = plan
        self._refuse_older_timeline(plan)
        self._predict(plan)
        return plan

    def _find_warm(
        self, place: DrillPlace, incident: Incident | None, fingerprints: SourceFingerprints | None
    ) -> RestorePlan:
        """A random moment is looked for among those that need not be thawed first."""
        cold: dict[str, ColdBackup] = {}
        while True:
            try:
                wanted = self._wanted(incident, fingerprints, cold)
            except NotFoundError:
                if not cold:
                    raise
                raise next(iter(cold.values())) from None
            try:
                return self._find_plan(place, wanted, own=bool(incident or fingerprints))
            except ColdBackup as error:
                if not self._request.random or wanted[0] is None or wanted[0] == self._request.backup:
                    raise
                cold[wanted[0]] = error
                self._note(f"backup {wanted[0]} was passed over: it must be thawed before it can be restored")

    def rpo(self) -> Rpo | None:
        """How old the newest moment was that could be recovered when the drill began."""
        try:
            windows = self._window().windows
        except PgkeepError:
            return None
        newest = max((window.end_time for window in windows), default=None)
        if newest is None:
            return None
        seconds = max((self._found.started - newest).total_seconds(), 0.0)
        return Rpo(seconds=seconds, objective=self._cluster.objectives.rpo, newest=newest)

    def _wanted(
        self, incident: Incident | None, fingerprints: SourceFingerprints | None, cold: Collection[str]
    ) -> tuple[str | None, RecoveryTarget | None]:
        """Backup and target; sets what is recorded of the target."""
        request, backup = self._request, self._request.backup
        if incident is not None:
            self._found.target = DrillTarget(
                how="given", asked=f"just before {incident.done}", kind=incident.target.kind
            )
            return None, incident.target
        if fingerprints is not None:
            self._found.target = DrillTarget(how="compared", asked="the moment of the comparison", kind="name")
            if fingerprints.restore_point is not None:
                return backup, RecoveryTarget(kind="name", value=fingerprints.restore_point)
            return backup, RecoveryTarget(kind="lsn", value=fingerprints.lsn, exclusive=True)
        if self._runbook.scenario == "newest-damaged":
            backup = self._before_newest()
        if request.random:
            overview = self._window()
            manifests = list(self._repository.catalog.read_all(self._cluster.name))
            moment = random_moment(overview, manifests, self._found.seed, backup, besides=cold)
            self._found.target = DrillTarget(
                how="random", asked=f"--random --seed {self._found.seed}", kind=moment.target.kind
            )
            return moment.backup, moment.target
        if request.target is not None:
            written = request.written or str(request.target)
            self._found.target = DrillTarget(how="given", asked=written, kind=request.target.kind)
            return backup, request.target
        self._found.target = DrillTarget(how="latest", asked="latest", kind="latest")
        return backup, latest

    def _before_newest(self) -> str:
        """The backup that a restore falls back on where the newest is damaged."""
        manifests = list(self._repository.catalog.read_all(self._cluster.name))
        if len(manifests) < 2:
            raise NotFoundError(
                f"cluster {self._cluster.name} has no backup before the newest, so that nothing is left when that is damaged",
                hint="keep more than one: pgkeep backup --full",
            )
        newest, before = manifests[-1], manifests[-2]
        with self._runbook.step(
            f"The newest backup, {newest.id}, is taken for damaged: pass it over", "pgkeep verify latest"
        ):
            self._note(f"backup {newest.id} was passed over, as if it were damaged")
        return before.id

    def _find_plan(
        self, place: DrillPlace, wanted: tuple[str | None, RecoveryTarget | None], *, own: bool
    ) -> RestorePlan:
        """``own``: the target is a moment that the drill has made itself, whose WAL is still on its way."""
        backup, target = wanted
        drill = self._cluster.drill
        request = RestoreRequest(
            cluster=self._cluster.name,
            backup=backup,
            recovery=target,
            target=str(place.data),
            start=True,
            jobs=self._found.jobs,
            spool=None if self._runbook.alone else str(self._cluster.spool),
            prefetch=self._cluster.wal.prefetch,
            sockets=str(place.sockets),
        )
        programs = functools.cache(lambda major: copy_programs(drill, place, major, self._note))
        deadline = time.monotonic() + drill.wal_wait
        self._progress.phase("planning")
        with self._runbook.step("Find the backup and the moment to go back to", "pgkeep list --window"):
            while True:
                # to wait for WAL is no part of a restore
                began = time.monotonic()
                try:
                    plan = _plan_apart(request, self._repository, place, drill, programs)
                    break
                except UnreachableTarget as error:
                    if not own:
                        raise
                    if time.monotonic() > deadline:
                        raise RecoveryError(
                            f"the WAL of a moment that the drill has just made did not come into the repository within"
                            f" {format_duration(drill.wal_wait)}: {error}",
                            hint="pgkeep wal status says what brings the WAL, and why it is late",
                        ) from None
                    time.sleep(_POLL)
        self._found.phases.append(Phase(name="plan", seconds=time.monotonic() - began))
        assert self._found.target is not None
        self._found.target = resolved(self._found.target, plan.recovery)
        self._found.notes += plan.notes
        return plan

    def _refuse_older_timeline(self, plan: RestorePlan) -> None:
        """The latest is not what is latest on a timeline that the cluster has left."""
        target, timeline = plan.recovery.target, plan.recovery.path.timeline
        if target.kind != "latest" or target.timeline is not None:
            return
        overview = self._window()
        known, newest = overview.inventory, overview.inventory.newest_timeline
        now = None if self._runbook.alone else timeline_now(self._cluster.dsn, plan.manifest.system_identifier)
        if timeline >= max(newest, now or 0):
            return
        if now is not None and now > newest:
            message = f"the cluster is on timeline {now}, and the repository has nothing of it: a recovery ends on timeline {timeline}"
            hint: str | None = "pgkeep wal status says what brings the WAL"
        elif not known.has_history(newest):
            message = f"timeline {newest} cannot be reached, since its history file is missing: a recovery ends on timeline {timeline}"
            hint = orphan_remedy(newest)
        else:
            message = f"timeline {newest} cannot be reached from any backup: a recovery ends on timeline {timeline}"
            hint = "pgkeep backup takes one on it"
        raise NotFoundError(message, hint=hint)

    def _window(self) -> Overview:
        if self._overview is None:
            stamps = [] if self._runbook.alone else receiver_stamps(Path(self._cluster.spool))
            self._overview = window_of(self._repository, self._cluster.name, stamps)
        return self._overview

    def _predict(self, plan: RestorePlan) -> None:
        """What a restore like this one should take, by what earlier drills measured."""
        manifest = plan.manifest
        records = read_drills(self._repository, self._cluster.name, self._note).records
        measured = measured_restores(records, self._name)
        work = Work(manifest.logical_size, manifest.stored_size, plan.recovery.wal_bytes)
        self._found.prediction = RtoModel(measured).predict(work) if measured else None


def _plan_apart(
    request: RestoreRequest,
    repository: Repository,
    place: DrillPlace,
    drill: DrillSettings,
    programs: Callable[[int], ServerBinaries],
) -> RestorePlan:
    """Every tablespace goes below the drill's own directory, and the settings keep the copy to itself."""
    manifest, _ = choose_backup(request, repository)
    settings = copy_settings(drill.port, manifest.server_version // 10000, drill.settings)
    apart = {os.fsdecode(each.location): str(place.tablespace(each.oid)) for each in manifest.tablespaces}
    return make_plan(msgspec.structs.replace(request, tablespaces=apart, settings=settings), repository, programs)


def option_of(target: RecoveryTarget) -> str:
    """The target as a restore is told it."""
    words = {"time": "--to", "lsn": "--to-lsn", "xid": "--to-xid", "name": "--to-name"}
    if target.kind not in words:
        return f"--{target.kind}"
    return f"{words[target.kind]} '{target.value}'" + (" --exclusive" if target.exclusive else "")
