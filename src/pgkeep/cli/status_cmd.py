"""``pgkeep status``: how each repository of a cluster stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgkeep.cli.findings import show_findings
from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import format_duration, format_size, format_time, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgkeep.config import Cluster
    from pgkeep.copies.standing import Standing
    from pgkeep.policy.objectives import Due, Forecast, RpoNow

__all__ = ["behind_document", "command", "objectives_document"]

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

    Then what would be lost now, and how long a restore would take now, against the cluster's objectives.
    Ends with 0 where all is well; else with the exit code of the first thing that is not. What brings the WAL: pgkeep wal status.
    """
    from pgkeep.cli.drill_cmd import known_drills
    from pgkeep.copies.standing import judge_standings, standings
    from pgkeep.drill.due import judge_drills
    from pgkeep.drill.predicted import forecasts
    from pgkeep.findings import first_failure
    from pgkeep.policy.objectives import backup_due, judge_objectives, rpo_now
    from pgkeep.wal.status import read_wal_status

    settings = context.config().cluster(cluster)
    wal = read_wal_status(context.config(), settings, ends_only=True)
    found = standings(wal.repositories)
    # as much as is on its way at any time: what a receiver ships at once, and a segment that is pushed
    findings = judge_standings(found, little=_ON_ITS_WAY)
    now = wal.server.now if wal.server is not None else utc_now()
    rpos = [rpo_now(each) for each in wal.repositories]
    drills = known_drills(context.config(), settings)
    predicted = forecasts(wal, drills, now)
    findings += judge_objectives(wal, rpos, predicted, now)
    findings += judge_drills(settings, drills, now)
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
            "objectives": objectives_document(settings, rpos, predicted, backup_due(wal, predicted, now)),
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


def objectives_document(
    cluster: Cluster, rpos: Sequence[RpoNow], forecasts: Sequence[Forecast], due: Due
) -> dict[str, object]:
    """For ``--json``: what would be lost now, and how long a restore would take now, by repository."""
    predicted = {each.repository: each for each in forecasts}
    return {
        "rpo_seconds": cluster.objectives.rpo,
        "rto_seconds": cluster.objectives.rto,
        "backup_due": due.due,
        "backup_due_reason": due.reason,
        "backup_due_at": due.until,
        "repositories": [
            {
                "name": each.repository,
                "loss_seconds": each.seconds,
                "newest_moment": each.newest,
                "restore": None if each.repository not in predicted else _forecast(predicted[each.repository]),
            }
            for each in rpos
        ],
    }


def _forecast(each: Forecast) -> dict[str, object]:
    return {
        "backup": each.backup,
        "seconds": each.prediction.seconds,
        "low_seconds": each.prediction.low,
        "high_seconds": each.prediction.high,
        "measured_restores": each.prediction.measured,
        "write_bytes": each.work.written,
        "fetch_bytes": each.work.fetched,
        "wal_bytes": each.work.wal,
        "wal_bytes_per_second": each.wal_rate,
        "objective_until": each.due,
    }
