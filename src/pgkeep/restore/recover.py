"""Recovery in isolation: a restored server replays to its target on a private socket, is held there, checked, and promoted.

Nobody but us can connect meanwhile: the server listens in a private directory only, with a ``pg_hba.conf`` of its own, archives
nothing and starts no logical replication. It stops at the target before it ends recovery, so that one which is short of it is
never promoted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg

from pgkeep.errors import RecoveryError
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.control_file import ClusterState, parse_control_file
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.running import read_control_file
from pgkeep.postgres.server import Server
from pgkeep.postgres.timeline import history_name, parse_history
from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.restore.configure import clear_recovery_settings
from pgkeep.restore.plan import RestorePlan
from pgkeep.restore.private_server import private_place, stop_leftover, superuser_dsn
from pgkeep.restore.reached import check_end, check_stop
from pgkeep.restore.server_log import LOG_SETTINGS, RecoveryLog
from pgkeep.wal.fetch_source import WalSource
from pgkeep.wal.prefetch import Prefetcher

__all__ = ["Recovered", "RecoveredState", "recovered_server"]

RecoveredState = Literal["promoted", "paused", "shut down", "standby"]

_POLL = 0.03

_STOP_LIMIT = 3600.0
"""Seconds for the shutdown checkpoint of a server that has replayed much."""

_JOBS = 4

_RECOVERING: dict[str, str | int | bool] = {**LOG_SETTINGS, "hot_standby": True, "archive_cleanup_command": ""}


@dataclass
class Recovered:
    """A server that came back: how far its WAL was replayed, on which timeline it is now, and how to reach it.

    ``stopping`` are the server's own words on where it stopped, ``last_transaction`` on the last one that it replayed.
    ``seconds`` are those of each phase, ``waited`` those in which replay waited for WAL, ``fetched`` the bytes handed to it.
    ``starting`` are the seconds until replay began, which are part of ``seconds["replay"]``.
    """

    state: RecoveredState
    lsn: LSN
    timeline: int
    dsn: str
    log_file: str
    stopping: str | None = None
    last_transaction: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0
    fetched: int = 0
    starting: float = 0.0


@contextmanager
def recovered_server(plan: RestorePlan, repositories: Sequence[Repository], progress: Progress) -> Iterator[Recovered]:
    """Start the restored server, recover to the plan's target, and give it; at the end it is stopped in good order.

    A server that the target leaves paused or a standby lives on instead. Raises RecoveryError, with the server's own words,
    where it does not start, stops short of its target or past it; it is stopped then and was not promoted, unless the WAL's end
    was the target.
    """
    # one that was killed here may have left its server
    stop_leftover(plan.target)
    recovery = _Recovery(plan, progress)
    try:
        with _prefetching(plan, repositories) as prefetcher:
            outcome = recovery.run(prefetcher)
        yield outcome
    except BaseException:
        recovery.abandon()
        raise
    recovery.finish(outcome)


@contextmanager
def _prefetching(plan: RestorePlan, repositories: Sequence[Repository]) -> Iterator[Prefetcher]:
    identifier = plan.manifest.system_identifier
    sources = [WalSource.of(repository.store.url, repository, identifier) for repository in repositories]
    recovery = plan.recovery
    with Prefetcher(
        plan.target / "pg_wal",
        sources,
        recovery.segment_size,
        path=None if recovery.target.standby else recovery.path,
        depth=plan.request.prefetch,
        jobs=plan.request.jobs or _JOBS,
        limit_lsn=None if recovery.target.kind == "latest" else recovery.stop_lsn,
        by_files=plan.programs.in_container,
    ) as prefetcher:
        yield prefetcher


class _Recovery:
    def __init__(self, plan: RestorePlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        sockets = plan.request.sockets
        self._private, isolated = private_place(None if sockets is None else Path(sockets))
        # postgresql.conf may name the origin's own
        own = {"data_directory": str(plan.target), "external_pid_file": ""}
        self._settings = {**isolated, **_RECOVERING, **own}
        target = plan.recovery.target
        if target.action == "promote" and not target.standby:
            # held at the target until it is checked that this is the one; without one there is nothing to hold it at
            self._settings["recovery_target_action"] = "pause"
        port = int(plan.request.settings.get("port", "5432"))
        self._server = Server(plan.target, plan.programs, socket_directory=self._private, port=port)
        self._redo_began: float | None = None
        self._control_file = plan.target / "global" / "pg_control"

    def run(self, prefetcher: Prefetcher) -> Recovered:
        plan = self._plan
        begun = time.monotonic()
        self._progress.phase("recovering", plan.recovery.wal_bytes)
        self._server.start(self._settings, wait=False)
        self._log = RecoveryLog(self._server.log_file, self._server.log_start)
        state = self._follow(prefetcher)
        seconds = {"replay": time.monotonic() - begun}
        if state == "paused":
            check_stop(plan.recovery, self._log.stopping)
            if plan.recovery.target.action == "promote":
                self._promote()
                seconds["promote"] = time.monotonic() - begun - seconds["replay"]
                state = "promoted"
        lsn, timeline = self._end(state)
        # a server that was held at its target says the last words on its recovery when it is let go
        self._log.read()
        check_end(plan.recovery, lsn, timeline, promoted=state == "promoted")
        return Recovered(
            state=state,
            lsn=lsn,
            timeline=timeline,
            dsn=self._server.dsn(),
            log_file=str(self._server.log_file),
            stopping=self._log.stopping,
            last_transaction=self._log.last_transaction,
            seconds=seconds,
            waited=prefetcher.waited_seconds,
            fetched=prefetcher.fetched_bytes,
            starting=(self._redo_began or begun) - begun,
        )

    def abandon(self) -> None:
        """After an error: the server is stopped as it is, so that nobody takes it for recovered."""
        with contextlib.suppress(ProcessLookupError):
            self._server.stop("immediate")
        shutil.rmtree(self._private, ignore_errors=True)

    def finish(self, outcome: Recovered) -> None:
        if outcome.state in {"paused", "standby"}:
            self._server.detach()
            return
        if outcome.state == "promoted":
            clear_recovery_settings(self._plan.target)
            self._server.stop("fast", _STOP_LIMIT)
        shutil.rmtree(self._private, ignore_errors=True)

    def _follow(self, prefetcher: Prefetcher) -> RecoveredState:
        """Watch until the target is reached, or recovery has ended, or the server."""
        plan, shown = self._plan, 0
        while True:
            status = self._server.status()
            self._log.read()
            if self._log.redo and self._redo_began is None:
                self._redo_began = time.monotonic()
            done = min(prefetcher.fetched_bytes, plan.recovery.wal_bytes)
            if done > shown:
                self._progress.advance(done - shown)
                shown = done
            if self._log.paused:
                return "paused"
            control = read_control_file(self._plan.target)
            if status is None:
                if self._log.shut_down and control is not None:
                    return "shut down"
                raise self._failed()
            if control is not None and status == "ready":
                if control.state is ClusterState.IN_PRODUCTION:
                    return "promoted"
                if plan.recovery.target.standby and self._replayed() >= plan.recovery.stop_lsn:
                    return "standby"
            time.sleep(_POLL)

    def _promote(self) -> None:
        """As pg_promote() does it: a file, and SIGUSR1 (src/backend/access/transam/xlogfuncs.c)."""
        self._progress.phase("promoting")
        promote = self._plan.target / "promote"
        promote.touch(0o600)
        give_to(server_account(), promote)
        pid = self._server.process_id
        if pid is None:
            raise self._failed()
        os.kill(pid, signal.SIGUSR1)
        while True:
            control = read_control_file(self._plan.target)
            if control is not None and control.state is ClusterState.IN_PRODUCTION:
                return
            if self._server.status() is None:
                self._log.read()
                raise self._failed()
            time.sleep(_POLL)

    def _end(self, state: RecoveredState) -> tuple[LSN, int]:
        """Where replay ended, and the timeline from there on."""
        if state == "promoted":
            # the checkpoint of the new timeline may still be under way: the newest history file names it for sure
            timeline = self._newest_timeline()
            history = (self._plan.target / "pg_wal" / history_name(timeline)).read_bytes()
            return parse_history(timeline, history).switches[-1].lsn, timeline
        timeline = self._plan.recovery.path.timeline
        if state == "shut down":
            control = parse_control_file(self._control_file.read_bytes())
            return control.min_recovery_point, control.min_recovery_point_timeline or timeline
        return self._replayed(), timeline

    def _newest_timeline(self) -> int:
        names = (path.name for path in (self._plan.target / "pg_wal").glob("*.history"))
        return max((int(name[:8], 16) for name in names), default=1)

    def _replayed(self) -> LSN:
        """Where replay is, asked of the server itself."""
        with psycopg.connect(superuser_dsn(self._server.dsn(), self._plan.target)) as connection:
            row = connection.execute("SELECT pg_last_wal_replay_lsn()::text").fetchone()
        return LSN.parse(str(row[0])) if row is not None else LSN(0)

    def _failed(self) -> RecoveryError:
        log = self._server.log_file
        reason = self._log.failure or "see the end of its log:\n" + self._server.log_tail()
        return RecoveryError(
            f"recovery failed before its target was reached; the server said: {reason}",
            hint=f"the whole log: {log}; what can be reached: pgkeep list --window",
        )
