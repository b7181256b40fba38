"""``--undo``: the old data of a restore in place comes back, after it went well, or wherever it was left.

The restored data is kept beside, as ``<data directory>.undone-<time>``: what clients wrote to it since is in there only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.config import Cluster
from pgkeep.errors import NotFoundError, PgkeepError, TargetError
from pgkeep.postgres.running import locate_server, read_control_file, server_status
from pgkeep.postgres.service_control import ServiceControl
from pgkeep.progress import Progress, Silent
from pgkeep.restore.after_recovery import clear_carry
from pgkeep.restore.journal import Journal, Move, exclusive
from pgkeep.restore.private_server import stop_leftover
from pgkeep.restore.safety_copy import attempt_places, delete_incomplete, put_back, set_aside
from pgkeep.units import utc_now

__all__ = ["UndoOutcome", "UndoPlan", "plan_undo", "run_undo"]


@dataclass(frozen=True)
class UndoPlan:
    """An undo that can be done. ``steps`` are what will happen, in order."""

    data_directory: Path
    journal: Journal
    control: ServiceControl
    starts: bool
    steps: list[str]


@dataclass
class UndoOutcome:
    """What an undo did. ``kept`` is where the restored data is now; empty where it was not complete, and is deleted."""

    data_directory: Path
    cluster: str
    started: bool
    kept: list[Move]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_undo(cluster: Cluster) -> UndoPlan:
    """What an undo would do. Changes nothing.

    Raises NotFoundError where there is nothing to undo, TargetError where the safety copy is gone or of another cluster.
    """
    data_directory = locate_server(cluster.dsn, cluster.server.data_directory).data_directory
    journal = Journal.read(data_directory)
    if journal is None or (journal.state == "done" and not journal.has_copy):
        raise NotFoundError(
            f"there is nothing to undo: no restore in place has left a safety copy of {data_directory}",
            hint=f"is it another cluster's? copies are named {data_directory.name}.before-<time>",
        )
    for move in journal.moves[:1]:
        copy = Path(move.aside) if Path(move.aside).exists() else Path(move.place)
        found = read_control_file(copy)
        if not copy.exists() or (journal.state == "done" and copy != Path(move.aside)):
            raise TargetError(
                f"the safety copy {move.aside} is gone",
                hint=f"if it was removed on purpose, nothing can be undone any more: rm {journal.place}",
            )
        if found is not None and found.system_identifier != journal.system_identifier:
            raise TargetError(f"{copy} is of another cluster", hint="somebody put it there; look at it first")
    status = server_status(data_directory)
    control = ServiceControl(
        data_directory,
        major=journal.major,
        unit=cluster.server.unit or journal.unit,
        start=cluster.server.start,
        stop=cluster.server.stop,
        options=journal.options,
        log_file=Path(journal.log_file),
    )
    starts = journal.was_running or (status.pid is not None and journal.state == "done")
    steps = [f"stop the server: {control.stop_command}"] if status.pid is not None else []
    steps += [
        f"move the restored {place} aside, to {place}.undone-<time>"
        for place in attempt_places(data_directory, journal)
    ]
    steps += [f"mv {move.aside} {move.place}" for move in reversed(journal.moves) if Path(move.aside).exists()]
    steps.append(
        f"start the server: {control.start_command}" if starts else "the server is not started: it did not run before"
    )
    return UndoPlan(data_directory, journal, control, starts, steps)


def run_undo(cluster: Cluster, progress: Progress | None = None) -> UndoOutcome:
    """Stop the server, put the safety copy back in its place, start it as it ran. May be killed and run again.

    Raises what `plan_undo` raises, BusyError, ServerError, TargetError.
    """
    progress = progress or Silent()
    data_directory = locate_server(cluster.dsn, cluster.server.data_directory).data_directory
    with exclusive(data_directory):
        plan = plan_undo(cluster)
        journal, control = plan.journal, plan.control
        outcome = UndoOutcome(data_directory, journal.cluster, plan.starts, [])
        clock = time.monotonic()
        progress.phase("stopping the server")
        if journal.state in {"done", "ready", "stopping"}:
            if journal.state != "stopping" and server_status(data_directory).pid is not None:
                control.stop()
        else:
            stop_leftover(data_directory)
        clear_carry(journal)
        outcome.seconds["stop"] = time.monotonic() - clock
        clock = time.monotonic()
        moved: list[Move] = []
        progress.phase("putting the old data back")
        if journal.state != "stopping":
            journal.was_running = plan.starts
            journal.enter("putting back")
            moved = set_aside(attempt_places(data_directory, journal), "undone", f"{utc_now():%Y%m%dT%H%M%SZ}")
            put_back(journal)
        journal.remove()
        outcome.seconds["move"] = time.monotonic() - clock
        if plan.starts and server_status(data_directory).pid is None:
            clock = time.monotonic()
            progress.phase("starting the server")
            try:
                control.start(3600)
            except PgkeepError as error:
                error.args = (f"{error}; the old data is back in {data_directory}", *error.args[1:])
                raise
            outcome.seconds["start"] = time.monotonic() - clock
        outcome.kept = delete_incomplete(moved)
        if outcome.kept:
            outcome.notes.append(
                f"the restored data is kept in {outcome.kept[0].aside}: what was written to it since is nowhere else"
            )
        outcome.notes += [f"a safety copy of an earlier run is in {copy}" for copy in journal.earlier_copies]
        return outcome
