"""What a drill refuses before it touches anything, and what it finds to have proven nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgkeep.cli import drill_cmd
from pgkeep.config import Cluster
from pgkeep.drill.checking import checked_nothing, failure_of
from pgkeep.drill.places import refuse_source
from pgkeep.drill.record import Check
from pgkeep.drill.request import SCENARIOS, DrillRequest
from pgkeep.drill.runner import run_drill
from pgkeep.errors import ConfigError, DamageError, ProofError, RecoveryError, UsageError
from pgkeep.repository import Repository, open_store
from pgkeep.restore.target import target_lsn


def cluster(place: Path, **drill: Any) -> Cluster:
    return Cluster.model_validate(
        {
            "name": "auth",
            "dsn": "host=/nowhere",
            "repositories": ("main",),
            "server": {"data_directory": place / "pg" / "data"},
            "drill": {"directory": place / "drills", **drill},
        }
    )


def check(kind: Any, outcome: Any = "passed", counted: int = 1, detail: str = "as it should be") -> Check:
    return Check(name=kind, kind=kind, outcome=outcome, counted=counted, detail=detail)


@pytest.mark.parametrize(
    ("checks", "named"), [([], "no check"), (["extensions"], "extensions")], ids=["none", "no data"]
)
def test_a_drill_that_would_look_at_nothing_is_refused(tmp_path: Path, checks: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"would check nothing that came back: drill.checks names {named}"):
        run_drill(DrillRequest(), cluster(tmp_path, checks=checks), [])


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3},
        {"random": True, "target": target_lsn("0/3000000")},
        {"compare": True, "random": True},
        {"scenario": "table-dropped", "random": True},
        {"scenario": "bad-migration", "target": target_lsn("0/3000000")},
        {"scenario": "server-lost", "compare": True},
        {"scenario": "newest-damaged", "backup": "latest"},
        {"scenario": "region-lost"},
    ],
    ids=str,
)
def test_what_cannot_be_meant_together_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_drill(DrillRequest(**options), cluster(tmp_path), [])


@pytest.mark.parametrize(
    ("drill", "message"),
    [
        ({"port": 5432}, "port 5432, which is the source's own"),
        ({"directory": "pg/data"}, "would lie with the source's own data"),
        ({"directory": "pg/data/drills"}, "would lie with the source's own data"),
        ({"directory": "pg"}, "would lie with the source's own data"),
        ({"directory": "repository/drills"}, "would lie with the repository"),
    ],
    ids=str,
)
def test_a_drill_does_not_come_near_the_source_or_the_repository(
    tmp_path: Path, drill: dict[str, Any], message: str
) -> None:
    (tmp_path / "pg" / "data").mkdir(parents=True)
    repository = Repository.create(open_store(str(tmp_path / "repository")), None)
    if "directory" in drill:
        drill = {"directory": tmp_path / drill["directory"]}
    with pytest.raises(ConfigError, match=message):
        refuse_source(cluster(tmp_path, **drill), [repository])
    refuse_source(cluster(tmp_path), [repository])


def test_a_drill_that_could_look_at_nothing_has_failed() -> None:
    nothing = [
        check("reached"),
        check("extensions"),
        check("tables", counted=0),
        check("amcheck", "skipped", detail="no"),
    ]
    failure = checked_nothing(nothing)
    assert isinstance(failure, ProofError)
    assert "checked nothing" in str(failure)
    assert "amcheck (no)" in str(failure)
    assert checked_nothing([*nothing, check("assertion")]) is None


@pytest.mark.parametrize(
    ("kind", "error"),
    [("reached", RecoveryError), ("amcheck", DamageError), ("comparison", DamageError), ("sequences", ProofError)],
)
def test_the_first_failed_check_is_the_cause(kind: str, error: type[Exception]) -> None:
    failure = failure_of([check("tables"), check(kind, "failed", detail="it is wrong"), check("assertion", "failed")])
    assert type(failure) is error
    assert str(failure) == "it is wrong"


def test_the_command_knows_every_scenario() -> None:
    assert drill_cmd._SCENARIOS == SCENARIOS
