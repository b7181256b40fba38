"""``pgkeep expire``: remove what no rule keeps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.errors import NotFoundError, PgkeepError, UsageError

if TYPE_CHECKING:
    from pgkeep.cli.expire_output import RepositoryExpiry
    from pgkeep.config import RepositorySettings
    from pgkeep.progress import Progress
    from pgkeep.repository import Repository

__all__ = ["command"]


@click.command(
    "expire",
    short_help="Remove the backups and the WAL that no rule keeps.",
    epilog=examples(
        "pgkeep expire --dry-run",
        "pgkeep expire --yes",
        "pgkeep expire --repository offsite --cluster auth",
        "pgkeep expire --backup 20261123T03",
    ),
)
@common_options
@cluster_option
@click.option("--repository", metavar="NAME", help="A repository of the configuration. Default: all of them.")
@click.option(
    "--backup",
    "named",
    metavar="BACKUP",
    multiple=True,
    help="This one goes too, whatever the rules say. May be given again.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--clock-is-right", is_flag=True, help="Nothing came for a long time, and the clock is right all the same."
)
def command(
    context: Context,
    cluster: str | None,
    repository: str | None,
    named: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    clock_is_right: bool,
) -> None:
    """Remove the backups that no rule of [retention] or [repository.NAME.retention] keeps, and the WAL that nothing needs any more.

    Shows each backup with the rules that keep it, then asks. Pins hold, the newest backup always stays, and a repository without
    rules keeps everything. The space of the backups' contents comes free when pgkeep collects.
    """
    from pgkeep.cli.expire_output import expiry_document, show_plan, show_removed

    found: list[RepositoryExpiry] = []
    for settings in _repositories(context, cluster, repository):
        expiry = _plan(settings, cluster, named, clock_is_right=clock_is_right)
        found.append(expiry)
        show_plan(context.output, expiry)
    if named and not any(plan.removed_by_name for expiry in found for plan in expiry.plans):
        raise next((expiry.error for expiry in found if expiry.error is not None), None) or NotFoundError(
            f"no repository has a backup {', '.join(named)}", hint="pgkeep list shows the backups"
        )
    if not dry_run:
        going = sum(len(plan.going) for expiry in found for plan in expiry.plans)
        some = going or any(preview.objects for expiry in found for preview in expiry.previews)
        if some and not yes and not context.json and sys.stdin.isatty():
            click.confirm(f"Remove {going} backups, and WAL as shown?", default=False, abort=True)
        with context.progress() as progress:
            for expiry in found:
                _carry_out(expiry, progress)
        for expiry in found:
            show_removed(context.output, expiry)
    context.output.document({"dry_run": dry_run, "repositories": [expiry_document(expiry) for expiry in found]})
    failure = next((expiry.error for expiry in found if expiry.error is not None), None)
    if failure is not None:
        context.exit(failure.exit_code)


def _repositories(context: Context, cluster: str | None, repository: str | None) -> list[RepositorySettings]:
    config = context.config()
    if repository is not None:
        return [config.repository(repository)]
    if cluster is not None:
        return config.repositories_of(config.cluster(cluster))
    return list(config.repositories.values())


def _plan(
    settings: RepositorySettings, cluster: str | None, named: tuple[str, ...], *, clock_is_right: bool
) -> RepositoryExpiry:
    from pgkeep.cli.backup_states import states_of
    from pgkeep.cli.expire_output import RepositoryExpiry
    from pgkeep.opening import open_repository
    from pgkeep.policy import ExpireRequest, Rules, plan_expiry

    expiry = RepositoryExpiry(settings)
    if settings.retention is None and not named:
        return expiry
    try:
        expiry.repository = repository = open_repository(settings)
        expiry.request = ExpireRequest(
            rules=None if settings.retention is None else Rules.of(settings.retention),
            cluster=cluster,
            states=states_of(repository),
            remove=_ids(repository, named),
            clock_is_right=clock_is_right,
        )
        expiry.plans = plan_expiry(expiry.request, repository)
        expiry.previews = [plan.preview(repository) for plan in expiry.plans]
    except PgkeepError as error:
        expiry.error = error
    return expiry


def _ids(repository: Repository, named: tuple[str, ...]) -> list[str]:
    """What these beginnings of ids mean in a repository; nothing where it has no such backup."""
    ids = []
    for reference in named:
        found = [name.id for name in repository.catalog.names() if name.id.startswith(reference)]
        if len(found) > 1:
            raise UsageError(f"{len(found)} backups have an id that begins with {reference!r}", hint="give more of it")
        ids += found
    return ids


def _carry_out(expiry: RepositoryExpiry, progress: Progress) -> None:
    from pgkeep.policy import run_expire

    if expiry.repository is None or expiry.request is None or expiry.error is not None:
        return
    try:
        expiry.reports = run_expire(expiry.request, expiry.repository, progress, shown=expiry.plans)
    except PgkeepError as error:
        expiry.error = error
