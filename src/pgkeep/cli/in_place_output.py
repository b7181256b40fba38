"""How restores in place, and their undoing, are shown: for people line by line, for programs as documents."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pgkeep.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgkeep.cli.options import Context
    from pgkeep.restore.carry import CarriedTable
    from pgkeep.restore.in_place import InPlaceOutcome, InPlacePlan
    from pgkeep.restore.journal import Move
    from pgkeep.restore.undo import UndoOutcome, UndoPlan

__all__ = ["show_carried", "show_in_place", "show_in_place_plan", "show_undo", "show_undo_plan"]


def show_in_place_plan(context: Context, plan: InPlacePlan) -> None:
    """What would happen, step by step, with the commands and the real paths."""
    output = context.output
    _show_steps(context, plan.steps)
    for note in plan.notes:
        output.line(f"note: {note}", "yellow")
    output.line("nothing was changed; without --plan it is done")
    restore, recovery = plan.restore, plan.restore.recovery
    output.document(
        {
            "plan": {
                "steps": plan.steps,
                "data_directory": plan.data_directory,
                "backup": restore.manifest.id,
                "was_running": plan.was_running,
                "stop_command": plan.control.stop_command,
                "start_command": plan.control.start_command,
                "moves": _moves(plan.moves),
                "moved_bytes": plan.old_size,
                "logical_bytes": restore.manifest.logical_size,
                "wal_bytes": recovery.wal_bytes,
                "target": str(recovery.target),
                "start_lsn": str(recovery.start_lsn),
                "stop_lsn": str(recovery.stop_lsn),
                "timeline": recovery.path.timeline,
                "carry": list(plan.request.carry),
                "unfinished": None if plan.unfinished is None else plan.unfinished.state,
                "notes": plan.notes,
            }
        }
    )


def show_in_place(context: Context, outcome: InPlaceOutcome) -> None:
    """What was done, how long each phase took, and whether that met the objective."""
    output = context.output
    for table in outcome.carried:
        show_carried(context, table)
    for hook in outcome.hooks:
        output.line(f"hook {hook.name}: done in {format_duration(hook.seconds)}")
    for note in outcome.notes:
        output.line(f"note: {note}", "yellow")
    output.line(
        f"the server runs on {outcome.data_directory}: backup {outcome.backup}, recovered to {outcome.lsn}, "
        f"timeline {outcome.timeline}",
        "green",
    )
    output.fields([(phase, format_duration(seconds)) for phase, seconds in outcome.seconds.items()])
    if outcome.downtime is not None:
        output.line(f"downtime: {format_duration(outcome.downtime)}")
    word, style = ("met", "green") if outcome.met else ("MISSED", "bold red")
    output.line(f"total: {format_duration(outcome.total)}; objective {format_duration(outcome.rto)}: {word}", style)
    if outcome.safety_copy:
        output.line(f"the old data is in {outcome.safety_copy[0].aside}")
        output.line("  put it back: pgkeep restore --in-place --undo")
        output.line("  once nobody needs it: rm -r " + " ".join(move.aside for move in outcome.safety_copy))
    output.document(
        {
            "data_directory": outcome.data_directory,
            "backup": outcome.backup,
            "lsn": outcome.lsn,
            "timeline": outcome.timeline,
            "seconds": outcome.seconds,
            "total_seconds": outcome.total,
            "downtime_seconds": outcome.downtime,
            "rto_seconds": outcome.rto,
            "rto_met": outcome.met,
            "safety_copy": _moves(outcome.safety_copy),
            "carried": [dataclasses.asdict(table) for table in outcome.carried],
            "hooks": [dataclasses.asdict(hook) for hook in outcome.hooks],
            "hook_log": outcome.log_file,
            "taken_up": outcome.taken_up,
            "notes": outcome.notes,
        }
    )


def show_carried(context: Context, table: CarriedTable) -> None:
    """How many rows of a table were brought, and which were not."""
    output = context.output
    output.line(
        f"{table.name}: {table.inserted:,} rows brought; {table.found:,} found later, {table.there:,} of them there already",
        "green",
    )
    if table.changed:
        output.line(f"  {table.changed:,} that were there had other values later: they are as at the recovered moment")
    for skipped in table.skipped:
        examples = f": {'; '.join(skipped.examples)}" if skipped.examples else ""
        output.line(f"  {skipped.count:,} not brought: {skipped.reason}{examples}", "yellow")
    for note in table.notes:
        output.line(f"  {note}", "yellow")


def show_undo_plan(context: Context, plan: UndoPlan) -> None:
    """What an undo would do."""
    _show_steps(context, plan.steps)
    context.output.line("nothing was changed; without --plan it is done")
    context.output.document(
        {
            "plan": {
                "steps": plan.steps,
                "data_directory": plan.data_directory,
                "state": plan.journal.state,
                "moves": _moves(plan.journal.moves),
            }
        }
    )


def show_undo(context: Context, outcome: UndoOutcome) -> None:
    """What an undo did."""
    output = context.output
    for note in outcome.notes:
        output.line(f"note: {note}", "yellow")
    ran = "and its server runs" if outcome.started else "and its server was not started: it did not run before"
    output.line(f"the old data is back in {outcome.data_directory}, {ran}", "green")
    output.fields([(phase, format_duration(seconds)) for phase, seconds in outcome.seconds.items()])
    output.document(
        {
            "data_directory": outcome.data_directory,
            "started": outcome.started,
            "kept": _moves(outcome.kept),
            "seconds": outcome.seconds,
            "notes": outcome.notes,
        }
    )


def _show_steps(context: Context, steps: Sequence[str]) -> None:
    for number, step in enumerate(steps, start=1):
        context.output.styled((f"{number:>2}. ", "dim"), (step, ""))


def _moves(moves: Sequence[Move]) -> list[dict[str, str]]:
    return [{"place": move.place, "aside": move.aside} for move in moves]
