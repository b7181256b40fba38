"""A restore over a cluster's own data directory, as one procedure: check, stop, move aside, restore, recover, start, assert.

What happens when a step fails, at three in the morning:

* Before the old data is moved, nothing is changed, and the server runs again if it ran.
* While the backup is written and recovered, the old data comes back, and its server is started again if it ran: a recovery that
  cannot reach its target is of no use to anybody, and the old server, even one that lost a table, serves the rest. Where the server
  did not run before, its data comes back but it is not started: it may be what is broken. ``rollback = False`` leaves all as it is.
* Once recovery has reached its target and been checked, the only good data is the new one. A table that cannot be carried, or
  a hook that fails, then leaves it in place, complete and stopped: nobody reaches a server on which something is still to be
  done, and hours of recovery are not thrown away for a line of SQL. The same command again goes on at the step that failed.

A run that was killed is taken up by the next one, from its journal; or undone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pgkeep.config import Cluster
from pgkeep.copies.several import several
from pgkeep.errors import PgkeepError, TargetError
from pgkeep.postgres.running import locate_server, read_control_file, server_status
from pgkeep.postgres.service_control import ServiceControl
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.restore.after_recovery import AfterRecovery, clear_carry
from pgkeep.restore.carry import CarriedTable
from pgkeep.restore.hooks import HookResult
from pgkeep.restore.in_place_plan import (
    InPlacePlan,
    InPlaceRequest,
    plan_in_place,
    read_unfinished,
    request_document,
)
from pgkeep.restore.job import RestoreOutcome, write_backup
from pgkeep.restore.journal import Journal, Move, exclusive
from pgkeep.restore.last_wal import save_last_wal, save_running_wal
from pgkeep.restore.old_settings import differences
from pgkeep.restore.plan import INCOMPLETE_MARKER, RestorePlan
from pgkeep.restore.private_server import hand_to_archiver, private_server, stop_leftover
from pgkeep.restore.recover import recovered_server
from pgkeep.restore.safety_copy import attempt_places, delete_incomplete, move_aside, put_back, set_aside
from pgkeep.restore.started import assert_recovered
from pgkeep.units import utc_now

__all__ = ["InPlaceOutcome", "InPlacePlan", "InPlaceRequest", "plan_in_place", "run_in_place"]

_START_LIMIT = 3600.0
"""Seconds for the operator's server to accept connections: it may have a big shared memory to touch."""


@dataclass
class InPlaceOutcome:
    """What a restore in place did. ``seconds`` are those of each phase, in order; ``total`` is from start to end.

    ``downtime`` is from the stop of the old server to the first connection to the new one, None where the old one did not run,
    or an earlier run stopped it. ``safety_copy`` are the renames that ``--undo`` takes back. ``log_file`` is what hooks said.
    """

    data_directory: Path
    backup: str
    lsn: str
    timeline: int
    total: float
    rto: float
    downtime: float | None
    seconds: dict[str, float]
    safety_copy: list[Move]
    hooks: list[HookResult] = field(default_factory=list)
    carried: list[CarriedTable] = field(default_factory=list)
    log_file: Path | None = None
    taken_up: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether it took no longer than the cluster's objective."""
        return self.total <= self.rto


def run_in_place(
    request: InPlaceRequest, cluster: Cluster, repositories: Sequence[Repository], progress: Progress | None = None
) -> InPlaceOutcome:
    """Restore a cluster over its own data directory, and start its server; see the module for what happens when a step fails.

    ``repositories`` are the cluster's, opened; the first is read from, WAL from all. Takes up what an earlier run left. Raises
    what `plan_in_place` raises; BusyError where another one is at it; then ServerError, DamageError, TargetError, RecoveryError
    (HookError), each saying what state the server was left in.
    """
    data_directory = locate_server(cluster.dsn, cluster.server.data_directory).data_directory
    with exclusive(data_directory):
        return _InPlace(request, cluster, repositories, progress or Silent(), data_directory).run()


class _InPlace:
    def __init__(
        self,
        request: InPlaceRequest,
        cluster: Cluster,
        repositories: Sequence[Repository],
        progress: Progress,
        data_directory: Path,
    ) -> None:
        self._request = request
        self._cluster = cluster
        self._repositories = repositories
        self._progress = progress
        self._data_directory = data_directory
        self._begun = time.monotonic()
        self._stopped_at: float | None = None
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._inside: AfterRecovery | None = None

    def run(self) -> InPlaceOutcome:
        found = read_unfinished(self._data_directory)
        taken_up = found.state if found is not None else None
        journal = self._take_up(found) if found is not None else None
        if journal is None or journal.state not in {"recovered", "ready"}:
            journal = self._restore(journal)
        elif journal.state == "recovered":
            self._journal = journal
            self._progress.note("the data was recovered by the run before; going on with what is left to do on it")
            port = int(self._request.settings.get("port", "5432"))
            with private_server(self._data_directory, journal.major, port) as server:
                self._finish_inside(server.dsn(), None)
        self._journal = journal
        if journal.state == "recovered":
            hand_to_archiver(self._data_directory, journal.timeline)
            journal.enter("ready")
        self._start()
        inside = self._inside
        return InPlaceOutcome(
            data_directory=self._data_directory,
            backup=journal.backup or "",
            lsn=journal.lsn,
            timeline=journal.timeline,
            total=time.monotonic() - self._begun,
            rto=self._cluster.objectives.rto,
            downtime=None if self._stopped_at is None else time.monotonic() - self._stopped_at,
            seconds=self._seconds,
            safety_copy=journal.moves,
            hooks=inside.hooks if inside else [],
            carried=inside.carried if inside else [],
            log_file=inside.log_file if inside and inside.hooks else None,
            taken_up=taken_up,
            notes=self._notes,
        )

    # What an earlier run left

    def _take_up(self, journal: Journal) -> Journal | None:
        """Bring what an earlier run left to where this one can go on; None where it can begin anew."""
        before = msgspec.convert(journal.request, InPlaceRequest)
        if self._request.written and self._request.written == before.written:
            same_moment = {"recovery": before.recovery, "carry_until": before.carry_until}
            self._request = msgspec.structs.replace(self._request, **same_moment)
        same = before == self._request
        self._progress.note(f"an earlier run got as far as {journal.state!r}; taking it up")
        if journal.state == "stopping":
            return journal
        if journal.state == "ready":
            # its server may have been started, and whoever wrote to it since must not lose that
            if same:
                return journal
            raise TargetError(
                f"{self._data_directory} was restored by a run of {journal.started} that only had to start the server",
                hint="let that command end first, by running it again; or put the old data back: --undo",
            )
        stop_leftover(self._data_directory)
        clear_carry(journal)
        if journal.state == "putting back":
            moved = set_aside(attempt_places(self._data_directory, journal), "failed", _stamp())
            put_back(journal)
            self._notes += _kept(delete_incomplete(moved))
            journal.state = "stopping"
            journal.moves, journal.links = [], []
            journal.save()
            return journal
        if journal.state == "recovered" and same:
            return journal
        if journal.state == "recovered":
            kept = set_aside(attempt_places(self._data_directory, journal), "failed", _stamp())
            self._notes += _kept(kept)
            journal.failed_attempts += [move.aside for move in kept[:1]]
            journal.enter("moved")
        elif journal.state == "moved" or not same:
            self._discard(journal)
        return journal

    def _discard(self, journal: Journal) -> None:
        """Delete what an earlier run had restored and not recovered: the same can be had again."""
        places = attempt_places(self._data_directory, journal)
        for place in places:
            (place / INCOMPLETE_MARKER).touch()
        delete_incomplete(set_aside(places, "failed", _stamp()))
        if journal.state == "written":
            journal.enter("moved")

    # Up to a recovered data directory

    def _restore(self, journal: Journal | None) -> Journal:
        with self._phase("check", "checking what is there"):
            if journal is None or journal.state == "stopping":
                self._notes += save_running_wal(self._cluster.dsn, self._data_directory, self._repositories)
            plan = self._plan(journal)
        self._notes += plan.notes
        if journal is None or journal.state == "stopping":
            journal = self._journal = self._new_journal(plan, journal)
            plan = self._stop_and_move(plan)
        else:
            self._journal = journal
            journal.request = request_document(self._request)
            journal.save()
        if journal.state == "moving":
            move_aside(journal)
            journal.enter("moved")
        try:
            self._write_and_recover(plan)
        except BaseException as error:
            if journal.state in {"moved", "written"}:
                self._fall_back(plan.control, error)
            raise
        return journal

    def _plan(self, journal: Journal | None) -> InPlacePlan:
        try:
            return plan_in_place(self._request, self._cluster, self._repositories, self._data_directory)
        except TargetError:
            if journal is None or journal.state != "written":
                raise
            # its own half of the disk is what may be lacking
            self._discard(journal)
            return plan_in_place(self._request, self._cluster, self._repositories, self._data_directory)

    def _new_journal(self, plan: InPlacePlan, before: Journal | None) -> Journal:
        done = Journal.read(self._data_directory) if before is None else None
        earlier = [*done.earlier_copies, *(move.aside for move in done.moves[:1])] if done else []
        return Journal(
            cluster=self._cluster.name,
            system_identifier=plan.restore.manifest.system_identifier,
            major=plan.restore.major,
            data_directory=str(self._data_directory),
            started=utc_now().isoformat(timespec="seconds"),
            stamp=_stamp(),
            state="stopping",
            was_running=plan.was_running,
            options=plan.control.options,
            log_file=str(plan.control.log_file),
            unit=plan.control.unit,
            request=request_document(self._request),
            moves=[],
            earlier_copies=[copy for copy in earlier if Path(copy).exists()]
            + (before.earlier_copies if before else []),
        )

    def _stop_and_move(self, plan: InPlacePlan) -> InPlacePlan:
        """Stop the server, keep its last WAL, move its data aside; or leave it as it was."""
        journal, control = self._journal, plan.control
        journal.enter("stopping")
        try:
            with self._phase("stop", "stopping the server"):
                if server_status(self._data_directory).pid is not None:
                    self._stopped_at = time.monotonic()
                    control.stop()
            with self._phase("save WAL", "saving its last WAL"):
                stopped = read_control_file(self._data_directory)
                if stopped is not None:
                    self._notes += save_last_wal(self._data_directory, stopped, self._repositories)
            # what was just stored may be what the target is in, and tables may have got tablespaces meanwhile
            plan = plan_in_place(self._request, self._cluster, self._repositories, self._data_directory)
            with self._phase("move", "moving the old data aside"):
                journal.moves, journal.links = plan.moves, plan.links
                journal.enter("moving")
                move_aside(journal)
                journal.enter("moved")
        except BaseException as error:
            put_back(journal)
            journal.remove()
            left = "nothing was changed"
            if journal.was_running and server_status(self._data_directory).pid is None:
                left += self._start_again(control)
            self._say(error, left)
            raise
        return plan

    def _write_and_recover(self, plan: InPlacePlan) -> None:
        journal, restore = self._journal, plan.restore
        if journal.state == "moved":
            begun = time.monotonic()
            outcome = RestoreOutcome(restore)
            repository = several(self._repositories, self._progress.note)
            write_backup(restore, repository, self._progress, outcome)
            self._seconds["write"] = time.monotonic() - begun
            self._notes += outcome.notes
            journal.enter("written")
        failed: BaseException | None = None
        with recovered_server(restore, self._repositories, self._progress) as recovered:
            self._seconds |= recovered.seconds
            journal.backup = restore.manifest.id
            journal.lsn, journal.timeline = str(recovered.lsn), recovered.timeline
            journal.path_timeline = restore.recovery.path.timeline
            journal.tablespaces = {each.old: each.oid for each in restore.tablespaces}
            journal.enter("recovered")
            try:
                self._finish_inside(recovered.dsn, plan.carry)
            except BaseException as error:  # noqa: BLE001 - raised again once the server is stopped in good order
                failed = error
        if failed is not None:
            raise failed

    def _finish_inside(self, dsn: str, carry: RestorePlan | None) -> None:
        """What is to be done on the recovered server before clients come; ``carry`` None: it is planned where needed."""
        inside = self._inside = AfterRecovery(
            self._request, self._cluster, self._repositories, self._journal, self._progress
        )
        try:
            inside.run(dsn, carry)
        except BaseException as error:
            self._say(
                error,
                f"the data is recovered and complete in {self._data_directory}, and its server is stopped: run the same command "
                f"again to go on with {inside.step}, or put the old data back with --undo",
            )
            raise
        finally:
            self._seconds |= inside.seconds
            self._notes += inside.notes

    # The operator's server

    def _start(self) -> None:
        journal = self._journal
        control = ServiceControl(
            self._data_directory,
            major=journal.major,
            unit=self._cluster.server.unit or journal.unit,
            start=self._cluster.server.start,
            stop=self._cluster.server.stop,
            options=journal.options,
            log_file=Path(journal.log_file),
        )
        try:
            with self._phase("start", "starting the server"):
                if server_status(self._data_directory).pid is None:
                    control.start(_START_LIMIT)
            with self._phase("assert", "checking the server"):
                self._notes += assert_recovered(journal, self._cluster.dsn)
        except BaseException as error:
            self._say(
                error,
                f"the data is recovered and complete in {self._data_directory}; once the server can start, run the same command "
                "again, or start it yourself; --undo puts the old data back",
            )
            raise
        if journal.moves:
            self._notes += differences(Path(journal.moves[0].aside), self._data_directory)
        if journal.earlier_copies:
            self._notes.append(f"safety copies of earlier runs are still there: {', '.join(journal.earlier_copies)}")
        journal.enter("done")

    # When a step fails

    def _fall_back(self, control: ServiceControl, error: BaseException) -> None:
        """Recovery failed: the old data comes back, and its server where it ran."""
        journal = self._journal
        if not journal.has_copy or not self._request.rollback:
            copy = f"the old data is in {journal.moves[0].aside}" if journal.moves else "there was no old data"
            self._say(error, f"{copy}, the failed attempt in {self._data_directory}; no server was started")
            return
        try:
            journal.enter("putting back")
            stop_leftover(self._data_directory)
            moved = set_aside(attempt_places(self._data_directory, journal), "failed", journal.stamp)
            put_back(journal)
            journal.remove()
        except PgkeepError as second:
            self._say(
                error, f"and the old data could not be put back: {second}; pgkeep restore --in-place --undo tries again"
            )
            return
        left = "THE OLD DATA IS BACK in its place"
        left += (
            self._start_again(control)
            if journal.was_running
            else ", and its server was not started: it did not run before"
        )
        if kept := delete_incomplete(moved):
            left += f"; the failed attempt is in {kept[0].aside}"
        self._say(error, left)

    def _start_again(self, control: ServiceControl) -> str:
        try:
            control.start(_START_LIMIT)
        except PgkeepError as error:
            return f", but its server could not be started again: {error}"
        return ", and its server RUNS AGAIN"

    def _say(self, error: BaseException, left: str) -> None:
        """Tell how things were left, in the error and as a note: whoever reads one of them knows."""
        self._progress.note(left)
        if isinstance(error, PgkeepError):
            error.args = (f"{error}; {left}", *error.args[1:])

    @contextmanager
    def _phase(self, name: str, shown: str | None = None) -> Iterator[None]:
        if shown is not None:
            self._progress.phase(shown)
        begun = time.monotonic()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - begun


def _stamp() -> str:
    return f"{utc_now():%Y%m%dT%H%M%SZ}"


def _kept(moves: Sequence[Move]) -> list[str]:
    return (
        [f"an earlier attempt is kept in {moves[0].aside}; remove it when nobody wants to look at it"] if moves else []
    )
