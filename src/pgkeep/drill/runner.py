"""A drill: a backup is restored where nobody else can reach it, recovered, looked through, and thrown away; a record stays.

What a drill finds out is its record: also that a backup is damaged, a key is wrong, WAL is missing. Only what was asked for wrongly, and an
interruption, are raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import psycopg

from pgkeep.config import Cluster
from pgkeep.copies.several import SeveralRepositories, nearest
from pgkeep.drill.checking import asked_of, checked_nothing, failure_of, refuse_nothing, stopped_check
from pgkeep.drill.compare import begin_comparison, compare
from pgkeep.drill.findings import KEEP_HINT, Findings
from pgkeep.drill.fingerprint import SourceFingerprints
from pgkeep.drill.incident import Incident, staged_incident
from pgkeep.drill.isolation import copy_settings, cut_off, silence_libraries
from pgkeep.drill.memory import read_drills, remember
from pgkeep.drill.moment import new_seed, random_moment, resolved, window_of
from pgkeep.drill.places import DrillPlace, drill_place, refuse_source
from pgkeep.drill.predicted import measured_restores
from pgkeep.drill.reached import hold_reached, timeline_now
from pgkeep.drill.record import (
    Check,
    DrillRecord,
    DrillTarget,
    Phase,
    PhaseName,
    Rpo,
)
from pgkeep.drill.request import DrillRequest, OnStep, Source
from pgkeep.drill.scenarios import STAGED, Runbook, refuse_contradictions
from pgkeep.drill.session import Copy, reason_of
from pgkeep.errors import (
    BusyError,
    ConfigError,
    Interrupted,
    NotFoundError,
    PgkeepError,
    RecoveryError,
    TargetError,
    UsageError,
)
from pgkeep.policy.rto import RtoModel, Work
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.connection import connect_sql
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.restore.job import RestoreOutcome, write_backup
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.plan import RestorePlan, RestoreRequest, choose_backup, make_plan
from pgkeep.restore.private_server import superuser_dsn
from pgkeep.restore.recover import Recovered, recovered_server
from pgkeep.restore.target import RecoveryTarget, latest
from pgkeep.units import format_duration
from pgkeep.wal.overview import Overview, orphan_remedy
from pgkeep.wal.stamps import receiver_stamps

__all__ = ["run_drill"]

_POLL = 0.5
"""Seconds between looks for WAL that is on its way."""


def run_drill(
    request: DrillRequest,
    cluster: Cluster,
    sources: Sequence[Source],
    progress: Progress | None = None,
    *,
    on_step: OnStep | None = None,
) -> DrillRecord:
    """Do it, seal the record in the repository that was read from, and return it.

    ``sources`` are the cluster's repositories in its order. Raises UsageError and ConfigError for what cannot be asked, BusyError and
    Interrupted; everything else is the record's cause.
    """
    return _Drill(request, cluster, sources, progress or Silent(), on_step).run()


class _Drill:
    def __init__(
        self,
        request: DrillRequest,
        cluster: Cluster,
        sources: Sequence[Source],
        progress: Progress,
        on_step: OnStep | None,
    ) -> None:
        refuse_contradictions(request, cluster)
        refuse_nothing(cluster, request)
        self._request = request
        self._cluster = cluster
        self._sources = _left_over(request, cluster, sources)
        self._progress = progress
        self._runbook = Runbook(request, cluster, on_step)
        seed = request.seed if request.seed is not None else new_seed()
        self._found = Findings(seed, request.jobs or cluster.drill.jobs or os.cpu_count() or 1)
        self._names: dict[str, str] = {}
        self._opened: list[Repository] = []
        self._read_from: Repository | None = None
        self._overview: Overview | None = None

    def run(self) -> DrillRecord:
        failure: PgkeepError | None = None
        try:
            self._open()
            refuse_source(self._cluster, self._opened, ask=not self._runbook.alone)
            self._prove()
            failure = failure_of(self._found.checks) or checked_nothing(self._found.checks)
        except (UsageError, ConfigError, BusyError, Interrupted):
            raise
        except PgkeepError as error:
            failure = error
        except psycopg.Error as error:
            failure = RecoveryError(f"the restored server broke off: {reason_of(error)}", hint=KEEP_HINT)
        except OSError as error:
            failure = TargetError(f"the drill's directory cannot be used: {error}", hint=KEEP_HINT)
        return self._remember(self._record(failure))

    def _note(self, text: str) -> None:
        self._found.notes.append(text)
        self._progress.note(text)

    @contextmanager
    def _phase(self, name: PhaseName, size: int = 0) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._found.phases.append(Phase(name=name, seconds=time.monotonic() - began, bytes=size))

    # From the question to a plan

    def _open(self) -> None:
        failures = []
        names = " and ".join(source.name for source in self._sources)
        with self._runbook.step(self._opening(), f"pgkeep list --repository {self._sources[0].name}"):
            for source in self._sources:
                try:
                    repository = source.open()
                    repository.keys.require_reading()
                except PgkeepError as error:
                    failures.append(error)
                    continue
                self._opened.append(repository)
                self._names[repository.store.url] = source.name
            if not self._opened:
                raise failures[0] if failures else NotFoundError(f"there is no repository {names}")
        for failure in failures:
            self._note(f"not every repository can be opened: {failure}")

    def _opening(self) -> str:
        first = self._sources[0].name
        return {
            "key-from-paper": f"Open repository {first} with the recovery key, as it was typed in from the sheet",
            "region-lost": f"Take stock of what is left: repository {first} alone",
        }.get(str(self._runbook.scenario), "Take stock of what the repositories hold")

    def _prove(self) -> None:
        cluster = self._cluster
        with ExitStack() as stack:
            incident = self._stage(stack)
            fingerprints = self._begin_comparison()
            directory = cluster.drill_directory
            began = 0.0
            try:
                with drill_place(
                    directory, self._found.id, cluster.name, keep=self._request.keep, note=self._note
                ) as place:
                    try:
                        self._restore(place, incident, fingerprints)
                    finally:
                        began = time.monotonic()
            finally:
                if began:
                    self._found.phases.append(Phase(name="clean up", seconds=time.monotonic() - began))
            if self._request.keep:
                self._note(f"the copy is kept in {place.root}; remove it when you have seen enough: rm -r {place.root}")
        self._runbook.last_words()

    def _stage(self, stack: ExitStack) -> Incident | None:
        if self._runbook.scenario not in STAGED:
            return None
        drops = self._runbook.scenario == "table-dropped"
        what = "drop it" if drops else "spoil all its rows in one transaction"
        with self._runbook.step(f"On the live server, make a table of the drill's own, and {what}"):
            incident = stack.enter_context(staged_incident(self._cluster.dsn, self._found.id, drops=drops))
        self._note(f"done on the live server, to a table of the drill's own: {incident.done}")
        return incident

    def _begin_comparison(self) -> SourceFingerprints | None:
        if not self._request.compare and not (self._cluster.drill.compare and self._plain):
            return None
        with self._phase("compare"):
            return begin_comparison(self._cluster.dsn, progress=self._progress)

    @property
    def _plain(self) -> bool:
        """Whether nothing was asked that stands against what the configuration would have compared."""
        request = self._request
        return request.scenario is None and request.target is None and not request.random

    def _restore(self, place: DrillPlace, incident: Incident | None, fingerprints: SourceFingerprints | None) -> None:
        rto_began = time.monotonic()
        with self._phase("plan"):
            plan, repository = self._find_plan(
                place, self._wanted(incident, fingerprints), own=bool(incident or fingerprints)
            )
        self._found.plan, self._read_from = plan, repository
        self._refuse_older_timeline(plan, repository)
        self._predict(plan, repository)
        chosen = f"backup {plan.manifest.id}"
        command = f"pgkeep restore {plan.manifest.id} --target-dir DIR {_option(plan.recovery.target)} --start"
        with self._runbook.step(f"Restore {chosen}, and recover to {plan.recovery.target}", command):
            with self._phase("write", plan.manifest.logical_size):
                write_backup(plan, repository, self._progress, RestoreOutcome(plan))
            for note in silence_libraries(plan.target):
                self._note(note)
            stack = ExitStack()
            recovered = stack.enter_context(self._recovering(plan, repository))
        with stack:
            self._found.rto = time.monotonic() - rto_began
            with self._runbook.step(
                "See that what came back is whole, and is what it should be", "pg_amcheck --all; psql"
            ):
                self._look(recovered, incident, fingerprints)
        if recovered.state == "promoted" and self._found.copy is not None:
            with self._phase("checks"):
                self._found.checks += stopped_check(self._found.copy, self._cluster, self._progress)

    def _wanted(
        self, incident: Incident | None, fingerprints: SourceFingerprints | None
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
            overview = self._window(self._opened[0])
            manifests = list(self._opened[0].catalog.read_all(self._cluster.name))
            moment = random_moment(overview, manifests, self._found.seed, backup)
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
        manifests = list(self._opened[0].catalog.read_all(self._cluster.name))
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
    ) -> tuple[RestorePlan, Repository]:
        """``own``: the target is a moment that the drill has made itself, whose WAL is still on its way."""
        backup, target = wanted
        drill = self._cluster.drill
        request = RestoreRequest(
            cluster=self._cluster.name,
            backup=backup,
            recovery=target,
            target=str(place.data),
            settings=copy_settings(drill.port, drill.settings),
            start=True,
            jobs=self._found.jobs,
            spool=None if self._runbook.alone else str(self._cluster.spool),
            prefetch=self._cluster.wal.prefetch,
            sockets=str(place.sockets),
        )
        deadline = time.monotonic() + drill.wal_wait
        self._progress.phase("planning")
        with self._runbook.step("Find the backup and the moment to go back to", "pgkeep list --window"):
            while True:
                try:
                    plan, repository = nearest(self._opened, lambda each: _plan_apart(request, each, place), self._note)
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
        assert self._found.target is not None
        self._found.target = resolved(self._found.target, plan.recovery)
        self._found.notes += plan.notes
        return plan, repository

    def _refuse_older_timeline(self, plan: RestorePlan, repository: Repository) -> None:
        """The latest is not what is latest on a timeline that the cluster has left."""
        target, timeline = plan.recovery.target, plan.recovery.path.timeline
        if target.kind != "latest" or target.timeline is not None:
            return
        overview = self._window(repository)
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

    def _window(self, repository: Repository) -> Overview:
        if self._overview is None:
            stamps = [] if self._runbook.alone else receiver_stamps(Path(self._cluster.spool))
            self._overview = window_of(repository, self._cluster.name, stamps)
        return self._overview

    def _predict(self, plan: RestorePlan, repository: Repository) -> None:
        """What a restore like this one should take, by what earlier drills measured."""
        manifest = plan.manifest
        records = read_drills(repository, self._cluster.name, self._note).records
        measured = measured_restores(records, self._name_of(repository))
        work = Work(manifest.logical_size, manifest.stored_size, plan.recovery.wal_bytes)
        self._found.prediction = RtoModel(measured).predict(work) if measured else None

    # Recovery, and what came of it

    @contextmanager
    def _recovering(self, plan: RestorePlan, repository: Repository) -> Iterator[Recovered]:
        repositories = repository.repositories if isinstance(repository, SeveralRepositories) else [repository]
        began, ended = time.monotonic(), None
        try:
            with recovered_server(plan, repositories, self._progress) as recovered:
                seconds = recovered.seconds
                self._found.phases += [
                    Phase(name="start", seconds=recovered.starting),
                    Phase(name="replay", seconds=seconds["replay"] - recovered.starting, bytes=plan.recovery.wal_bytes),
                ]
                if "promote" in seconds:
                    self._found.phases.append(Phase(name="promote", seconds=seconds["promote"]))
                self._found.recovered = recovered
                with self._phase("first query"):
                    self._first_query(plan, recovered)
                ended = time.monotonic()
                yield recovered
        except RecoveryError as error:
            if ended is None:
                self._found.checks.append(
                    Check(
                        name="reached",
                        kind="reached",
                        outcome="failed",
                        detail=str(error),
                        remedy=error.hint,
                        seconds=time.monotonic() - began,
                        counted=1,
                        unit="targets",
                    )
                )
            raise

    def _first_query(self, plan: RestorePlan, recovered: Recovered) -> None:
        dsn = superuser_dsn(recovered.dsn, plan.target)
        with connect_sql(dsn) as connection:
            connection.execute("SELECT count(*) FROM pg_class").fetchone()
        self._found.copy = Copy(
            dsn=dsn,
            data_directory=plan.target,
            binaries=find_binaries(plan.major),
            databases=Copy.databases_of(dsn),
            jobs=self._found.jobs,
            seed=self._found.seed,
            budget=None if self._request.full else self._cluster.drill.sample_for,
        )

    def _look(self, recovered: Recovered, incident: Incident | None, fingerprints: SourceFingerprints | None) -> None:
        assert self._found.plan is not None
        assert self._found.copy is not None
        self._found.reached, check = hold_reached(self._found.plan.recovery, recovered)
        self._found.checks.append(check)
        if fingerprints is not None:
            with self._phase("compare"):
                self._compare(fingerprints, self._found.copy)
        with self._phase("checks"):
            for note in cut_off(self._found.copy):
                self._note(note)
            if incident is not None:
                self._found.checks.append(incident.check(self._found.copy))
            self._found.checks += asked_of(self._found.copy, self._cluster, self._progress)

    def _compare(self, fingerprints: SourceFingerprints, copy: Copy) -> None:
        found = compare(
            fingerprints, copy.dsn, source=self._cluster.dsn, jobs=self._found.jobs, progress=self._progress
        )
        self._found.comparison = found
        differing = [table.name for table in found.tables if not table.equal]
        rows = sum(table.rows for table in found.tables)
        if found.equal:
            detail = f"{len(found.tables):,} tables with {rows:,} rows are the same at {found.lsn}"
        elif differing:
            detail = f"the copy differs from the live cluster at {found.lsn}: {', '.join(differing[:3])}"
        else:
            detail = "there is no table that could be compared"
        self._found.checks.append(
            Check(
                name="comparison",
                kind="comparison",
                outcome="passed" if found.equal else "failed",
                detail=detail,
                remedy=None
                if found.equal
                else "the record names the rows: pgkeep drill report latest; then pgkeep verify",
                seconds=found.seconds,
                counted=len(found.tables),
                unit="tables",
            )
        )

    # What stays

    @property
    def _repository(self) -> Repository | None:
        """The one that was read from, or would have been."""
        return self._read_from or (self._opened[0] if self._opened else None)

    def _record(self, failure: PgkeepError | None) -> DrillRecord:
        repository, found = self._repository, self._found
        name = self._sources[0].name if repository is None else self._name_of(repository)
        found.rpo = self._rpo(repository)
        found.system_identifier = self._system_identifier()
        return found.record(self._request, self._cluster, name, self._runbook.steps, failure)

    def _rpo(self, repository: Repository | None) -> Rpo | None:
        """How old the newest moment was that could be recovered when the drill began."""
        if repository is None:
            return None
        try:
            windows = self._window(repository).windows
        except PgkeepError:
            return None
        newest = max((window.end_time for window in windows), default=None)
        if newest is None:
            return None
        seconds = max((self._found.started - newest).total_seconds(), 0.0)
        return Rpo(seconds=seconds, objective=self._cluster.objectives.rpo, newest=newest)

    def _system_identifier(self) -> int:
        """The cluster's, as far as anybody knows; 0 where nobody does."""
        if self._found.plan is not None:
            return self._found.plan.manifest.system_identifier
        for repository in self._opened:
            try:
                return repository.catalog.find("latest", self._cluster.name).system_identifier
            except PgkeepError:
                known = repository.clusters()
                if len(known) == 1:
                    return known[0]
        return 0

    def _remember(self, record: DrillRecord) -> DrillRecord:
        first = self._repository
        try:
            if first is None or record.system_identifier == 0:
                raise NotFoundError("no repository could be opened that knows the cluster")
            remember(first, record)
        except PgkeepError as error:
            note = f"this record is stored nowhere: {error}"
            self._progress.note(note)
            return msgspec.structs.replace(record, notes=[*record.notes, note])
        return record

    def _name_of(self, repository: Repository) -> str:
        return self._names.get(repository.store.url, repository.store.url)


def _plan_apart(request: RestoreRequest, repository: Repository, place: DrillPlace) -> RestorePlan:
    """Every tablespace goes below the drill's own directory."""
    manifest, _ = choose_backup(request, repository)
    apart = {os.fsdecode(each.location): str(place.tablespace(each.oid)) for each in manifest.tablespaces}
    return make_plan(msgspec.structs.replace(request, tablespaces=apart), repository)


def _left_over(request: DrillRequest, cluster: Cluster, sources: Sequence[Source]) -> list[Source]:
    """The repositories that there are in this exercise."""
    if request.scenario != "region-lost":
        return list(sources)
    wanted = cluster.drill.offsite or sources[-1].name
    left = [source for source in sources if source.name == wanted]
    if not left:
        raise ConfigError(
            f"drill.offsite names {wanted!r}, which is no repository of cluster {cluster.name}",
            hint=f"name one of {', '.join(source.name for source in sources)}",
        )
    return left


def _option(target: RecoveryTarget) -> str:
    """The target as a restore is told it."""
    words = {"time": "--to", "lsn": "--to-lsn", "xid": "--to-xid", "name": "--to-name"}
    if target.kind not in words:
        return f"--{target.kind}"
    return f"{words[target.kind]} '{target.value}'" + (" --exclusive" if target.exclusive else "")
