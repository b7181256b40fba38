"""``pgkeep expire``, ``pin`` and ``unpin`` as an operator sees them: what is drawn, what is asked, what is said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from pgkeep.cli.main import execute
from pgkeep.drill.memory import remember
from pgkeep.repository import KeyFile
from pgkeep.units import utc_now
from support.drill_records import passed_record
from support.jobs import KEY
from support.kept_repository import DAY, HOUR, SYSTEM, KeptRepository


@dataclass
class Desk:
    """A configuration of two repositories, each with a backup a day of three weeks, and the program."""

    directory: Path
    capsys: pytest.CaptureFixture[str]
    kept: dict[str, KeptRepository]

    @property
    def config(self) -> Path:
        return self.directory / "pgkeep.toml"

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code, and all that a person reads."""
        self.capsys.readouterr()
        code = execute(["--config", str(self.config), *words])
        read = self.capsys.readouterr()
        return code, read.out + read.err

    def document(self, *words: str) -> dict[str, Any]:
        """With ``--json``."""
        found: dict[str, Any] = json.loads(self.run(*words, "--json")[1])
        return found

    def configure(self, rules: str) -> None:
        """Write the configuration with these rules."""
        repositories = "".join(
            f'[repository.{name}]\nurl = "file://{kept.directory}"\nkey = "file:{self.directory}/pgkeep.key"\n'
            for name, kept in self.kept.items()
        )
        cluster = f'[cluster.auth]\ndsn = "host=nowhere"\nrepositories = {json.dumps(list(self.kept))}\n'
        self.config.write_text(repositories + cluster + rules)


@pytest.fixture(scope="module")
def three_weeks(tmp_path_factory: pytest.TempPathFactory) -> KeptRepository:
    made = KeptRepository(tmp_path_factory.mktemp("three-weeks") / "repository")
    now = utc_now()
    for number in range(21):
        made.backup(now - number * DAY - HOUR)
    made.wal(now - 6 * DAY, now - HOUR)
    return made


@pytest.fixture
def desk(three_weeks: KeptRepository, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    kept = {name: three_weeks.copy(tmp_path / name) for name in ("main", "offsite")}
    (tmp_path / "pgkeep.key").write_text(KeyFile(KEY.secret).text() + "\n")
    return Desk(tmp_path, capsys, kept)


def test_the_time_line_shows_what_goes_what_stays_and_by_which_rule(desk: Desk) -> None:
    desk.configure('[retention]\nwindow = "5d"\nweekly = 2\n')
    code, text = desk.run("expire", "--dry-run", "--repository", "main")

    assert code == 0
    lines = text.splitlines()
    assert lines[:2] == [
        f"repository main (file://{desk.kept['main'].directory})",
        "keeps every moment of the last 5 d 0 h, 2 weekly, at least 1 (calendar of UTC)",
    ]
    drawn = next(line for line in lines if "===" in line)
    assert drawn.strip().startswith("x")
    assert drawn.index("=") < drawn.rindex("o")
    assert "o stays   x goes   = the window" in text
    ids = desk.kept["main"].ids()
    row = {id_: next(line for line in lines if id_ in line) for id_ in ids}
    assert row[ids[0]].startswith("x")
    assert row[ids[0]].endswith("goes")
    assert "window's begin" in row[ids[-6]]
    assert row[ids[-1]].startswith("o")
    assert "minimum" in row[ids[-1]]
    assert lines.index(row[ids[-6]]) < next(n for n, line in enumerate(lines) if "the window begins" in line)
    assert "WAL that goes: " in text
    assert len(desk.kept["main"].ids()) == 21


def test_the_newest_backup_that_a_drill_has_proven_stays(desk: Desk) -> None:
    """Where it was proven: a copy in another repository has to prove itself."""
    desk.configure('[retention]\nminimum = 1\ngrace = "0s"\n')
    ids = desk.kept["main"].ids()
    for number, proven in enumerate((ids[2], ids[5])):
        record = msgspec.structs.replace(
            passed_record(), id=f"2026112{number}T030405.678Z-1f2e3d4c", backup=proven, system_identifier=SYSTEM
        )
        remember(desk.kept["main"].repository, record)

    states = {each["id"]: each["state"] for each in desk.document("list", "--repository", "main")["backups"]}
    code, text = desk.run("expire", "--yes")

    assert code == 0
    assert [id_ for id_, state in states.items() if state == "proven"] == [ids[2], ids[5]]
    assert "newest proven" in next(line for line in text.splitlines() if ids[5] in line)
    assert desk.kept["main"].ids() == [ids[5], ids[-1]]
    assert desk.kept["offsite"].ids() == [ids[-1]]
    assert len(desk.document("drill", "history")["drills"]) == 2, "what a drill found stays known"


def test_each_repository_has_its_own_rules_and_one_that_is_down_holds_up_no_other(desk: Desk) -> None:
    desk.configure('[retention]\nwindow = "5d"\n[repository.main.retention]\nminimum = 2\ngrace = "0s"\n')
    assert {
        each["name"]: each["rules"]["minimum"] for each in desk.document("expire", "--dry-run")["repositories"]
    } == {
        "main": 2,
        "offsite": 1,
    }
    desk.kept["main"].directory.rename(desk.directory / "away")

    code, text = desk.run("expire", "--yes")

    assert code == 6
    assert f"error: file://{desk.kept['main'].directory}" in text
    assert len(desk.kept["offsite"].ids()) == 6
    (desk.directory / "away").rename(desk.kept["main"].directory)
    assert desk.run("expire", "--yes")[0] == 0
    assert len(desk.kept["main"].ids()) == 2


def test_a_repository_without_rules_keeps_everything_and_says_how_to_change_that(desk: Desk) -> None:
    desk.configure("")
    code, text = desk.run("expire", "--yes")

    assert code == 0
    assert "has no rules, so nothing expires in it by itself" in text
    assert '[repository.main.retention] with window = "14d"' in text
    assert len(desk.kept["main"].ids()) == 21


def test_a_person_is_asked_and_no_is_the_answer_that_removes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.configure('[retention]\nwindow = "5d"\n')
    asked: list[str] = []

    def refuse(text: str, **_: object) -> None:
        asked.append(text)
        raise click.Abort

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", refuse)

    assert desk.run("expire")[0] != 0

    assert asked == ["Remove 30 backups, and WAL as shown?"]
    assert len(desk.kept["main"].ids()) == 21


def test_a_pin_is_shown_with_its_reason_and_its_end_until_it_is_taken_back(desk: Desk) -> None:
    desk.configure('[retention]\nminimum = 1\ngrace = "0s"\n')
    old = desk.kept["main"].ids()[3]
    code, text = desk.run("pin", old, "--reason", "case 4711", "--until", "2099-12-31")
    assert code == 0
    assert text.count(f"{old} is pinned until 2099-12-3") == 2
    assert "until 2099-12-3" in desk.run("list")[1]
    assert "case 4711" in desk.run("show", old)[1]

    assert desk.run("expire", "--yes")[0] == 0
    assert {name: kept.ids()[0] for name, kept in desk.kept.items()} == {"main": old, "offsite": old}
    code, text = desk.run("expire", "--backup", old, "--yes")
    assert "is pinned" in text
    assert f"pgkeep unpin {old}" in text
    assert code == 2

    assert desk.run("unpin", old)[0] == 0
    assert desk.run("unpin", old)[0] == 11
    assert desk.run("expire", "--yes")[0] == 0
    assert [len(kept.ids()) for kept in desk.kept.values()] == [1, 1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("pin", "latest", "--reason", " "), "the reason is empty"),
        (("pin", "latest", "--reason", "why", "--for", "soon"), "not a duration: 'soon'"),
        (("pin", "latest", "--reason", "why", "--until", "2001-01-01"), "is over"),
        (("pin", "latest", "--reason", "why", "--until", "2099-01-01", "--for", "1d"), "exclude each other"),
        (("pin", "1999", "--reason", "why"), "no backup has an id that begins with '1999'"),
        (("expire", "--backup", "1999"), "no repository has a backup 1999"),
        (("expire", "--backup", "20"), "backups have an id that begins with '20'"),
        (("expire", "--repository", "mian"), "there is no repository named 'mian'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(desk: Desk, words: tuple[str, ...], complaint: str) -> None:
    desk.configure('[retention]\nwindow = "5d"\n')
    code, text = desk.run(*words)

    assert code != 0
    assert complaint in text
    assert len(desk.kept["main"].ids()) == 21
