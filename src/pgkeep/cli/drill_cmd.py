"""``pgkeep drill``: a backup is proven by bringing it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pgkeep.cli.drill_report_cmd import add_report_commands, language_of, write_report
from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.cli.target_options import AskedTarget, target_options
from pgkeep.errors import NotFoundError, PgkeepError, UsageError
from pgkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from pgkeep.config import Cluster, Config
    from pgkeep.drill.record import DrillRecord, Step
    from pgkeep.drill.request import DrillRequest, Scenario, Source

__all__ = ["command", "known_drills"]

_SCENARIOS = ("table-dropped", "bad-migration", "server-lost", "region-lost", "key-from-paper", "newest-damaged")
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@click.group(
    "drill",
    invoke_without_command=True,
    short_help="Prove that a backup comes back: restore, recover, check, measure.",
    epilog=examples(
        "pgkeep drill",
        'pgkeep drill --to "2025-06-01 03:15:00+09" --full',
        "pgkeep drill --random",
        "pgkeep drill --compare",
        "pgkeep drill --scenario table-dropped",
        "pgkeep drill --junit drill.xml --exit-on fail",
        "pgkeep drill history",
    ),
)
@common_options
@repository_options
@click.option("--backup", metavar="ID", help="The backup to restore. Default: the best one for the target.")
@target_options
@click.option("--random", "is_random", is_flag=True, help="To a moment of the recovery window, chosen by chance.")
@click.option("--seed", type=click.IntRange(min=0), help="With --random: the moment that this seed chose before.")
@click.option("--scenario", type=click.Choice(_SCENARIOS), help="An exercise, with the steps of its runbook.")
@click.option("--compare", is_flag=True, help="Hold the copy against the live cluster, row for row, at one LSN.")
@click.option("--full", is_flag=True, help="Do the checks in whole that can be done in part.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write JUnit XML there.")
@click.option(
    "--exit-on",
    type=click.Choice(["fail", "never"]),
    default="fail",
    show_default=True,
    help="Whether a drill that fails ends with the exit code of its cause.",
)
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker threads. Default: one for each processor.")
@click.option("--keep", is_flag=True, help="Leave the copy on the disk, stopped, to be looked into.")
@click.option("--plan", "plan_name", metavar="NAME", help="The drill that the configuration plans under this name.")
@click.option(
    "--due", is_flag=True, help="All drills that the configuration plans and that are due; none where none is."
)
@click.option("--reason", default="", metavar="TEXT", help="Why it is done, for the record.")
@click.option("--asked-by", default="", metavar="NAME", help="Who wants it, for the record. Default: this user.")
@click.pass_context
def command(
    click_context: click.Context,
    context: Context,
    chosen: Chosen,
    asked: AskedTarget,
    backup: str | None,
    is_random: bool,
    seed: int | None,
    scenario: Scenario | None,
    compare: bool,
    full: bool,
    junit: Path | None,
    exit_on: str,
    jobs: int | None,
    keep: bool,
    plan_name: str | None,
    due: bool,
    reason: str,
    asked_by: str,
) -> None:
    """Restore a backup where nobody else can reach it, recover it, check what came back, measure how long it took, and throw it away.

    The copy listens on a socket of its own only, archives nothing and reaches no other server. The record is sealed in the repository;
    a backup that came back is `proven` in pgkeep list. Without --to or its kin everything up to the end of the WAL comes back.
    """
    if click_context.invoked_subcommand is not None:
        _refuse_options(click_context)
        return
    from pgkeep.drill.request import DrillRequest

    cluster = context.config().cluster(chosen.cluster)
    for option in ("--action", "--standby"):
        if option in asked.options():
            raise UsageError(
                f"{option} is for restores that stay", hint="a drill's copy is promoted, checked and removed"
            )
    request = DrillRequest(
        backup=backup,
        target=asked.target(cluster.time_zone, backup_is_named=backup is not None),
        written=asked.written,
        random=is_random,
        seed=seed,
        scenario=scenario,
        full=full,
        keep=keep,
        compare=compare,
        jobs=jobs,
        asked_by=asked_by,
        reason=reason,
    )
    requests = [request]
    if plan_name is not None or due:
        named = [
            *asked.options(),
            *(
                name
                for name, given in (
                    ("--backup", backup),
                    ("--random", is_random),
                    ("--scenario", scenario),
                    ("--compare", compare),
                )
                if given
            ),
        ]
        if named or (plan_name is not None and due):
            raise UsageError(
                "the configuration says what a planned drill does", hint=f"leave {(named or ['--due'])[0]} out"
            )
        requests = _planned(context, request, cluster, plan_name)
    records = [_drill(context, chosen, cluster, each) for each in requests]
    if junit is not None and records:
        from pgkeep.drill.report import render

        write_report(junit, render(records[-1], "junit", language=language_of(context, chosen), zone=cluster.time_zone))
    from pgkeep.drill.record import record_json

    documents = [record_json(record) for record in records]
    if not records:
        context.output.line("no drill is due", "green")
    context.output.document({"drills": documents} if due else documents[0])
    failure = next((record for record in records if not record.passed), None)
    if failure is not None and exit_on == "fail":
        context.exit(failure.exit_code)


def _drill(context: Context, chosen: Chosen, cluster: Cluster, request: DrillRequest) -> DrillRecord:
    from pgkeep.drill.runner import run_drill

    if request.scenario == "key-from-paper":
        _refuse_configured_key(chosen)
    with context.progress() as progress:
        sources = _sources(context, chosen)
        record = run_drill(request, cluster, sources, progress, on_step=lambda step: _say(context, step))
    _show(context, record)
    return record


def _planned(context: Context, request: DrillRequest, cluster: Cluster, name: str | None) -> list[DrillRequest]:
    """The drill of a plan, or all that are due where none is named."""
    import msgspec

    from pgkeep.drill.due import due_plans, ordinary_is_due
    from pgkeep.units import utc_now

    if name is not None:
        plans = [plan for plan in cluster.drill.plans if plan.name == name]
        if not plans:
            known = ", ".join(plan.name for plan in cluster.drill.plans) or "none"
            raise NotFoundError(f"cluster {cluster.name} has no drill plan {name!r}", hint=f"it has: {known}")
    else:
        drills, now = known_drills(context.config(), cluster), utc_now()
        plans = due_plans(cluster, drills, now)
        if not plans and ordinary_is_due(cluster, drills, now):
            return [request]
    return [
        msgspec.structs.replace(
            request,
            plan=plan.name,
            scenario=plan.scenario,
            random=plan.random,
            compare=plan.compare,
            full=plan.full or request.full,
            reason=request.reason or f"plan {plan.name}",
        )
        for plan in plans
    ]


def _refuse_options(click_context: click.Context) -> None:
    given = [
        name for name in click_context.params if click_context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            f"options of {click_context.invoked_subcommand} stand behind it",
            hint=f"pgkeep drill {click_context.invoked_subcommand} --help",
        )


def _refuse_configured_key(chosen: Chosen) -> None:
    """The exercise is worth nothing with the key that is at hand anyway."""
    typed = chosen.key()
    if chosen.is_configured or typed is None or typed == chosen.configured_key():
        raise UsageError(
            "scenario key-from-paper opens the repository with the key that is typed in from the sheet",
            hint="type it into a file that only you can read, and name that: --key-file recovery.key",
        )


def _sources(context: Context, chosen: Chosen) -> list[Source]:
    from pgkeep.drill.request import Source

    openers = chosen.openers()
    if len(openers) == 1:
        return [Source(chosen.name, openers[0])]
    config = context.config()
    names = config.cluster(chosen.cluster).repositories
    return [Source(name, opener) for name, opener in zip(names, openers, strict=True)]


def _say(context: Context, step: Step) -> None:
    context.output.line(f"-> {step.text}", "bold")
    if step.command:
        context.output.line(f"   {'$ ' if step.command.startswith('pgkeep') else ''}{step.command}")


def _show(context: Context, record: DrillRecord) -> None:
    from pgkeep.drill.report.facts import target_line
    from pgkeep.drill.report.wording import Wording
    from pgkeep.restore.target import format_moment

    output = context.output
    rows = [
        (
            check.name,
            check.outcome,
            "" if check.sampled == 1 else f"{check.sampled:.0%}",
            f"{check.seconds:.1f} s",
            check.detail,
        )
        for check in record.checks
    ]
    if rows:
        output.table(("CHECK", "OUTCOME", "LOOKED AT", "TOOK", "FOUND"), rows, right=("LOOKED AT", "TOOK"))
    fields = [("drill", record.id), ("repository", record.repository)]
    if record.backup:
        fields.append(("backup", record.backup))
    if record.target is not None:
        fields.append(("target", f"{record.target.asked}: {target_line(record.target, Wording('en'))}"))
    if record.target is not None and record.target.how == "random":
        fields.append(("seed", str(record.seed)))
    if record.reached is not None:
        fields.append(("reached", f"{record.reached.lsn} on timeline {record.reached.timeline}"))
    if record.rto is not None:
        predicted = "" if record.rto.predicted is None else f", predicted {format_duration(record.rto.predicted)}"
        most = "" if record.rto.objective is None else f" of at most {format_duration(record.rto.objective)}"
        fields.append(("restore time", f"{format_duration(record.rto.measured)}{most}{predicted}"))
    if record.rpo is not None and record.rpo.newest is not None:
        most = "" if record.rpo.objective is None else f" of at most {format_duration(record.rpo.objective)}"
        newest = f"the newest moment was {format_moment(record.rpo.newest)}"
        fields.append(("loss", f"{format_duration(record.rpo.seconds)}{most}: {newest}"))
    fields += [
        (
            "phase " + phase.name,
            format_duration(phase.seconds) + (f", {format_size(phase.bytes)}" if phase.bytes else ""),
        )
        for phase in record.phases
    ]
    output.fields(fields)
    for note in record.notes:
        output.line(f"note: {note}", "yellow")
    if record.passed:
        output.line(f"backup {record.backup} is proven: it came back, and is what it should be", _STYLES["passed"])
    else:
        output.line(f"the drill failed: {record.cause}", _STYLES["failed"])
        output.line(f"remedy: {record.remedy}")


def _read(chosen: Chosen) -> Sequence[DrillRecord]:
    from pgkeep.drill.memory import read_everywhere

    return read_everywhere(chosen.openers(), chosen.cluster)


def known_drills(config: Config, cluster: Cluster) -> list[DrillRecord]:
    """A cluster's drills, for what they measured; none where no repository says."""
    import functools

    from pgkeep.drill.memory import read_everywhere
    from pgkeep.opening import open_repository

    try:
        return read_everywhere(
            [functools.partial(open_repository, each) for each in config.repositories_of(cluster)], cluster.name
        )
    except PgkeepError:
        return []


add_report_commands(command, _read)
