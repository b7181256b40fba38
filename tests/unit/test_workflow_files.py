"""The workflow files of deploy/: they are YAML of the shape that their service reads, and every pgkeep command in them exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pgkeep.cli.main import main

DEPLOY = Path(__file__).parents[2] / "deploy"
GITHUB = DEPLOY / "github-actions" / "restore-drill.yml"
GITLAB = DEPLOY / "gitlab" / "restore-drill.yml"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    return document


def shell_lines(value: Any) -> list[str]:
    """Every line of every script in the document."""
    if isinstance(value, dict):
        return [line for each in value.values() for line in shell_lines(each)]
    if isinstance(value, list):
        return [line for each in value for line in shell_lines(each)]
    return str(value).splitlines()


def commands(path: Path) -> list[str]:
    return [line for line in shell_lines(read(path)) if line.startswith("pgkeep ")]


def parse(line: str) -> None:
    """Take a command line as pgkeep would, without doing anything. Raises click.UsageError."""
    command: click.Command = main
    context = main.make_context("pgkeep", shlex.split(line.split(" >> ", maxsplit=1)[0])[1:])
    while isinstance(command, click.Group) and (words := [*context._protected_args, *context.args]):
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]} in {line}")
        command, context = found, found.make_context(words[0], words[1:], parent=context)


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_every_pgkeep_command_of_a_workflow_exists_with_its_options(path: Path) -> None:
    lines = commands(path)

    assert any("--junit drill.xml --exit-on fail" in line for line in lines)
    assert any("drill report latest" in line for line in lines)
    for line in lines:
        parse(line)


@pytest.mark.parametrize("line", ["pgkeep list --no-such", "pgkeep nothing", "pgkeep wal nothing", "pgkeep completion"])
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line)


def test_the_github_workflow_runs_by_schedule_and_keeps_its_reports() -> None:
    workflow = read(GITHUB)
    (job,) = workflow["jobs"].values()
    upload = job["steps"][-1]

    assert [set(entry) for entry in workflow["on"]["schedule"]] == [{"cron"}]
    assert upload["uses"].startswith("actions/upload-artifact@")
    assert upload["if"] == "always()"
    assert upload["with"]["path"].split() == ["drill.xml", "drill.html", "drill.json"]


def test_the_gitlab_job_runs_by_schedule_and_hands_over_its_test_report() -> None:
    (job,) = read(GITLAB).values()

    assert 'CI_PIPELINE_SOURCE == "schedule"' in job["rules"][0]["if"]
    assert job["artifacts"]["reports"]["junit"] == "drill.xml"
    assert job["artifacts"]["when"] == "always"


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_a_workflow_names_no_address_and_holds_no_secret(path: Path) -> None:
    text = path.read_text()

    assert re.findall(r"https?://|index-url", text) == []
    for line in text.splitlines():
        if re.search(r"(SECRET|KEY)\w*:", line) and not line.startswith("#"):
            assert "${{ secrets." in line
