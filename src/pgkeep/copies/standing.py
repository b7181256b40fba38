"""How each repository of a cluster stands: what it has, and how far it is behind the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pgkeep.errors import NotFoundError, PgkeepError, StoreError
from pgkeep.findings import Finding, failed
from pgkeep.postgres.lsn import LSN
from pgkeep.repository.manifests import ManifestHead
from pgkeep.units import format_duration, format_size
from pgkeep.wal.status import RepositoryWal

__all__ = ["Standing", "judge_standings", "standings"]


@dataclass(frozen=True)
class Standing:
    """One repository. ``error`` is why it cannot be told; all else is empty then.

    ``backups`` is how many it has, ``newest`` the newest of them. ``lsn`` is where its WAL ends, on ``timeline``; everything up to
    ``current_at`` is in it. Behind the best of the repositories: ``missing`` are ids of backups that another one has and that are newer
    than its own newest; ``wal_behind`` are bytes of WAL, None where the timelines differ, and ``seconds_behind`` is time, None where unknown.
    """

    name: str
    url: str
    error: PgkeepError | None = None
    backups: int = 0
    newest: ManifestHead | None = None
    timeline: int | None = None
    lsn: LSN | None = None
    current_at: datetime | None = None
    age: float | None = None
    missing: tuple[str, ...] = ()
    wal_behind: int | None = None
    seconds_behind: float | None = None


def standings(repositories: Sequence[RepositoryWal]) -> list[Standing]:
    """Each against the best of all that answer."""
    ids = sorted({manifest.id for each in repositories for manifest in each.backups})
    newest = [each.newest for each in repositories if each.newest is not None]
    best = max(((each.timeline, each.lsn) for each in newest), default=None)
    current = max((each.current_at for each in newest if each.current_at is not None), default=None)
    return [_standing(each, ids, best, current) for each in repositories]


def _standing(
    wal: RepositoryWal, ids: Sequence[str], best: tuple[int, LSN] | None, current: datetime | None
) -> Standing:
    if wal.error is not None:
        return Standing(wal.name, wal.url, wal.error)
    newest = max(wal.backups, key=lambda manifest: manifest.id, default=None)
    missing = tuple(each for each in ids if newest is None or each > newest.id)
    end = wal.newest
    behind = seconds = None
    if end is not None and best is not None and end.timeline == best[0]:
        behind = best[1] - end.lsn
    if behind == 0:
        seconds = 0.0
    elif end is not None and end.current_at is not None and current is not None:
        seconds = (current - end.current_at).total_seconds()
    return Standing(
        wal.name,
        wal.url,
        None,
        len(wal.backups),
        newest,
        None if end is None else end.timeline,
        None if end is None else end.lsn,
        None if end is None else end.current_at,
        None if end is None else end.age,
        missing,
        behind,
        seconds,
    )


def judge_standings(found: Sequence[Standing], *, little: int) -> list[Finding]:
    """A finding for each repository; ``little`` is how many bytes of WAL are no lag."""
    return [_judge(each, found, little) for each in found]


def _judge(standing: Standing, found: Sequence[Standing], little: int) -> Finding:
    name = f"repository {standing.name}"
    if standing.error is not None:
        return failed(name, standing.error)
    if standing.newest is None:
        return failed(name, NotFoundError("it has no backup of this cluster", hint=_remedy(standing, found)))
    behind = []
    if standing.missing:
        behind.append(f"{len(standing.missing)} backup{'s' * (len(standing.missing) > 1)}")
    if any(each.lsn is not None for each in found) and (standing.wal_behind is None or standing.wal_behind > little):
        amount = "WAL" if standing.wal_behind is None else f"{format_size(standing.wal_behind)} of WAL"
        since = "" if standing.seconds_behind is None else f" ({format_duration(standing.seconds_behind)})"
        behind.append(amount + since)
    if behind:
        return failed(name, StoreError(f"it is behind by {' and '.join(behind)}", hint=_remedy(standing, found)))
    return Finding(name, "ok", f"newest backup {standing.newest.id}; WAL up to {standing.lsn}")


def _remedy(standing: Standing, found: Sequence[Standing]) -> str:
    best = max(
        (each for each in found if each is not standing and each.newest is not None),
        key=lambda each: (-len(each.missing), each.timeline or 0, each.lsn or 0),
        default=None,
    )
    if best is None:
        return "pgkeep backup"
    return f"pgkeep copy --from {best.name} --to {standing.name} --wal; a receiver or archive_command that runs catches WAL up by itself"
