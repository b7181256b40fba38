"""A drill: a backup is restored where nobody else can reach it, recovered, looked through, and thrown away; a record stays.

What a drill finds out is its record: also that a backup is damaged, a key is wrong, WAL is missing. Only what was asked for wrongly, and an
interruption, are raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec
import psycopg

from pgkeep.config import Cluster
from pgkeep.drill.checking import asked_of, checked_nothing, failure_of, refuse_nothing, stopped_check
from pgkeep.drill.compare import begin_comparison, compare
from pgkeep.drill.findings import KEEP_HINT, Findings
from pgkeep.drill.fingerprint import SourceFingerprints
from pgkeep.drill.incident import Incident, staged_incident
from pgkeep.drill.isolation import cut_off, silence_libraries
from pgkeep.drill.memory import remember
from pgkeep.drill.moment import new_seed
from pgkeep.drill.places import DrillPlace, drill_place, refuse_source
from pgkeep.drill.planning import Planner, option_of
from pgkeep.drill.reached import hold_reached
from pgkeep.drill.record import (
    Check,
    DrillRecord,
    Phase,
    PhaseName,
)
from pgkeep.drill.request import DrillRequest, OnStep, Source
from pgkeep.drill.scenarios import STAGED, Runbook, refuse_contradictions
from pgkeep.drill.session import Copy, reason_of
from pgkeep.errors import (
    BusyError,
    ConfigError,
    Interrupted,
    PgkeepError,
    RecoveryError,
    TargetError,
    UsageError,
)
from pgkeep.postgres.connection import connect_sql
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.restore.job import RestoreOutcome, write_backup
from pgkeep.restore.plan import RestorePlan
from pgkeep.restore.private_server import superuser_dsn
from pgkeep.restore.recover import Recovered, recovered_server

__all__ = ["run_drill"]

_RESTORE = frozenset({"plan", "write", "start", "replay", "promote", "first query"})
"""The phases of a restore up to its first answer."""


def run_drill(
    request: DrillRequest,
    cluster: Cluster,
    sources: Sequence[Source],
    progress: Progress | None = None,
    *,
    on_step: OnStep | None = None,
) -> DrillRecord:
    """Do it, seal the record in the repository that was read from, and return it.

    ``sources`` are the cluster's repositories in its order: the first is proven, alone; scenario region-lost takes another. Raises UsageError and ConfigError for what cannot be asked, BusyError and
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
        self._source, self._others = _subject(request, cluster, sources)
        self._progress = progress
        self._runbook = Runbook(request, cluster, on_step)
        seed = request.seed if request.seed is not None else new_seed()
        self._found = Findings(seed, request.jobs or cluster.drill.jobs or os.cpu_count() or 1)
        self._repository: Repository | None = None

    def run(self) -> DrillRecord:
        failure: PgkeepError | None = None
        try:
            repository = self._open()
            refuse_source(self._cluster, [repository], ask=not self._runbook.alone)
            self._prove(repository)
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

    def _open(self) -> Repository:
        """The one repository: what another one has instead proves nothing about this one."""
        with self._runbook.step(self._opening(), f"pgkeep list --repository {self._source.name}"):
            repository = self._source.open()
            self._repository = repository
            repository.keys.require_reading()
        return repository

    def _opening(self) -> str:
        first = self._source.name
        return {
            "key-from-paper": f"Open repository {first} with the recovery key, as it was typed in from the sheet",
            "region-lost": f"Take stock of what is left: repository {first} alone",
        }.get(str(self._runbook.scenario), "Take stock of what the repositories hold")

    def _prove(self, repository: Repository) -> None:
        cluster = self._cluster
        planner = Planner(
            self._request,
            cluster,
            repository,
            self._source.name,
            self._runbook,
            self._found,
            self._progress,
            self._note,
        )
        # before the drill writes anything itself
        self._found.rpo = planner.rpo()
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
                        self._restore(planner, repository, place, incident, fingerprints)
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

    def _restore(
        self,
        planner: Planner,
        repository: Repository,
        place: DrillPlace,
        incident: Incident | None,
        fingerprints: SourceFingerprints | None,
    ) -> None:
        plan = planner.plan(place, incident, fingerprints)
        chosen = f"backup {plan.manifest.id}"
        command = f"pgkeep restore {plan.manifest.id} --target-dir DIR {option_of(plan.recovery.target)} --start"
        with self._runbook.step(f"Restore {chosen}, and recover to {plan.recovery.target}", command):
            with self._phase("write", plan.manifest.logical_size):
                write_backup(plan, repository, self._progress, RestoreOutcome(plan))
            for note in silence_libraries(plan.target, plan.programs):
                self._note(note)
            stack = ExitStack()
            recovered = stack.enter_context(self._recovering(plan, repository))
        with stack:
            self._found.rto = sum(phase.seconds for phase in self._found.phases if phase.name in _RESTORE)
            with self._runbook.step(
                "See that what came back is whole, and is what it should be", "pg_amcheck --all; psql"
            ):
                self._look(recovered, incident, fingerprints)
        if recovered.state == "promoted" and self._found.copy is not None:
            with self._phase("checks"):
                self._found.checks += stopped_check(self._found.copy, self._cluster, self._progress)

    # Recovery, and what came of it

    @contextmanager
    def _recovering(self, plan: RestorePlan, repository: Repository) -> Iterator[Recovered]:
        began, ended = time.monotonic(), None
        try:
            with recovered_server(plan, [repository], self._progress) as recovered:
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
            binaries=plan.programs,
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

    def _record(self, failure: PgkeepError | None) -> DrillRecord:
        found = self._found
        found.system_identifier = self._system_identifier()
        return found.record(self._request, self._cluster, self._source.name, self._runbook.steps, failure)

    def _system_identifier(self) -> int:
        """The cluster's, as far as anybody knows; 0 where nobody does."""
        if self._found.plan is not None:
            return self._found.plan.manifest.system_identifier
        if self._repository is None:
            return 0
        try:
            return self._repository.catalog.find("latest", self._cluster.name).system_identifier
        except PgkeepError:
            known = self._repository.clusters()
            return known[0] if len(known) == 1 else 0

    def _remember(self, record: DrillRecord) -> DrillRecord:
        """In the repository that it is about; a failed one in another, where that cannot be written."""
        failures = []
        # a backup that came back from here is not proven elsewhere
        for source in [self._source, *([] if record.passed else self._others)]:
            try:
                repository = self._repository if source is self._source else source.open()
                if repository is None:
                    continue
                if record.system_identifier == 0:
                    record = msgspec.structs.replace(record, system_identifier=self._identity_in(repository))
                remember(repository, record)
                return record
            except PgkeepError as error:
                failures.append(str(error))
        note = f"this record is stored nowhere: {'; '.join(failures) or 'no repository could be opened'}"
        self._progress.note(note)
        return msgspec.structs.replace(record, notes=[*record.notes, note])

    def _identity_in(self, repository: Repository) -> int:
        return repository.catalog.find("latest", self._cluster.name).system_identifier


def _subject(request: DrillRequest, cluster: Cluster, sources: Sequence[Source]) -> tuple[Source, list[Source]]:
    """The repository that is proven, and the others, which may keep the record where it cannot."""
    if request.scenario != "region-lost":
        return sources[0], list(sources[1:])
    wanted = cluster.drill.offsite or sources[-1].name
    left = [source for source in sources if source.name == wanted]
    if not left:
        raise ConfigError(
            f"drill.offsite names {wanted!r}, which is no repository of cluster {cluster.name}",
            hint=f"name one of {', '.join(source.name for source in sources)}",
        )
    # the others are gone in this exercise
    return left[0], []
