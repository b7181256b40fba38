"""What is wrong with a cluster's WAL, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pgkeep.errors import BusyError, NotFoundError, PgkeepError, ServerError, ServerSettingError, StoreError
from pgkeep.findings import Finding, failed
from pgkeep.postgres.lsn import LSN
from pgkeep.units import format_duration, format_size
from pgkeep.wal.overview import orphan_remedy
from pgkeep.wal.status import RepositoryWal, WalStatus

if TYPE_CHECKING:
    from pgkeep.repository.manifests import Manifest

__all__ = ["judge"]

_LITTLE = 8192
"""Bytes of WAL that an idle server writes by itself between checkpoints, and then some."""


def judge(status: WalStatus) -> list[Finding]:
    """One finding for each question, the good ones too."""
    return [
        _server(status),
        *_supply(status),
        *_slot(status),
        *_archiver(status),
        *_alarms(status),
        *(finding for repository in status.repositories for finding in _repository(status, repository)),
    ]


def _server(status: WalStatus) -> Finding:
    if status.server is None:
        assert status.server_error is not None
        return Finding("server", "unknown", f"it cannot be asked: {status.server_error}", status.server_error.hint)
    kind = "standby" if status.server.in_recovery else "primary"
    return Finding("server", "ok", f"{kind} on timeline {status.server.timeline}, at LSN {status.server.lsn}")


def _supply(status: WalStatus) -> Iterator[Finding]:
    """Whether anybody brings WAL at all."""
    server, receiver = status.server, status.receiver
    name = "receiver"
    elsewhere = server is not None and server.slot is not None and server.slot.active
    if receiver.connected:
        received = receiver.document.get("durable_lsn")
        yield Finding(name, "ok", f"streams, and has everything up to LSN {received}")
    elif elsewhere:
        yield Finding(name, "ok", f"streams from another machine: slot {status.cluster.slot} is in use")
    elif receiver.running:
        yield failed(
            name, ServerError("it runs, but has no connection to the server", hint="see its alarms below, and its log")
        )
    elif server is not None and server.archiver.is_on:
        if status.cluster.wal.stream and server.slot is not None:
            yield Finding(name, "warning", "none runs, and only archiving brings WAL", "pgkeep wal receive")
    elif server is None:
        yield Finding(name, "unknown", "none runs on this machine; the server cannot say whether one does elsewhere")
    else:
        yield failed(
            name,
            ServerSettingError(
                "no receiver runs and the server does not archive: nothing brings WAL",
                hint="pgkeep wal receive; or archive_mode = on and archive_command = 'pgkeep wal push %p'",
            ),
        )


def _slot(status: WalStatus) -> Iterator[Finding]:
    server = status.server
    if server is None or server.slot is None:
        return
    slot, name = server.slot, f"slot {server.slot.name}"
    retained = f"the server keeps {format_size(max(slot.retained or 0, 0))} of WAL for it"
    if slot.wal_status == "lost":
        yield failed(
            name,
            NotFoundError(
                "the server has given it up: WAL is missing from then on",
                hint="pgkeep wal receive makes a new one and takes a new backup",
            ),
        )
    elif slot.wal_status == "unreserved":
        yield failed(
            name,
            ServerError(
                f"{retained}, more than it may, and is about to remove some",
                hint="start pgkeep wal receive at once, or raise max_slot_wal_keep_size",
            ),
        )
    elif not slot.active and (slot.retained or 0) > server.segment_size:
        yield Finding(
            name,
            "warning",
            f"nobody uses it, and {retained}"
            + (", without a limit" if server.slot_cap is None else f" of at most {format_size(server.slot_cap)}"),
            f"pgkeep wal receive; or, where it is not wanted: SELECT pg_drop_replication_slot('{slot.name}');",
        )
    elif server.slot_cap is None:
        cap = max((status.cluster.wal.slot_cap or (32 << 30)) >> 20, 1)
        yield Finding(
            name,
            "warning",
            "it has no limit: WAL that it holds back may fill the server's disk",
            f"ALTER SYSTEM SET max_slot_wal_keep_size = '{cap}MB'; SELECT pg_reload_conf();",
        )
    else:
        yield Finding(name, "ok", f"{retained}, and may keep {format_size(server.slot_cap)}")


def _archiver(status: WalStatus) -> Iterator[Finding]:
    server = status.server
    if server is None or not server.archiver.is_on:
        return
    archiver = server.archiver
    if archiver.is_failing:
        yield failed(
            "archiver",
            ServerError(
                f"archive_command failed for {archiver.last_failed}, {archiver.failed} times in all, and nothing was"
                " archived since",
                hint="the server's log has what it said; until it succeeds, WAL fills the server's disk",
            ),
        )
    elif archiver.last_archived is None:
        yield Finding("archiver", "ok", "on; no segment was finished yet")
    else:
        yield Finding("archiver", "ok", f"archived {archiver.last_archived} last")


def _alarms(status: WalStatus) -> Iterator[Finding]:
    if not status.receiver.running:
        return
    for alarm in status.receiver.alarms:
        hint = alarm.get("hint")
        yield failed(
            f"alarm: {alarm.get('kind')}",
            PgkeepError(str(alarm.get("message")), hint=None if hint is None else str(hint)),
        )


def _repository(status: WalStatus, repository: RepositoryWal) -> Iterator[Finding]:
    name = f"repository {repository.name}"
    if repository.error is not None:
        yield failed(name, repository.error)
        return
    if repository.newest is None:
        yield failed(
            name,
            NotFoundError("it holds no WAL of this cluster", hint="pgkeep backup; then pgkeep wal receive"),
        )
        return
    yield _age(status, repository)
    yield from _gaps(repository)
    for timeline in repository.timelines:
        if not timeline.has_history:
            yield failed(
                f"{name}, timeline {timeline.timeline}",
                NotFoundError(
                    "its history file is missing, so nothing of it can be reached",
                    hint=orphan_remedy(timeline.timeline),
                ),
            )


def _age(status: WalStatus, repository: RepositoryWal) -> Finding:
    newest, rpo = repository.newest, status.cluster.objectives.rpo
    assert newest is not None
    name = f"newest WAL in {repository.name}"
    where = f"LSN {newest.lsn} on timeline {newest.timeline}"
    if newest.behind == 0:
        return Finding(name, "ok", f"{where}: all that the server has written")
    if newest.age is None:
        return Finding(name, "unknown", f"{where}; no record says when it was written")
    old = f"{where}, {format_duration(newest.age)} old"
    if newest.behind is None:
        if newest.age <= rpo:
            return Finding(name, "ok", old)
        if status.server is not None and status.server.timeline != newest.timeline:
            return failed(
                name,
                StoreError(
                    f"{old}, and the server writes timeline {status.server.timeline}, of which it has nothing newer",
                    hint="does pgkeep wal receive run? its log says what it waits for",
                ),
            )
        return Finding(
            name, "warning", f"{old}; whether the server has written since cannot be asked", "start the server"
        )
    text = f"{old}; {format_size(newest.behind)} behind the server"
    if newest.age <= rpo:
        return Finding(name, "ok", text)
    limit = f"{text}, and the objective is {format_duration(rpo)}"
    if newest.behind <= _LITTLE:
        return Finding(name, "warning", limit, "a server that archives may wait for a full segment: archive_timeout")
    return failed(name, BusyError(limit, hint="see the receiver and the archiver above"))


def _is_expired(repository: RepositoryWal, after: Sequence[Manifest]) -> bool:
    """Whether the rules keep no WAL of a gap before these backups: one of them begins the window, or is before it."""
    since = repository.kept_since
    return since is not None and any(manifest.finished < since for manifest in after)


def _gaps(repository: RepositoryWal) -> Iterator[Finding]:
    """Those behind a backup: it cannot be recovered beyond them."""
    if not repository.backups:
        yield failed(
            f"backups in {repository.name}",
            NotFoundError("there is none, so its WAL leads nowhere", hint="pgkeep backup takes one"),
        )
        return
    for timeline in repository.timelines:
        for gap in timeline.gaps:
            before = [m for m in repository.backups if m.timeline <= timeline.timeline and m.start_lsn < gap.end]
            after = [m for m in repository.backups if m.timeline >= timeline.timeline and m.start_lsn >= gap.end]
            if not before or _is_expired(repository, after):
                continue
            name = f"gap in {repository.name}"
            text = f"WAL from {gap.start} to {gap.end} of timeline {timeline.timeline} is missing"
            if after:
                first = after[0]
                yield Finding(
                    name,
                    "warning",
                    f"{text}: nothing can be reached between there and LSN {LSN(first.stop_lsn)}, where backup {first.id}"
                    " ends",
                    "where it lies on the server still: pgkeep wal push pg_wal/SEGMENT",
                )
            else:
                yield failed(
                    name,
                    NotFoundError(
                        f"{text}, and no backup was taken since: what was written behind it cannot be reached",
                        hint="pgkeep backup",
                    ),
                )
