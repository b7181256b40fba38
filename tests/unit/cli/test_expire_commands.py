"""``pgkeep expire`` and ``pin`` on a repository of many nights, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgkeep.cli import main, pin_cmd
from pgkeep.units import utc_now
from support.jobs import KEY
from support.kept_repository import DAY, HOUR, KeptRepository

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "json.md"

Program = Callable[..., str]


@pytest.fixture
def kept(tmp_path: Path) -> KeptRepository:
    made = KeptRepository(tmp_path / "repository")
    # commands go by this machine's clock
    newest = utc_now() - HOUR
    for number in range(20):
        made.backup(newest - number * DAY)
    made.wal(newest - 21 * DAY, newest)
    return made


@pytest.fixture
def pgkeep(kept: KeptRepository, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs a command line; gives its standard output."""
    key = tmp_path / "pgkeep.key"
    key.write_text(KEY.text())
    key.chmod(0o600)
    config = tmp_path / "pgkeep.toml"
    config.write_text(
        f'[repository.main]\nurl = "{kept.directory}"\nkey = "file:{key}"\n'
        '[repository.main.retention]\nwindow = "2d"\nyearly = 2\n'
        '[cluster.auth]\ndsn = "host=/nowhere"\ntime_zone = "Asia/Seoul"\n'
    )

    def run(*arguments: str, code: int = 0) -> str:
        assert main.execute([*arguments, "--config", str(config)]) == code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("option", "end"),
    [
        (("--until", "2093-12-31"), "2093-12-31T14:59:59Z"),
        (("--until", "2093-12-31 12:00 UTC"), "2093-12-31T12:00:00Z"),
        ((), None),
    ],
    ids=["a day to its end where the cluster is", "a moment", "for ever"],
)
def test_a_pin_ends_when_it_is_told_to(pgkeep: Program, option: tuple[str, ...], end: str | None) -> None:
    assert json.loads(pgkeep("pin", "latest", "--reason", "case 4711", *option, "--json"))["until"] == end
    shown = json.loads(pgkeep("show", "latest", "--json"))["pins"]
    assert [(pin["reason"], pin["until"]) for pin in shown] == [("case 4711", end)]


@pytest.mark.parametrize(("duration", "end"), [("7y", "2099-02-28"), ("13mo", "2093-03-29"), ("36h", "2092-03-02")])
def test_a_pin_for_months_or_years_goes_by_the_calendar(
    pgkeep: Program, monkeypatch: pytest.MonkeyPatch, duration: str, end: str
) -> None:
    monkeypatch.setattr(pin_cmd, "utc_now", lambda: datetime(2092, 2, 29, 13, tzinfo=UTC))
    until = json.loads(pgkeep("pin", "latest", "--reason", "case 4711", "--for", duration, "--json"))["until"]
    assert until.partition("T")[0] == end


def test_of_many_short_spans_of_wal_only_the_number_is_shown(pgkeep: Program) -> None:
    for name in pgkeep("list").split():
        if name.endswith("Z-00000000"):
            pgkeep("pin", name, "--reason", "each needs its own WAL")
    (line,) = [line for line in pgkeep("expire", "--dry-run").splitlines() if "that stays" in line]
    assert "15 short spans for the backups before, " in line
    assert line.endswith("to the end")


def test_the_json_of_each_command_has_the_documented_fields(pgkeep: Program) -> None:
    for command in (("expire", "--dry-run"), ("pin", "latest", "--reason", "x"), ("unpin", "latest")):
        document: dict[str, Any] = json.loads(pgkeep(*command, "--json"))
        section = REFERENCE.read_text("utf-8").split(f"\n## {command[0]}\n")[1].split("\n## ")[0]
        assert [key for key in _keys(document) if f"`{key}`" not in section] == [], command


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(_keys, value.values()))
    return set().union(*map(_keys, value)) if isinstance(value, list) else set()
