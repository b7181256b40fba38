"""``pgkeep drill`` as an operator and a CI job call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from support.drill_fixtures import MakeDrilled, drilled, templates
from support.jobs import KEY

if TYPE_CHECKING:
    from support.drills import Drilled

__all__ = ["drilled", "templates"]


def write_config(cluster: Drilled, more: str = "") -> Path:
    key = cluster.place / "pgkeep.key"
    key.write_text(KEY.text() + "\n")
    key.chmod(0o600)
    path = cluster.place / "pgkeep.toml"
    path.write_text(
        f'[repository.main]\nurl = "file://{cluster.place}/repository"\nkey = "file:{key}"\n'
        f"[cluster.test]\ndsn = {json.dumps(cluster.server.dsn())}\n"
        f'server = {{ data_directory = "{cluster.server.data_directory}" }}\n'
        f'[cluster.test.drill]\ndirectory = "{cluster.directory}"\nchecks = ["tables"]\n'
        f'settings = {{ fsync = "off" }}\n{more}'
    )
    return path


def run(config: Path, *words: str | Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "pgkeep", "--config", config, *words]
    answer = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=120)
    return answer.returncode, answer.stdout + ("" if answer.returncode == 0 else answer.stderr)


def run_json(config: Path, *words: str | Path) -> tuple[int, dict[str, Any]]:
    code, output = run(config, *words, "--json")
    return code, json.JSONDecoder().raw_decode(output)[0]


def test_a_drill_makes_its_backup_proven_and_is_in_the_history(drilled: MakeDrilled, tmp_path: Path) -> None:
    config = write_config(drilled())
    code, text = run(config, "drill", "--junit", tmp_path / "drill.xml", "--asked-by", "kim", "--reason", "audit")
    assert code == 0, text
    assert "is proven: it came back" in text
    assert ET.parse(tmp_path / "drill.xml").getroot().get("failures") == "0"
    _, listed = run_json(config, "list")
    (backup,) = listed["backups"]
    assert backup["state"] == "proven"
    _, history = run_json(config, "drill", "history")
    (record,) = history["drills"]
    assert backup["proven"] == {"drill": record["id"], "time": record["ended"], "target": "latest"}
    assert (record["asked_by"], record["reason"], record["state"]) == ("kim", "audit", "passed")
    assert "proven" in run(config, "show", "latest")[1]
    _, status = run_json(config, "status")
    assert status["objectives"]["repositories"][0]["restore"]["measured_restores"] == 1


def test_a_drill_that_fails_ends_with_the_code_of_its_cause(drilled: MakeDrilled, tmp_path: Path) -> None:
    rule = '[[cluster.test.drill.assert]]\nname = "empty"\nquery = "SELECT name FROM users"\nexpect = "no rows"\n'
    config = write_config(drilled(), rule)
    code, record = run_json(config, "drill", "--junit", tmp_path / "drill.xml")
    assert code == 14
    assert record["cause"].startswith("assertion 'empty' failed: the query returned 2500 rows, expected none")
    assert record["remedy"]
    assert ET.parse(tmp_path / "drill.xml").getroot().get("failures") == "2"  # the drill itself, and the assertion
    code, text = run(config, "drill", "--exit-on", "never")
    assert code == 0
    assert "the drill failed: assertion 'empty' failed" in text
    assert "remedy: look at the same on the source" in text
    _, listed = run_json(config, "list")
    assert listed["backups"][0]["state"] == "taken"


def test_the_key_from_the_sheet_opens_the_repository_and_the_configured_one_is_refused(drilled: MakeDrilled) -> None:
    cluster = drilled()
    config = write_config(cluster)
    code, error = run_json(config, "drill", "--scenario", "key-from-paper")
    assert (code, error["error"]["name"]) == (2, "UsageError")
    typed = cluster.place / "typed.key"
    typed.write_text(KEY.text().lower() + "\n")
    typed.chmod(0o600)
    code, text = run(config, "drill", "--scenario", "key-from-paper", "--key-file", typed)
    assert code == 0, text
    assert "-> Open repository main with the recovery key, as it was typed in from the sheet" in text


def test_options_that_make_no_sense_are_refused(drilled: MakeDrilled) -> None:
    config = write_config(drilled())
    for words in (("--standby", "--latest"), ("--full", "history"), ("--to", "now-ish")):
        code, error = run_json(config, "drill", *words)
        assert (code, error["error"]["name"]) == (2, "UsageError"), words


def test_drills_that_are_due_are_done_once(drilled: MakeDrilled) -> None:
    config = write_config(drilled(), 'every = "7d"\n[[cluster.test.drill.plan]]\nname = "monthly"\nevery = "30d"\n')
    code, done = run_json(config, "drill", "--due")
    assert (code, [record["plan"] for record in done["drills"]]) == (0, ["monthly"])
    code, text = run(config, "drill", "--due")
    assert (code, text.strip()) == (0, "no drill is due")
    code, error = run_json(config, "drill", "--plan", "yearly")
    assert (code, error["error"]["hint"]) == (11, "it has: monthly")
    _, status = run_json(config, "status")
    assert {each["name"]: each["status"] for each in status["findings"]}.items() >= {
        ("drills", "ok"),
        ("drill plan monthly", "ok"),
    }
    assert run(config, "verify", "--all")[0] == 0
