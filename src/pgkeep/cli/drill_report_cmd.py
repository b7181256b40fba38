"""``pgkeep drill history`` and ``pgkeep drill report``: what drills have left behind, for people and for CI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.cli.target_options import cluster_settings
from pgkeep.errors import NotFoundError, StoreError, UsageError

if TYPE_CHECKING:
    from pgkeep.drill.record import DrillRecord
    from pgkeep.drill.report import Format, Language

__all__ = ["ReadDrills", "add_report_commands", "find_record", "language_of", "write_report"]

_FORMATS = ("html", "md", "json", "junit")
_LANGUAGES = ("en", "ko")
_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".xml": "junit"}


class ReadDrills(Protocol):
    """Reads the sealed records of a cluster's drills, in any order; all clusters' where no cluster is named."""

    def __call__(self, chosen: Chosen) -> Sequence[DrillRecord]: ...


def add_report_commands(group: click.Group, read: ReadDrills) -> None:
    """Give a group the commands ``history`` and ``report``, which get their records from ``read``."""

    @group.command(
        "history",
        short_help="List the drills: when, to which target, how they went.",
        epilog=examples("pgkeep drill history", "pgkeep drill history --last 3", "pgkeep drill history --json"),
    )
    @common_options
    @repository_options
    @click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N. Default: all.")
    def history(context: Context, chosen: Chosen, last: int | None) -> None:
        """List the drills of a cluster, oldest first.

        RTO is the measured time until the first query was answered, RPO what would have been lost when the drill began; an
        exclamation mark says that it missed its objective. `pgkeep drill report ID` tells more of one.
        """
        records = _sorted(read(chosen))
        show_history(context, chosen, records[-last:] if last is not None else records)

    @group.command(
        "report",
        short_help="Write the report of a drill: HTML, Markdown, JSON or JUnit XML.",
        epilog=examples(
            "pgkeep drill report latest --output drill.html",
            "pgkeep drill report 20261123T0304 --format md --lang ko",
            "pgkeep drill report latest --format junit --output drill.xml",
        ),
    )
    @common_options
    @repository_options
    @click.argument("drill", metavar="ID")
    @click.option(
        "--format",
        "form",
        type=click.Choice(_FORMATS),
        help="Default: what the name of --output ends in (.html, .md, .json, .xml), else md; with --json, json.",
    )
    @click.option(
        "--lang", type=click.Choice(_LANGUAGES), help="The report's language. Default: the cluster's lang, else en."
    )
    @click.option(
        "--output",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write it there. Default: standard output.",
    )
    def report(
        context: Context,
        chosen: Chosen,
        drill: str,
        form: Format | None,
        lang: Language | None,
        output: Path | None,
    ) -> None:
        """Write the report of the drill ID: an id, the beginning of one, or "latest".

        HTML is one file that needs nothing else and prints on one or two pages. JSON is the record itself. JUnit XML is for CI: each
        check is a test case.
        """
        if context.json and output is None and form not in {None, "json"}:
            raise UsageError(
                f"--json and --format {form} are two forms for one output",
                hint=f"write the report to a file with --output, or leave --json out to print the {form}",
            )
        records = read(chosen)
        record = find_record(records, drill)
        form = form or ("json" if context.json and output is None else _form_of(output))
        text = _rendered(context, chosen, record, records, form, lang)
        if output is None:
            click.echo(text, nl=False)
            return
        write_report(output, text)
        context.output.line(f"the report of drill {record.id} is in {output}", "green")
        context.output.document({"drill": record.id, "state": record.state, "format": form, "file": output})


def find_record(records: Sequence[DrillRecord], name: str) -> DrillRecord:
    """The drill of this id, the only one whose id begins so, or the newest for ``latest``. Raises NotFoundError, UsageError."""
    ordered = _sorted(records)
    hint = "pgkeep drill history lists them"
    if not ordered:
        raise NotFoundError("there is no drill on record", hint="pgkeep drill makes one")
    if name == "latest":
        return ordered[-1]
    matching = [record for record in ordered if record.id.startswith(name)]
    if not matching:
        raise NotFoundError(f"there is no drill {name}", hint=hint)
    if len(matching) > 1:
        raise UsageError(f"{len(matching)} drills begin with {name}", hint=f"give more of the id; {hint}")
    return matching[0]


def language_of(context: Context, chosen: Chosen) -> Language:
    """The cluster's ``lang``; English where no configuration knows the cluster."""
    cluster = cluster_settings(context, chosen)
    return "en" if cluster is None else cluster.lang


def write_report(path: Path, text: str) -> None:
    """Write a report to a file that is there whole or not at all. Raises StoreError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write the report to {path}: {error.strerror}", hint="name a file that can be written with --output"
        ) from None


def show_history(context: Context, chosen: Chosen, records: Sequence[DrillRecord]) -> None:
    """The table of drills, and their records as JSON."""
    from pgkeep.drill.record import record_json

    if records:
        columns = ("DRILL", "CLUSTER", "BEGUN", "STATE", "TARGET", "RTO", "RPO", "CHECKS", "CAUSE")
        context.output.table(columns, [_row(record) for record in records], right=("RTO", "RPO", "CHECKS"))
    else:
        context.output.line(f"no drill of {chosen.cluster or chosen.name} yet; pgkeep drill makes one")
    context.output.document({"drills": [record_json(record) for record in records]})


def _row(record: DrillRecord) -> tuple[str, ...]:
    from pgkeep.drill.report.facts import target_line
    from pgkeep.drill.report.wording import Wording
    from pgkeep.units import format_time

    words = Wording("en")
    rto = None if record.rto is None else (record.rto.measured, record.rto.objective)
    rpo = None if record.rpo is None else (record.rpo.seconds, record.rpo.objective)
    passed = sum(check.outcome == "passed" for check in record.checks)
    return (
        record.id,
        record.cluster,
        format_time(record.started),
        record.state,
        "" if record.target is None else target_line(record.target, words, short=True),
        _figure(rto, words.duration),
        _figure(rpo, words.duration),
        f"{passed}/{sum(check.outcome != 'skipped' for check in record.checks)}",
        record.cause or "",
    )


def _figure(figure: tuple[float, float | None] | None, duration: _Duration) -> str:
    if figure is None:
        return ""
    measured, objective = figure
    return duration(measured) + (" !" if objective is not None and measured > objective else "")


class _Duration(Protocol):
    def __call__(self, seconds: float) -> str: ...


def _rendered(
    context: Context,
    chosen: Chosen,
    record: DrillRecord,
    records: Sequence[DrillRecord],
    form: Format,
    language: Language | None,
) -> str:
    from pgkeep.drill.report import render

    cluster = cluster_settings(context, chosen)
    zone = None if cluster is None else cluster.time_zone
    return render(record, form, earlier=records, language=language or language_of(context, chosen), zone=zone)


def _form_of(output: Path | None) -> Format:
    if output is None:
        return "md"
    form: Format | None = _SUFFIXES.get(output.suffix.lower())  # type: ignore[assignment]
    if form is None:
        raise UsageError(f"the name {output} does not say the format", hint=f"add --format {'|'.join(_FORMATS)}")
    return form


def _sorted(records: Sequence[DrillRecord]) -> list[DrillRecord]:
    return sorted(records, key=lambda record: (record.started, record.id))
