"""``pgkeep list``: the backups there are, and what can be reached from them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.cli.target_options import cluster_settings
from pgkeep.errors import NotFoundError
from pgkeep.units import format_duration, format_size, format_time, utc_now

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from pgkeep.wal.overview import Overview

__all__ = ["command"]


@click.command(
    "list",
    short_help="List the backups, and what can be reached from them.",
    epilog=examples(
        "pgkeep list",
        "pgkeep list --window",
        "pgkeep list --json",
        "pgkeep list --repository file:///backups/auth_db --key-file recovery-key.txt",
    ),
)
@common_options
@repository_options
@click.option("--window", is_flag=True, help="Show the spans of time and WAL that can be reached, for each timeline.")
@click.option("--restore-points", is_flag=True, help="Show the restore points that the WAL holds.")
def command(context: Context, chosen: Chosen, window: bool, restore_points: bool) -> None:
    """List the backups of a cluster, oldest first.

    KIND says how a backup was read: full, or only what had changed; each is complete by itself. LOGICAL is what the files
    hold, STORED what a restore reads, NEW what the backup added to the repository. With --window,
    each line is a stretch that can be reached, all of it, and the backup that a restore would start from.
    """
    if window or restore_points:
        _show_reachable(context, chosen, window=window)
        return
    from pgkeep.cli.backup_documents import backup_document, format_lsn, pin_text, state_of
    from pgkeep.drill.memory import proven_backups
    from pgkeep.verify import VerifyMemory

    repository = chosen.open()
    memory, proven = VerifyMemory(repository.store, repository, objects=False), proven_backups(repository)
    manifests = list(repository.catalog.read_all(chosen.cluster, directories=False))
    pins = repository.pins.in_force(utc_now(), {manifest.system_identifier for manifest in manifests})
    rows = [
        (
            manifest.id,
            manifest.cluster,
            manifest.kind,
            state_of(memory.backups.get(manifest.id), proven.get(manifest.id)),
            format_time(manifest.started),
            format_duration((manifest.finished - manifest.started).total_seconds()),
            format_size(manifest.logical_size),
            format_size(manifest.stored_size),
            format_size(manifest.new_size),
            str(manifest.timeline),
            format_lsn(manifest.stop_lsn),
            manifest.label,
            *([pin_text(pins.get(manifest.id, []))] if pins else []),
        )
        for manifest in manifests
    ]
    columns = (
        "BACKUP", "CLUSTER", "KIND", "STATE", "BEGUN", "TOOK", "LOGICAL", "STORED", "NEW", "TLI", "STOP LSN", "LABEL",
        *(["PINNED"] if pins else []),
    )  # fmt: skip
    if rows:
        context.output.table(columns, rows, right=("TOOK", "LOGICAL", "STORED", "NEW", "TLI"))
    else:
        context.output.line(f"no backup in {repository.store.url} yet; pgkeep backup takes one")
    context.output.document(
        {
            "repository": repository.store.url,
            "backups": [
                backup_document(
                    manifest, memory.backups.get(manifest.id), proven.get(manifest.id), pins.get(manifest.id, [])
                )
                for manifest in manifests
            ],
        }
    )


def _show_reachable(context: Context, chosen: Chosen, *, window: bool) -> None:
    from pgkeep.cli.window_output import overview_document, show_overview, show_restore_points

    cluster = cluster_settings(context, chosen)
    zone = None if cluster is None else cluster.time_zone
    repository = chosen.open()
    overviews = _overviews(repository, chosen.cluster, None if cluster is None else str(cluster.spool))
    for overview in overviews:
        if window:
            show_overview(context.output, overview, zone)
        show_restore_points(context.output, overview.restore_points, zone)
    context.output.document(
        {"repository": repository.store.url, "clusters": [overview_document(overview) for overview in overviews]}
    )


def _overviews(repository: Repository, cluster: str | None, spool: str | None) -> list[Overview]:
    from pathlib import Path

    from pgkeep.wal.overview import read_overview
    from pgkeep.wal.stamps import receiver_stamps

    manifests = sorted(
        repository.catalog.read_all(cluster, directories=False), key=lambda manifest: manifest.system_identifier
    )
    if not manifests:
        raise NotFoundError(f"no backup in {repository.store.url} yet", hint="pgkeep backup takes one")
    stamps = [] if spool is None else receiver_stamps(Path(spool))
    return [
        read_overview(repository, system, list(group), stamps)
        for system, group in groupby(manifests, key=lambda manifest: manifest.system_identifier)
    ]
