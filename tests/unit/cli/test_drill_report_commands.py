"""``pgkeep drill history`` and ``report`` as a person and as a program call them; the records are given, not drilled."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import click
import pytest

from pgkeep.cli import main
from pgkeep.cli.drill_report_cmd import add_report_commands
from pgkeep.cli.options import add_global_options
from pgkeep.drill.record import DrillRecord
from support.drill_records import earlier_records, failed_record
from support.markup import read_html

FAILED = failed_record()


class Caller:
    """Command lines with a configuration and these records."""

    def __init__(
        self, directory: Path, records: Sequence[DrillRecord], capsys: pytest.CaptureFixture[str], settings: str
    ) -> None:
        self.config = directory / "pgkeep.toml"
        self.config.write_text(
            f'[repository.main]\nurl = "{directory}/main"\nkey = "none"\n'
            f'[cluster.auth]\ndsn = "host=/nowhere"\nrepositories = ["main"]\n{settings}'
        )
        self.records = records
        self._capsys = capsys

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        self._capsys.readouterr()
        code = main.execute(["--config", str(self.config), "drills", *map(str, words)])
        return code, *self._capsys.readouterr()

    def say(self, *words: str | Path) -> str:
        """What a command says that must succeed."""
        code, out, err = self.run(*words)
        assert code == 0, err
        return out


@pytest.fixture
def settings() -> str:
    return ""


@pytest.fixture
def caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: str
) -> Caller:
    caller = Caller(tmp_path, [FAILED, *earlier_records(FAILED)], capsys, settings)

    @click.group("drills")
    @add_global_options
    def group() -> None:
        pass

    add_report_commands(group, lambda chosen: caller.records)
    module = ModuleType("drills_cmd")
    module.__dict__["command"] = group
    monkeypatch.setitem(sys.modules, "drills_cmd", module)
    monkeypatch.setitem(main.COMMANDS, "drills", ("drills_cmd", "Drills."))
    return caller


def test_the_history_is_a_line_for_each_drill_oldest_first(caller: Caller) -> None:
    lines = caller.say("history").splitlines()

    assert lines[0].split() == ["DRILL", "CLUSTER", "BEGUN", "STATE", "TARGET", "RTO", "RPO", "CHECKS", "CAUSE"]
    assert [line.split()[0] for line in lines[1:]] == sorted(record.id for record in caller.records)
    assert "17 min 12 s !" in lines[-1]
    assert "differs from the live one" in lines[-1]


def test_the_history_can_be_cut_to_the_last(caller: Caller) -> None:
    assert len(caller.say("history", "--last", "3").splitlines()) == 4


def test_the_history_as_json_is_the_records(caller: Caller) -> None:
    drills = json.loads(caller.say("history", "--json"))["drills"]

    assert len(drills) == 10
    assert drills[-1]["id"] == FAILED.id


def test_without_a_drill_the_history_says_how_to_make_one(caller: Caller) -> None:
    caller.records = []

    assert "pgkeep drill makes one" in caller.say("history")
    assert json.loads(caller.say("history", "--json")) == {"drills": []}
    code, _out, err = caller.run("report", "latest")
    assert code == 11
    assert "pgkeep drill makes one" in err


@pytest.mark.parametrize("name", ["latest", FAILED.id, FAILED.id[:10]])
def test_a_drill_is_named_by_its_id_or_its_beginning_or_as_the_latest(name: str, caller: Caller) -> None:
    assert caller.say("report", name).startswith("# Restore drill of auth: Failed")


def test_a_beginning_of_several_ids_is_refused(caller: Caller) -> None:
    code, _out, err = caller.run("report", "2026")

    assert code == 2
    assert "10 drills begin with 2026" in err


def test_an_unknown_drill_is_not_found(caller: Caller) -> None:
    code, _out, err = caller.run("report", "1999")

    assert code == 11
    assert "pgkeep drill history lists them" in err


@pytest.mark.parametrize(
    ("name", "beginning"), [("d.html", "<!DOCTYPE html>"), ("d.md", "# Restore"), ("d.json", "{"), ("d.xml", "<?xml")]
)
def test_the_name_of_the_file_says_the_format(name: str, beginning: str, caller: Caller, tmp_path: Path) -> None:
    said = caller.say("report", "latest", "--output", tmp_path / name)

    assert said == f"the report of drill {FAILED.id} is in {tmp_path / name}\n"
    assert (tmp_path / name).read_text().startswith(beginning)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "pgkeep.toml"])


def test_a_name_that_says_no_format_needs_one(caller: Caller, tmp_path: Path) -> None:
    code, _out, err = caller.run("report", "latest", "--output", tmp_path / "d.txt")

    assert code == 2
    assert "--format html|md|json|junit" in err


def test_a_file_that_cannot_be_written_is_an_error_of_the_store(caller: Caller, tmp_path: Path) -> None:
    code, _out, err = caller.run("report", "latest", "--output", tmp_path / "no" / "d.html")

    assert code == 9
    assert "cannot write the report to" in err


def test_json_is_the_record(caller: Caller, tmp_path: Path) -> None:
    assert json.loads(caller.say("report", "latest", "--json"))["id"] == FAILED.id
    assert caller.say("report", "latest", "--json") == caller.say("report", "latest", "--format", "json")
    assert json.loads(caller.say("report", "latest", "--json", "--output", tmp_path / "d.html")) == {
        "drill": FAILED.id,
        "state": "failed",
        "format": "html",
        "file": str(tmp_path / "d.html"),
    }
    assert caller.run("report", "latest", "--json", "--format", "html")[0] == 2


@pytest.mark.parametrize("settings", ['lang = "ko"\ntime_zone = "Asia/Seoul"\n'])
def test_the_language_and_the_zone_are_those_of_the_configuration(caller: Caller) -> None:
    page = read_html(caller.say("report", "latest", "--format", "html"))

    assert "auth 복구 훈련 보고서" in page.text
    assert "2026-11-23 12:04:05+09:00 (03:04:05 UTC)" in page.text
    assert caller.say("report", "latest", "--lang", "en").startswith("# Restore drill")


@pytest.mark.parametrize("settings", ['lang = "fr"\n'])
def test_an_unknown_language_is_a_mistake_of_the_configuration(caller: Caller) -> None:
    code, _out, err = caller.run("report", "latest")

    assert code == 3
    assert "lang" in err
