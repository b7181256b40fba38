"""A cluster against its objectives: what would be lost now, how long a restore would take now, and when the next backup is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgkeep.config import Cluster
from pgkeep.errors import ObjectiveMissed
from pgkeep.findings import Finding, failed
from pgkeep.policy.rto import Measured, Prediction, RtoModel, Work
from pgkeep.postgres.lsn import LSN
from pgkeep.repository.manifests import Manifest
from pgkeep.units import format_duration, format_size
from pgkeep.wal.status import RepositoryWal, WalStatus

__all__ = ["Due", "Forecast", "RpoNow", "backup_due", "forecast", "judge_objectives", "rpo_now"]

_LEAST_SPAN = 60.0
"""Seconds: over less, the rate of WAL is chance."""
_FAR = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class RpoNow:
    """What would be lost if the server were lost now, with only this repository left: ``seconds`` since ``newest``.

    ``newest`` is the newest recoverable moment; both are None where it is not known.
    """

    repository: str
    seconds: float | None
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """A restore that begins now, from the newest backup of a repository, up to the end of its WAL.

    ``wal_rate`` is in bytes a second, since that backup, None where it is not known; ``due`` is when, at that rate, such a restore would
    take as long as it may: None where that is not foreseeable, a moment in the past where it does already.
    ``helps``: whether a new backup brings it within the objective.
    """

    repository: str
    backup: str
    work: Work
    prediction: Prediction
    objective: float
    wal_rate: float | None
    due: datetime | None
    helps: bool


@dataclass(frozen=True, slots=True)
class Due:
    """That a backup is to be taken, and why, or that it is not, and until when: None where that is not foreseeable."""

    due: bool
    reason: str
    until: datetime | None = None


def rpo_now(wal: RepositoryWal) -> RpoNow:
    """Of one repository. Every commit that is there dates it; a heartbeat sees to it that there is one every few seconds."""
    newest = wal.newest
    if newest is None or wal.error is not None or not wal.backups:
        return RpoNow(wal.name, None, None)
    return RpoNow(wal.name, newest.age, newest.current_at)


def forecast(status: WalStatus, wal: RepositoryWal, measured: Sequence[Measured], now: datetime) -> Forecast | None:
    """For one repository; None where it has no backup, or no WAL of that backup's timeline behind it."""
    newest = max(wal.backups, key=lambda manifest: manifest.id, default=None)
    if newest is None or wal.error is not None or wal.newest is None:
        return None
    end = wal.newest.lsn
    if end < newest.start_lsn:
        return None
    work = Work(newest.logical_size, newest.stored_size, end - newest.start_lsn)
    model, objective = RtoModel(measured), status.cluster.objectives.rto
    prediction = model.predict(work)
    rate = _wal_rate(status, newest, end, now)
    most = model.most_wal(work, objective)
    due = None
    if most is not None and rate is not None:
        left = timedelta(seconds=min((most - work.wal) / rate, _FAR.total_seconds())) if rate > 0 else _FAR
        due = now + left if left < _FAR else None
    elif prediction.seconds > objective:
        due = now
    return Forecast(
        wal.name,
        newest.id,
        work,
        prediction,
        objective,
        rate,
        due,
        helps=most is not None and most > newest.stop_lsn - newest.start_lsn,
    )


def judge_objectives(
    status: WalStatus, rpos: Sequence[RpoNow], forecasts: Sequence[Forecast], now: datetime
) -> list[Finding]:
    """A finding for each objective and repository. Where the server has written next to nothing since, its age is no alarm."""
    cluster = status.cluster
    findings = [
        _judge_rpo(cluster, each, status) for each in rpos if each.seconds is not None or each.newest is not None
    ]
    return findings + [_judge_rto(each, now) for each in forecasts]


def backup_due(status: WalStatus, forecasts: Sequence[Forecast], now: datetime) -> Due:
    """Whether a backup has to be taken now, so that a restore stays within its objective while the next one is taken."""
    without = [each.name for each in status.repositories if each.error is None and not each.backups]
    if without:
        return Due(due=True, reason=f"repository {without[0]} has no backup of cluster {status.cluster.name}")
    if not forecasts:
        return Due(due=True, reason="no repository has a backup that could be restored up to now")
    latest: datetime | None = None
    for each in forecasts:
        if each.due is None:
            continue
        begin = each.due - _taking(status, each)
        if begin <= now:
            if not each.helps:
                continue
            return Due(
                due=True,
                reason=f"a restore from repository {each.repository} now takes about {format_duration(each.prediction.seconds)}"
                f" of the {format_duration(each.objective)} that it may, with {format_size(each.work.wal)} of WAL to replay",
            )
        latest = begin if latest is None else min(latest, begin)
    if any(each.due is not None and each.due <= now for each in forecasts):
        return Due(due=False, reason="a restore takes longer than it may, and a new backup would not make it shorter")
    if latest is None:
        return Due(
            due=False, reason="at today's WAL rate no backup is due within a year for the sake of the restore time"
        )
    return Due(due=False, reason=f"the next backup is due by {clock(latest, now)}", until=latest)


def clock(moment: datetime, now: datetime) -> str:
    """``14:20`` for today, with the date for another day; in this machine's zone."""
    local = moment.astimezone()
    return f"{local:%H:%M}" if local.date() == now.astimezone().date() else f"{local:%Y-%m-%d %H:%M}"


def _taking(status: WalStatus, each: Forecast) -> timedelta:
    """How long the newest backup took, which the next will, too."""
    for wal in status.repositories:
        for manifest in wal.backups:
            if wal.name == each.repository and manifest.id == each.backup:
                return manifest.finished - manifest.started
    return timedelta(0)


def _wal_rate(status: WalStatus, newest: Manifest, end: LSN, now: datetime) -> float | None:
    span = (now - newest.started).total_seconds()
    reached = status.server.lsn if status.server is not None and not status.server.in_recovery else end
    return (reached - newest.start_lsn) / span if span >= _LEAST_SPAN and reached > newest.start_lsn else None


def _judge_rpo(cluster: Cluster, each: RpoNow, status: WalStatus) -> Finding:
    name, objective = f"loss now, repository {each.repository}", cluster.objectives.rpo
    if each.seconds is None:
        return Finding(name, "unknown", "no record says how current its WAL is", "pgkeep wal status")
    text = f"{format_duration(each.seconds)} of at most {format_duration(objective)}"
    if each.seconds <= objective:
        return Finding(name, "ok", text)
    wal = next(wal for wal in status.repositories if wal.name == each.repository)
    behind = None if wal.newest is None else wal.newest.behind
    if behind is None:
        return Finding(
            name, "warning", f"{text}; whether the server has written since cannot be asked", "start the server"
        )
    if behind <= _LITTLE:
        return Finding(name, "ok", f"{text}; the server has written next to nothing since")
    return failed(name, ObjectiveMissed(text, hint="pgkeep wal status says what brings the WAL, and why it is late"))


_LITTLE = 8192
"""Bytes of WAL that an idle server writes by itself between checkpoints, and then some."""


def _judge_rto(each: Forecast, now: datetime) -> Finding:
    name = f"restore time now, repository {each.repository}"
    prediction, most = each.prediction, format_duration(each.objective)
    basis = (
        f"from {prediction.measured} measured restore{'s' * (prediction.measured > 1)}"
        if prediction.measured
        else "from built-in rates, which no drill has measured"
    )
    text = (
        f"about {format_duration(prediction.seconds)} ({format_duration(prediction.low)} to {format_duration(prediction.high)},"
        f" {basis}) of at most {most}"
    )
    remedy = None if prediction.measured else "pgkeep drill"
    if prediction.seconds > each.objective:
        if not each.helps:
            hint = "a new backup would not help: a faster repository, more jobs, or another objective does"
        else:
            hint = "pgkeep backup: it leaves less WAL to replay"
        if not prediction.measured:
            return Finding(name, "warning", text, "pgkeep drill measures it")
        return failed(name, ObjectiveMissed(text, hint=hint))
    if each.due is not None:
        text += f"; at today's WAL rate ({format_size(each.wal_rate or 0)}/s) the next backup is due by {clock(each.due, now)} to stay within it"
    if prediction.high > each.objective and prediction.measured:
        return Finding(name, "warning", text, "more drills make the prediction surer: pgkeep drill")
    return Finding(name, "ok", text, remedy)
