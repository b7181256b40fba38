"""``pgkeep status``: how each repository of a cluster stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgkeep.cli.findings import show_findings
from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import format_duration, format_size, format_time

if TYPE_CHECKING:
    from pgkeep.copies.standing import Standing

__all__ = ["behind_document", "command"]

_UNKNOWN = "-"


@click.command(
    "status",
    short_help="Show how each repository stands, and how far it is behind the best.",
    epilog=examples("pgkeep status", "pgkeep status --cluster auth --json"),
)
@common_options
@cluster_option
def command(context: Context, cluster: str | None) -> None:
    """Show for each repository of a cluster whether it answers, its newest backup and WAL, and how far it is behind the best of them.

    Ends with 0 where none is behind; else with the exit code of the first that is. What brings the WAL: pgkeep wal status.
    """
    from pgkeep.copies.standing import judge_standings, standings
    from pgkeep.findings import first_failure
    from pgkeep.wal.status import read_wal_status

    settings = context.config().cluster(cluster)
    found = standings(read_wal_status(context.config(), settings, ends_only=True).repositories)
    # as much as is on its way at any time: what a receiver ships at once, and a segment that is pushed
    findings = judge_standings(found, little=_ON_ITS_WAY)
    columns = ("REPOSITORY", "BACKUPS", "NEWEST BACKUP", "WAL UP TO", "MISSING BACKUPS", "WAL BEHIND", "TIME BEHIND")
    context.output.table(columns, [_row(each) for each in found], right=("BACKUPS", "MISSING BACKUPS", "WAL BEHIND"))
    context.output.line()
    show_findings(context.output, findings)
    failure = first_failure(findings)
    context.output.document(
        {
            "cluster": settings.name,
            "ok": failure is None,
            "repositories": [_document(each) for each in found],
            "findings": [finding.document() for finding in findings],
        }
    )
    if failure is not None:
        context.exit(failure.exit_code)


_ON_ITS_WAY = 64 << 20


def _row(standing: Standing) -> tuple[str, ...]:
    if standing.error is not None:
        return (standing.name, "unreachable", *[_UNKNOWN] * 5)
    newest = standing.newest
    return (
        standing.name,
        str(standing.backups),
        _UNKNOWN if newest is None else f"{newest.id} ({format_time(newest.started)})",
        _UNKNOWN if standing.lsn is None else f"{standing.lsn} (timeline {standing.timeline})",
        str(len(standing.missing)),
        _UNKNOWN if standing.wal_behind is None else format_size(standing.wal_behind),
        _UNKNOWN if standing.seconds_behind is None else format_duration(standing.seconds_behind),
    )


def _document(standing: Standing) -> dict[str, object]:
    newest = standing.newest
    return {
        "name": standing.name,
        "url": standing.url,
        "reachable": standing.error is None,
        "error": None if standing.error is None else str(standing.error),
        "backups": standing.backups,
        "newest_backup": None if newest is None else {"id": newest.id, "started": newest.started},
        "newest_wal": None
        if standing.lsn is None
        else {
            "timeline": standing.timeline,
            "lsn": str(standing.lsn),
            "current_at": standing.current_at,
            "age_seconds": standing.age,
        },
        "behind": None
        if standing.error is not None
        else {"backups": list(standing.missing), **behind_document(standing)},
    }


def behind_document(standing: Standing) -> dict[str, object]:
    """How far a repository's WAL is behind the best one's."""
    return {"wal_bytes": standing.wal_behind, "seconds": standing.seconds_behind}
