"""``pgkeep collect``: delete the contents that no backup needs any more."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.errors import PgkeepError

if TYPE_CHECKING:
    from pgkeep.cli.output import Output
    from pgkeep.collection import CollectReport
    from pgkeep.config import RepositorySettings

__all__ = ["command"]


@click.command(
    "collect",
    short_help="Delete the contents that no backup needs any more.",
    epilog=examples("pgkeep collect --dry-run", "pgkeep collect", "pgkeep collect --repository offsite"),
)
@common_options
@click.option("--repository", metavar="NAME", help="A repository of the configuration. Default: all of them.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
def command(context: Context, repository: str | None, dry_run: bool) -> None:
    """Free the space of backups that are gone, beside everything else that goes on.

    In two runs: what no backup needs is marked first, and deleted by a run that comes a day later or more (collection.grace of the
    repository), so that nobody loses what he rests on. Packs of which little is needed are stored anew. Safe to interrupt.
    """
    config = context.config()
    chosen = [config.repository(repository)] if repository is not None else list(config.repositories.values())
    documents: list[dict[str, object]] = []
    failure: PgkeepError | None = None
    for settings in chosen:
        document: dict[str, object] = {"name": settings.name, "error": None}
        try:
            document |= _collect(context, settings, dry_run)
        except PgkeepError as error:
            failure = failure or error
            document["error"] = str(error)
            context.output.line(f"{settings.name}: {error}", "red")
        documents.append(document)
    context.output.document({"dry_run": dry_run, "repositories": documents})
    if failure is not None:
        context.exit(failure.exit_code)


def _collect(context: Context, settings: RepositorySettings, dry_run: bool) -> dict[str, object]:
    from pgkeep.collection import CollectRequest, run_collect
    from pgkeep.config import state_directory
    from pgkeep.opening import open_repository

    rules, repository = settings.collection, open_repository(settings)
    memory = state_directory() / "collect" / f"{repository.id}.sqlite"
    request = CollectRequest(timedelta(seconds=rules.grace), rules.live_share, dry_run, memory)
    with context.progress() as progress:
        report = run_collect(request, repository, progress)
    _show(context.output, settings, report, dry_run)
    refused = [{"object": name, "error": error} for name, error in report.refused]
    return {**asdict(report), "refused": refused}


def _show(output: Output, settings: RepositorySettings, report: CollectReport, dry_run: bool) -> None:
    from pgkeep.units import format_duration, format_size

    verb = "would be " if dry_run else ""
    output.line(
        f"{settings.name}: {report.backups:,} backups need {format_size(report.live)} of {format_size(report.size)} in {report.packs:,} packs",
        "bold",
    )
    output.line(f"  {verb}deleted: {report.deleted:,} packs, {format_size(report.deleted_size)}")
    if report.repacked:
        output.line(
            f"  {verb}stored anew: {format_size(report.repacked_size)} of {report.repacked:,} packs that are mostly garbage"
        )
    if report.doomed or report.waiting:
        grace = format_duration(settings.collection.grace)
        output.line(
            f"  {verb}marked: {report.doomed:,} packs, {format_size(report.doomed_size)}; marked before: {report.waiting:,}."
            f" A run in {grace} or later deletes them"
        )
    for note in report.notes:
        output.line(f"  note: {note}", "yellow")
    for name, error in report.refused:
        output.line(f"  not deleted: {name}: {error}", "red")
