"""``pgkeep wal status``: what WAL is held, what is missing, and who brings it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgkeep.cli.findings import show_findings
from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import format_duration, format_size, format_time

if TYPE_CHECKING:
    from pgkeep.cli.output import Output
    from pgkeep.wal.server_wal import ServerWal
    from pgkeep.wal.status import RepositoryWal, WalStatus

__all__ = ["command"]


@click.command(
    "status",
    short_help="Show what WAL is held, what is missing, and how old the newest is.",
    epilog=examples("pgkeep wal status", "pgkeep wal status --cluster auth --json"),
)
@common_options
@cluster_option
def command(context: Context, cluster: str | None) -> None:
    """Show a cluster's WAL in each repository, and the receiver, slot and archiver that bring it.

    Ends with 0 where WAL comes in and nothing is missing, even with warnings; else with the exit code of the first failure.
    """
    from pgkeep.copies.standing import standings
    from pgkeep.findings import first_failure
    from pgkeep.wal.status import read_wal_status
    from pgkeep.wal.status_findings import judge

    status = read_wal_status(context.config(), context.config().cluster(cluster))
    findings = judge(status)
    for repository, standing in zip(status.repositories, standings(status.repositories), strict=True):
        _show_repository(context.output, repository)
        if standing.wal_behind:
            since = "" if standing.seconds_behind is None else f", {format_duration(standing.seconds_behind)}"
            text = f"repository {repository.name} is {format_size(standing.wal_behind)} behind the best one{since}"
            context.output.line(text, "yellow")
    show_findings(context.output, findings)
    failure = first_failure(findings)
    context.output.document(
        {
            **_document(status),
            "ok": failure is None,
            "findings": [finding.document() for finding in findings],
        }
    )
    if failure is not None:
        context.exit(failure.exit_code)


def _show_repository(output: Output, repository: RepositoryWal) -> None:
    rows = []
    for timeline in repository.timelines:
        gaps = {gap.start: gap for gap in timeline.gaps}
        for span in timeline.spans:
            number = str(timeline.timeline)
            rows.append((number, str(span.start), str(span.end), format_size(span.end - span.start), ""))
            gap = gaps.get(span.end)
            if gap is not None:
                rows.append((number, str(gap.start), str(gap.end), format_size(gap.end - gap.start), "missing"))
    if rows:
        output.line(f"repository {repository.name} ({repository.url})", "bold")
        output.table(("TIMELINE", "FROM LSN", "UNTIL LSN", "SIZE", ""), rows, right=("TIMELINE", "SIZE"))
    newest = repository.newest
    if newest is not None:
        age = "unknown" if newest.age is None else format_duration(newest.age)
        current = "" if newest.current_at is None else f" (everything up to {format_time(newest.current_at)} is there)"
        output.fields([("newest", f"LSN {newest.lsn} on timeline {newest.timeline}"), ("age", age + current)])
        output.line()


def _document(status: WalStatus) -> dict[str, object]:
    from pgkeep.cli.status_cmd import behind_document
    from pgkeep.copies.standing import standings

    receiver = status.receiver
    return {
        "cluster": status.cluster.name,
        "repositories": [
            {**_repository_document(repository), "behind_best": behind_document(standing)}
            for repository, standing in zip(status.repositories, standings(status.repositories), strict=True)
        ],
        "receiver": {
            "running": receiver.running,
            "connected": receiver.connected,
            **{
                key: receiver.document.get(key)
                for key in (
                    "updated",
                    "connected_since",
                    "timeline",
                    "received_lsn",
                    "durable_lsn",
                    "server_lsn",
                    "complete",
                    "spool",
                )
            },
            "repositories": receiver.repositories,
            "alarms": receiver.alarms,
        },
        "server": None if status.server is None else _server_document(status.server),
    }


def _repository_document(repository: RepositoryWal) -> dict[str, object]:
    newest = repository.newest
    return {
        "name": repository.name,
        "url": repository.url,
        "error": None if repository.error is None else str(repository.error),
        "system_identifier": None if repository.system_identifier is None else str(repository.system_identifier),
        "timelines": [
            {
                "timeline": timeline.timeline,
                "has_history": timeline.has_history,
                "branches_off": None
                if timeline.branches_off is None
                else {"timeline": timeline.branches_off[0], "lsn": str(timeline.branches_off[1])},
                "ranges": [{"start_lsn": str(span.start), "end_lsn": str(span.end)} for span in timeline.spans],
                "gaps": [{"start_lsn": str(gap.start), "end_lsn": str(gap.end)} for gap in timeline.gaps],
            }
            for timeline in repository.timelines
        ],
        "newest": None
        if newest is None
        else {
            "timeline": newest.timeline,
            "lsn": str(newest.lsn),
            "current_at": newest.current_at,
            "age_seconds": newest.age,
            "behind_bytes": newest.behind,
        },
    }


def _server_document(server: ServerWal) -> dict[str, object]:
    slot, archiver = server.slot, server.archiver
    return {
        "time": server.now,
        "timeline": server.timeline,
        "in_recovery": server.in_recovery,
        "lsn": str(server.lsn),
        "slot_cap_bytes": server.slot_cap,
        "slot": None
        if slot is None
        else {
            "name": slot.name,
            "active": slot.active,
            "wal_status": slot.wal_status,
            "restart_lsn": None if slot.restart_lsn is None else str(slot.restart_lsn),
            "retained_bytes": slot.retained,
            "safe_bytes": slot.safe,
        },
        "archiver": {
            "mode": archiver.mode,
            "command": archiver.command,
            "archived": archiver.archived,
            "last_archived": archiver.last_archived,
            "last_archived_time": archiver.last_archived_time,
            "failed": archiver.failed,
            "last_failed": archiver.last_failed,
            "last_failed_time": archiver.last_failed_time,
        },
    }
