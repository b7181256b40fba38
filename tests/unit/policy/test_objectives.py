"""Objectives: what is said of them, and when the next backup is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgkeep.config import load_config
from pgkeep.errors import ObjectiveMissed, StoreError
from pgkeep.policy.objectives import backup_due, clock, forecast, judge_objectives, rpo_now
from pgkeep.policy.rto import MIB, Measured, Work
from pgkeep.postgres.lsn import LSN
from pgkeep.repository.manifests import Manifest
from pgkeep.wal.status import NewestWal, ReceiverState, RepositoryWal, WalStatus
from support.manifests import plain_manifest

_NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
_GIB = 1 << 30
# 100 MiB/s of files, 20 MiB/s of WAL, and nothing else worth a word
_MEASURED = [
    Measured(Work(size * _GIB, size * _GIB, wal * _GIB), size * _GIB / (100 * MIB), wal * _GIB / (20 * MIB), 0.5)
    for size, wal in [(1, 1), (4, 2), (10, 1), (2, 8), (8, 4), (20, 2)]
]


def _manifest(*, hours: float, size: int = 20 * _GIB) -> Manifest:
    """A backup of so many hours ago, which took ten minutes, at LSN 1 GiB."""
    began = _NOW - timedelta(hours=hours)
    return plain_manifest(
        start_lsn=_GIB,
        stop_lsn=_GIB + 4096,
        started=began,
        finished=began + timedelta(minutes=10),
        logical_size=size,
        stored_size=size,
    )


@pytest.fixture
def status(tmp_path: Path) -> WalStatus:
    """Of a cluster without a repository that was read, and without a server."""
    path = tmp_path / "pgkeep.toml"
    path.write_text(
        f'[repository.main]\nurl = "file://{tmp_path}/repository"\nkey = "none"\n[cluster.main]\ndsn = "dbname=nowhere"\n'
    )
    return WalStatus(load_config(path).cluster("main"), None, None, ReceiverState(running=False, document={}), [])


def _repository(*manifests: Manifest, wal: int, age: float | None = 5.0, behind: int | None = 100_000) -> RepositoryWal:
    newest = NewestWal(1, LSN(_GIB + wal), _NOW - timedelta(seconds=age or 0), behind, age)
    return RepositoryWal("main", "file:///repository", backups=list(manifests), newest=newest)


def test_a_restore_within_its_objective_says_until_when_it_will_be(status: WalStatus) -> None:
    # 205 s for the files; 695 s are left for WAL at 20 MiB/s, 13.6 GiB; 6 of them came in 6 hours
    wal = _repository(_manifest(hours=6), wal=6 * _GIB)
    found = forecast(status, wal, _MEASURED, _NOW)
    assert found is not None
    assert found.prediction.seconds == pytest.approx(205 + 307, rel=0.1)
    assert found.wal_rate == pytest.approx(_GIB / 3600)
    assert found.due is not None
    assert abs(found.due - (_NOW + timedelta(hours=7.6))) < timedelta(hours=1)
    status.repositories.append(wal)
    (finding,) = judge_objectives(status, [], [found], _NOW)
    assert finding.status == "ok"
    assert f"the next backup is due by {clock(found.due, _NOW)} to stay within it" in finding.message
    due = backup_due(status, [found], _NOW)
    assert not due.due
    assert due.until == found.due - timedelta(minutes=10), "it must be there by then, and not just begin"


def test_a_restore_that_takes_too_long_is_an_alarm_and_a_backup_is_due(status: WalStatus) -> None:
    wal = _repository(_manifest(hours=20), wal=20 * _GIB)
    found = forecast(status, wal, _MEASURED, _NOW)
    assert found is not None
    status.repositories.append(wal)
    (finding,) = judge_objectives(status, [], [found], _NOW)
    assert isinstance(finding.error, ObjectiveMissed)
    assert finding.remedy is not None
    assert "pgkeep backup" in finding.remedy
    assert backup_due(status, [found], _NOW).due


def test_where_a_backup_would_not_help_none_is_asked_for(status: WalStatus) -> None:
    wal = _repository(_manifest(hours=1, size=500 * _GIB), wal=_GIB)
    found = forecast(status, wal, _MEASURED, _NOW)
    assert found is not None
    status.repositories.append(wal)
    (finding,) = judge_objectives(status, [], [found], _NOW)
    assert finding.remedy is not None
    assert "would not help" in finding.remedy
    due = backup_due(status, [found], _NOW)
    assert (due.due, due.reason) == (
        False,
        "a restore takes longer than it may, and a new backup would not make it shorter",
    )


def test_without_any_drill_it_is_said_that_nothing_was_measured(status: WalStatus) -> None:
    found = forecast(status, _repository(_manifest(hours=6), wal=_GIB), [], _NOW)
    assert found is not None
    (finding,) = judge_objectives(status, [], [found], _NOW)
    assert finding.status in {"ok", "warning"}, "no alarm on a guess"
    assert "from built-in rates, which no drill has measured" in finding.message


def test_a_cluster_without_a_backup_is_due_for_one(status: WalStatus) -> None:
    status.repositories.append(RepositoryWal("main", "file:///repository"))
    due = backup_due(status, [], _NOW)
    assert (due.due, due.reason) == (True, "repository main has no backup of cluster main")


def test_an_idle_server_is_not_due(status: WalStatus) -> None:
    wal = _repository(_manifest(hours=6), wal=4096)
    found = forecast(status, wal, _MEASURED, _NOW)
    assert found is not None
    status.repositories.append(wal)
    due = backup_due(status, [found], _NOW)
    assert (due.due, due.until) == (False, None)


@pytest.mark.parametrize(
    ("age", "behind", "expected"),
    [(5.0, 100_000, "ok"), (301.0, 100_000, "failed"), (301.0, 100, "ok"), (301.0, None, "warning"), (0.0, 0, "ok")],
)
def test_the_loss_now_is_held_against_its_objective(
    status: WalStatus, age: float, behind: int | None, expected: str
) -> None:
    wal = _repository(_manifest(hours=1), wal=_GIB, age=age, behind=behind)
    status.repositories.append(wal)
    now = rpo_now(wal)
    assert (now.seconds, now.newest) == (age, _NOW - timedelta(seconds=age))
    (finding,) = judge_objectives(status, [now], [], _NOW)
    assert finding.status == expected


def test_a_repository_that_does_not_answer_has_no_newest_moment() -> None:
    now = rpo_now(RepositoryWal("main", "file:///repository", StoreError("gone")))
    assert (now.seconds, now.newest) == (None, None)
