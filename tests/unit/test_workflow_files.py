"""The workflow files of deploy/: they are YAML of the shape that their service reads, and every pgkeep command in them exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pgkeep.cli.drill_report_cmd import add_report_commands
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


def commands(path: Path) -> list[list[str]]:
    """The words after ``pgkeep`` of every line that calls it."""
    lines = [line.split(" >> ")[0] for line in shell_lines(read(path)) if line.startswith("pgkeep ")]
    return [shlex.split(line)[1:] for line in lines]


def parse(words: list[str], command: click.Command = main) -> None:
    """Take the words of a command line as pgkeep would, without doing anything. Raises click.UsageError."""
    context = command.make_context(command.name, words)
    while isinstance(command, click.Group) and (words := [*context._protected_args, *context.args]):
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]}")
        command, context = found, found.make_context(words[0], words[1:], parent=context)


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_every_pgkeep_command_of_a_workflow_exists_with_its_options(path: Path) -> None:
    lines = commands(path)

    assert any("--junit drill.xml --exit-on fail" in " ".join(words) for words in lines)
    for words in lines:
        parse(words)


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_every_report_of_a_workflow_can_be_asked_for(path: Path) -> None:
    group = click.Group("drill")
    add_report_commands(group, lambda _chosen: [])
    reports = [words[words.index("report") :] for words in commands(path) if "report" in words]

    assert len(reports) >= 2
    for words in reports:
        parse(words, group)


@pytest.mark.parametrize("line", ["pgkeep list --no-such", "pgkeep nothing", "pgkeep wal nothing", "pgkeep completion"])
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line.split()[1:])


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
