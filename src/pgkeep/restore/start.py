"""Starting a restored server, following its recovery, and asserting where it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import DamageError, RecoveryError
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.control_file import ClusterState, ControlFile, parse_control_file
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import Server
from pgkeep.progress import Progress
from pgkeep.restore.configure import clear_recovery_settings
from pgkeep.restore.plan import RestorePlan

__all__ = ["RecoveryOutcome", "start_and_follow"]

_LIMIT = 3600.0
"""Seconds for a recovery of a backup's own WAL: an hour of replay is more than any backup's duration writes."""

_POLL = 0.05


@dataclass(frozen=True, slots=True)
class RecoveryOutcome:
    """A server that came back: how far its WAL reached, on which timeline, and how to connect to it."""

    lsn: LSN
    timeline: int
    dsn: str
    log_file: str


def start_and_follow(plan: RestorePlan, progress: Progress) -> RecoveryOutcome:
    """Start the restored server and wait until it has recovered; it keeps running.

    Raises RecoveryError, with the server's last words, where it does not start or ends short of the backup's stop LSN.
    """
    manifest = plan.manifest
    port = int(plan.request.settings.get("port", "5432"))
    server = Server(plan.target, find_binaries(plan.major), port=port)
    progress.phase("recovering", manifest.stop_lsn - manifest.start_lsn)
    try:
        server.start(wait=False)
        control = _follow(server, plan, progress)
    except BaseException:
        server.stop("immediate")
        raise
    # a checkpoint of the new timeline is written at the end of recovery, so it lies behind all that was replayed
    if control.checkpoint < manifest.stop_lsn or control.timeline <= manifest.timeline:
        server.stop("fast")
        raise RecoveryError(
            f"recovery ended at {control.checkpoint} on timeline {control.timeline}, short of the backup's end at"
            f" {LSN(manifest.stop_lsn)}",
            hint=f"see {server.log_file}",
        )
    clear_recovery_settings(plan.target)
    server.detach()
    return RecoveryOutcome(control.checkpoint, control.timeline, server.dsn(), str(server.log_file))


def _follow(server: Server, plan: RestorePlan, progress: Progress) -> ControlFile:
    control_file = plan.target / "global" / "pg_control"
    deadline = time.monotonic() + _LIMIT
    seen = plan.manifest.start_lsn
    while time.monotonic() < deadline:
        status = server.status()
        if status is None:
            server.wait_ready(timeout=0)
        control = _read_control(control_file)
        if control is not None:
            reached = min(max(control.min_recovery_point, control.checkpoint), plan.manifest.stop_lsn)
            if reached > seen:
                progress.advance(reached - seen)
                seen = reached
            if status == "ready" and control.state is ClusterState.IN_PRODUCTION:
                return control
        time.sleep(_POLL)
    raise RecoveryError(f"the server has not recovered after {_LIMIT:.0f} s", hint=f"see its log: {server.log_file}")


def _read_control(path: Path) -> ControlFile | None:
    """The control file, or None where it is being written at this moment."""
    try:
        return parse_control_file(path.read_bytes())
    except (DamageError, OSError):
        return None
