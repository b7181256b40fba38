"""The frame of the command line: options anywhere, errors as sentences and codes, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click
import pytest

from pgkeep import errors
from pgkeep.cli import main
from pgkeep.cli.options import Context, cluster_option, common_options
from pgkeep.errors import ConfigError, DamageError, PgkeepError

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def install(monkeypatch: pytest.MonkeyPatch, action: Callable[[Context], None]) -> None:
    """Make ``pgkeep try`` run the action."""

    @click.command("try")
    @common_options
    @cluster_option
    def command(context: Context, cluster: str | None) -> None:
        action(context)

    module = ModuleType("try_cmd")
    module.__dict__["command"] = command
    monkeypatch.setitem(sys.modules, "try_cmd", module)
    monkeypatch.setitem(main.COMMANDS, "try", ("try_cmd", "Try."))


def raising(error: BaseException) -> Callable[[Context], None]:
    def action(_context: Context) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "-vv", "--config", "x.toml", "try"],
        ["try", "--json", "-vv", "--config", "x.toml"],
        ["-v", "--json", "try", "-vv", "--config", "x.toml"],
    ],
)
def test_global_options_are_taken_before_and_after_the_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int, Path | None]] = []
    install(monkeypatch, lambda context: seen.append((context.json, context.verbose, context.config_path)))
    assert main.execute(arguments) == 0
    assert seen == [(True, 2, Path("x.toml"))]


@pytest.mark.parametrize("arguments", [["--version"], ["try", "--version"]])
def test_the_version_is_told(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(AssertionError()))
    assert main.execute(arguments) == 0
    assert capsys.readouterr().out.startswith("pgkeep 0")


def test_an_error_is_a_sentence_a_hint_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(ConfigError("x.toml is wrong", hint="mend it")))
    assert main.execute(["try"]) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: x.toml is wrong\nhint: mend it\n")


def test_with_json_an_error_is_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(DamageError("it is damaged")))
    assert main.execute(["try", "--json"]) == 8
    assert json.loads(capsys.readouterr().out) == {
        "error": {"code": 8, "name": "DamageError", "message": "it is damaged", "hint": None}
    }


@pytest.mark.parametrize("arguments", [["nonsense"], ["try", "--nonsense"], ["try", "--cluster"], ["--nonsense"]])
def test_a_command_line_that_cannot_be_ends_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(AssertionError()))
    assert main.execute(["--json", *arguments]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["name"] == "UsageError"


def test_an_unexpected_error_hides_its_traceback_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(KeyError("x")))
    assert main.execute(["try"]) == 1
    short = capsys.readouterr().err
    assert "unexpected KeyError" in short
    assert "Traceback" not in short
    assert main.execute(["try", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: pgkeep {name}" in text
    assert f"\n    pgkeep {name}" in text
    assert "--json" in text


def test_the_help_imports_no_command() -> None:
    script = (
        "import sys; from pgkeep.cli.main import execute; execute(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('pydantic', 'psycopg', 'rich', 'numpy', 'cryptography')))"
    )
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0


def start_sleeping_command() -> subprocess.Popen[str]:
    script = (
        "import sys, time, types, click\n"
        "from pgkeep.cli import main, options\n"
        "@click.command('try')\n"
        "@options.common_options\n"
        "def command(context):\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('clean', flush=True)\n"
        "module = types.ModuleType('try_cmd'); module.command = command; sys.modules['try_cmd'] = module\n"
        "main.COMMANDS['try'] = ('try_cmd', 'Try.')\n"
        "main.run(['try'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_lets_the_command_clean_up_and_has_its_exit_code(number: signal.Signals, code: int, word: str) -> None:
    with start_sleeping_command() as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "clean\n")
    assert err == f"error: {word} by {number.name}\n"


def test_handlers_of_signals_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    install(monkeypatch, lambda _context: time.sleep(0))
    assert main.execute(["try"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_went_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    answer = subprocess.run(
        [sys.executable, "-c", "from pgkeep.cli.main import run; run(['completion', 'bash'])"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert (answer.returncode, answer.stderr) == (141, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["completion", shell]) == 0
    assert f"_PGKEEP_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_knows_the_commands() -> None:
    environment = {
        **os.environ,
        "_PGKEEP_COMPLETE": "bash_complete",
        "COMP_WORDS": "pgkeep completion b",
        "COMP_CWORD": "2",
    }
    answer = subprocess.run(
        [sys.executable, "-c", "from pgkeep.cli.main import run; run([])"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout == "plain,bash\n"


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in (REFERENCE / "exit-codes.md").read_text().splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdigit()
    ]
    documented = {(int(code), name) for code, name in rows}
    kinds = [getattr(errors, name) for name in errors.__all__]
    expected = {(kind.exit_code, kind.__name__) for kind in kinds if issubclass(kind, PgkeepError)}
    assert documented == expected | {(0, ""), (143, "Interrupted")}


def test_the_documented_commands_are_those_that_there_are() -> None:
    rows = [
        line.split("`")[1] for line in (REFERENCE / "cli.md").read_text().splitlines() if line.startswith("| `pgkeep ")
    ]
    assert [row.split()[1] for row in rows] == list(main.COMMANDS)
