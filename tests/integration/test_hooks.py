"""Hooks run in order on a real server, are logged, and stop everything when one fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgkeep.config import RestoreHook
from pgkeep.progress import Silent
from pgkeep.restore.hooks import HookContext, HookError, HookResult, run_hooks
from support.servers import sql

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session", params=[17], ids=lambda major: f"pg{major}")
def postgres_major(request: pytest.FixtureRequest) -> int:
    """One version: hooks ask no catalogs."""
    major: int = request.param
    return major


@pytest.fixture
def context(database: str, work_dir: Path) -> HookContext:
    return HookContext(database, work_dir / "hooks.log", {"cluster": "auth", "lsn": "0/3000060"})


@pytest.fixture
def name(database: str) -> str:
    return str(conninfo_to_dict(database)["dbname"])


def run(context: HookContext, *hooks: RestoreHook, done: tuple[str, ...] = ()) -> list[HookResult]:
    return run_hooks(hooks, context, Silent(), done=done)


def test_sql_and_commands_run_in_order_and_what_they_say_is_logged(context: HookContext, name: str) -> None:
    """A command finds the server by libpq's variables, and the facts by ours."""
    say = 'echo "$PGKEEP_CLUSTER $PGKEEP_LSN $PGDATABASE $PGUSER" && test -S "$PGHOST/.s.PGSQL.$PGPORT"'

    results = run(
        context,
        RestoreHook(name="make", sql="CREATE TABLE made (id int); INSERT INTO made VALUES (7)", database=name),
        RestoreHook(name="look", sql="SELECT id * 6 FROM made", database=name),
        RestoreHook(name="say", command=say, database=name),
    )

    assert [(result.name, result.kind) for result in results] == [("make", "sql"), ("look", "sql"), ("say", "command")]
    log = context.log_file.read_text()
    assert "INSERT 0 1" in log
    assert "\n42\n" in log
    assert f"auth 0/3000060 {name} postgres" in log
    assert context.log_file.stat().st_mode & 0o777 == 0o600


def test_the_first_that_fails_is_named_and_the_rest_does_not_run(
    context: HookContext, name: str, database: str
) -> None:
    """With the words of the server, and of the command; what a failed query of several statements did is gone."""
    later = RestoreHook(name="later", sql="CREATE TABLE later ()", database=name)
    half = RestoreHook(name="half", sql="CREATE TABLE half (); SELECT 1/0", database=name)
    command = RestoreHook(name="tell", command="echo no mail server; exit 3")

    with pytest.raises(HookError, match=r"'half' failed: division by zero") as caught:
        run(context, half, later)
    with pytest.raises(HookError, match=r"'tell' ended with 3: no mail server"):
        run(context, command, later)

    assert (caught.value.hook, caught.value.exit_code) == ("half", 13)
    assert str(context.log_file) in str(caught.value.hint)
    assert sql(database, "SELECT count(*) FROM pg_class WHERE relname IN ('half', 'later')") == [(0,)]


def test_a_hook_that_takes_too_long_is_ended(context: HookContext, work_dir: Path) -> None:
    """With all processes that it started."""
    begun = time.monotonic()

    with pytest.raises(HookError, match=r"'slow' was not done after 0\.20 s"):
        run(context, RestoreHook(name="slow", sql="SELECT pg_sleep(60)", timeout=0.2))
    with pytest.raises(HookError, match="was not done after"):
        run(context, RestoreHook(name="slow", command=f"(sleep 1; touch {work_dir}/late) & wait", timeout=0.2))

    assert time.monotonic() - begun < 30
    time.sleep(1.2)
    assert not (work_dir / "late").exists()


def test_hooks_that_are_done_already_are_passed_over(context: HookContext, name: str) -> None:
    """As when a run goes on after one that failed."""
    hooks = [RestoreHook(name=word, command=f"echo ran {word}") for word in ("first", "second")]

    assert [result.name for result in run(context, *hooks, done=("first",))] == ["second"]
    assert "ran first" not in context.log_file.read_text()


def test_a_database_that_is_not_there_fails_the_hook(context: HookContext) -> None:
    with pytest.raises(HookError, match='database "nowhere" does not exist'):
        run(context, RestoreHook(name="lost", sql="SELECT 1", database="nowhere"))
