"""The options of ``pgkeep restore``: what they mean, and which contradict each other."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgkeep.cli.main import execute
from pgkeep.cli.target_options import AskedTarget
from pgkeep.errors import UsageError
from pgkeep.restore.target import RecoveryTarget, immediate, latest


def test_no_option_says_nothing() -> None:
    assert AskedTarget(values={}).target("UTC") is None


def test_a_time_without_a_zone_is_taken_in_the_clusters() -> None:
    target = AskedTarget(values={"--to": "2025-06-01 03:15:00"}, exclusive=True).target("Asia/Seoul")
    assert target is not None
    assert target.time == datetime(2025, 5, 31, 18, 15, tzinfo=UTC)
    assert target.exclusive


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--to-lsn", "0/3000060", RecoveryTarget(kind="lsn", value="0/3000060")),
        ("--to-xid", "77", RecoveryTarget(kind="xid", value="77", written="77")),
        ("--to-name", "a b", RecoveryTarget(kind="name", value="a b")),
        ("--latest", "", latest),
        ("--immediate", "", immediate),
    ],
)
def test_each_option_is_a_target(option: str, value: str, expected: RecoveryTarget) -> None:
    assert AskedTarget(values={option: value}).target(None) == expected


def test_what_only_modifies_a_target_goes_with_the_default() -> None:
    assert AskedTarget(values={}, timeline="2").target(None) == RecoveryTarget(kind="latest", timeline=2)
    assert AskedTarget(values={}, standby=True).target(None) == RecoveryTarget(kind="latest", standby=True)
    assert AskedTarget(values={}, action="pause").target(None, backup_is_named=True) == RecoveryTarget(
        kind="immediate", action="pause"
    )


def test_a_named_backup_on_a_timeline_does_not_say_how_far() -> None:
    with pytest.raises(UsageError, match="--timeline does not say how far to go"):
        AskedTarget(values={}, timeline="2").target(None, backup_is_named=True)


def test_several_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="--to and --latest are several targets"):
        AskedTarget(values={"--to": "5min ago", "--latest": ""}).target(None)


def test_a_standby_has_no_action() -> None:
    with pytest.raises(UsageError, match="contradict"):
        AskedTarget(values={"--latest": ""}, standby=True, action="pause").target(None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "where to restore is not said"),
        (["--target-dir", "x", "--in-place"], "--in-place and --target-dir contradict"),
        (["--in-place", "--start"], "--in-place and --start contradict"),
        (["--in-place", "--standby"], "--in-place and --standby contradict"),
        (["--in-place", "--action", "pause"], "--in-place and --action contradict"),
        (["--in-place", "--keep-archiving"], "--in-place and --keep-archiving contradict"),
        (["--in-place", "--undo", "--to", "5min ago"], "--undo and --to contradict"),
        (["--in-place", "--undo", "latest"], "--undo and BACKUP contradict"),
        (["--in-place", "--undo", "--no-rollback"], "--undo and --no-rollback contradict"),
        (["--undo", "--target-dir", "x"], "--undo goes with --in-place"),
        (["--carry", "t", "--target-dir", "x"], "--carry goes with --in-place"),
        (["--work-dir", "/w", "--target-dir", "x"], "--work-dir goes with --in-place"),
        (["--target-dir", "x", "--set", "port"], "--set takes NAME=VALUE"),
        (["--target-dir", "x", "--action", "stop"], "invalid value for '--action'"),
    ],
)
def test_what_contradicts_is_refused_before_any_configuration_is_read(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["restore", *words]) == 2
    answer = capsys.readouterr().err
    assert message in answer
    assert "hint: " in answer
