"""The whole procedure on real servers: restored over its own data, undone, taken up after every kind of end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import BusyError, NotFoundError, RecoveryError, ServerError, TargetError, UsageError
from pgkeep.postgres.account import server_account
from pgkeep.postgres.running import postmasters, server_status
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.restore.hooks import HookError
from pgkeep.restore.in_place import InPlaceRequest, plan_in_place
from pgkeep.restore.journal import exclusive
from pgkeep.restore.target import RecoveryTarget
from pgkeep.restore.undo import plan_undo, run_undo
from support.in_place import Service, at_lsn, make_template, run_killed, start_copy
from support.servers import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries


@pytest.fixture(scope="module")
def template_of(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Callable[[int], Path]:
    made: dict[int, Path] = {}

    def get(major: int) -> Path:
        if major not in made:
            made[major] = make_template(binaries_of(major), work_root)
        return made[major]

    return get


@pytest.fixture(params=[17], ids=lambda major: f"pg{major}")
def service(
    request: pytest.FixtureRequest,
    template_of: Callable[[int], Path],
    binaries_of: Callable[[int], ServerBinaries],
    work_root: Path,
) -> Iterator[Service]:
    """A running service with a backup; its server is nobody's child, as an operator's is."""
    with ThrowawayServer(binaries_of(request.param), parent=work_root) as server:
        yield start_copy(server, template_of(request.param), {})


on_all = pytest.mark.parametrize("service", [15, 17, 18], indirect=True, ids=lambda major: f"pg{major}")


def accident(service: Service) -> RecoveryTarget:
    """Rows are written, then a table is dropped, then more is written; the moment before the drop."""
    service.sql("INSERT INTO token_blacklist (user_id) SELECT generate_series(11, 20)")
    before = service.lsn()
    service.sql("DROP TABLE far")
    service.sql("INSERT INTO users VALUES (101)")
    service.sql("INSERT INTO token_blacklist (user_id) VALUES (21), (22), (101)")
    return at_lsn(before)


@on_all
def test_the_moment_before_an_accident_comes_back_and_the_tokens_revoked_after_it_too(service: Service) -> None:
    """With the options that the server ran with; WAL that was nowhere but in its data directory is used."""
    target = accident(service)

    outcome = service.restore(recovery=target, carry=["token_blacklist"])

    assert (service.count("far"), service.count("users"), service.count()) == (500, 100, 22)
    assert service.sql("SHOW work_mem") == [("7MB",)]
    assert service.sql("SELECT timeline_id FROM pg_control_checkpoint()") == [(outcome.timeline,)]
    (carried,) = outcome.carried
    assert (carried.inserted, [skipped.count for skipped in carried.skipped]) == (2, [1])
    ((given,),) = service.sql("INSERT INTO token_blacklist (user_id) VALUES (1) RETURNING id")
    assert given > 23
    assert outcome.met
    assert {"stop", "move", "write", "replay", "carry", "start", "assert"} <= outcome.seconds.keys()
    assert outcome.downtime is not None
    assert outcome.downtime < outcome.total
    assert service.names() == ["data", "data.before", "data.pgkeep", "tablespace", "tablespace.before"]


def test_nothing_that_was_committed_is_lost_where_the_target_is_the_latest_moment(service: Service) -> None:
    """The last of it was never archived by anybody; the server is controlled by commands."""
    account = server_account()
    become = f"setpriv --reuid={account.name} --regid={account.gid} --init-groups " if account else ""
    pg_ctl = f"{become}{service.server.binaries.path('pg_ctl')} -s -D {service.data}"
    options = f"-c listen_addresses= -c unix_socket_directories={service.server.socket_directory} -c work_mem=9MB"
    control = {
        "data_directory": service.data,
        "stop": f"{pg_ctl} stop",
        "start": f"{pg_ctl} -o '{options}' -l {service.server.log_file} start",
    }
    accident(service)

    outcome = service.configured(server=control).restore()

    assert (service.count("users"), service.count()) == (101, 23)
    assert service.sql("SHOW work_mem") == [("9MB",)]
    assert any("WAL files that only the server had" in note for note in outcome.notes)


def test_an_undo_brings_the_old_data_back_with_all_that_was_in_it(service: Service) -> None:
    """What was written to the restored server is kept beside; a second undo has nothing to do."""
    service.restore(recovery=accident(service))
    service.sql("CREATE TABLE written_since AS SELECT 1")

    outcome = run_undo(service.settings)

    assert (service.count("users"), service.count()) == (101, 23)
    assert service.sql("SELECT to_regclass('far'), to_regclass('written_since')") == [(None, None)]
    assert outcome.started
    assert service.names() == ["data", "data.undone", "tablespace", "tablespace.undone"]
    with pytest.raises(NotFoundError, match="nothing to undo"):
        plan_undo(service.settings)


def test_a_plan_shows_every_step_with_real_paths_and_changes_nothing(service: Service) -> None:
    """The server goes on running."""
    before = service.names()
    started = server_status(service.data).started
    request = InPlaceRequest(cluster="test", carry=["token_blacklist"])
    hooks = ({"name": "tell", "command": "true"},)

    plan = plan_in_place(request, service.configured(after_restore=hooks).settings, [service.repository])

    words = ["pg_ctl stop", f"mv {service.data} {service.data}.before-", "restore backup", "recover in isolation"]
    words += ["bring later rows of token_blacklist", "run hook tell", "--work_mem=7MB", "takes writes"]
    steps = "\n".join(plan.steps)
    assert [steps.index(word) for word in words] == sorted(steps.index(word) for word in words)
    assert (service.names(), server_status(service.data).started) == (before, started)


def test_a_recovery_that_fails_leaves_everything_as_it_was_and_says_so(service: Service) -> None:
    """The old server runs again; the attempt is kept beside, and cannot harm the tablespaces."""
    accident(service)

    with pytest.raises(RecoveryError, match=r"THE OLD DATA IS BACK.* RUNS AGAIN.*failed attempt is in") as caught:
        service.restore(settings={"shared_preload_libraries": "no_such_library"})

    assert "no_such_library" in str(caught.value)
    assert (service.count("users"), service.count()) == (101, 23)
    assert service.sql("SHOW work_mem") == [("7MB",)]
    assert service.names() == ["data", "data.failed", "tablespace", "tablespace.failed"]
    (failed,) = service.data.parent.glob("data.failed-*")
    assert [".failed-" in str(link.readlink()) for link in (failed / "pg_tblspc").iterdir()] == [True]


def test_old_data_whose_server_did_not_run_comes_back_and_is_not_started(service: Service) -> None:
    """It may be what is broken."""
    service.server.stop()

    with pytest.raises(RecoveryError, match="was not started: it did not run before"):
        service.restore(settings={"shared_preload_libraries": "no_such_library"})

    assert postmasters(service.data) == []


def test_without_rollback_the_attempt_stays_and_the_next_run_goes_on_from_there(service: Service) -> None:
    """What went wrong can be looked at in its place."""
    target = accident(service)
    with pytest.raises(RecoveryError, match=r"the old data is in .*before-"):
        service.restore(recovery=target, settings={"shared_preload_libraries": "no_such_library"}, rollback=False)
    assert postmasters(service.data) == []

    outcome = service.restore(recovery=target)

    assert outcome.taken_up == "written"
    assert service.count("far") == 500
    run_undo(service.settings)
    assert service.count("users") == 101


def test_a_hook_that_fails_keeps_the_recovered_data_and_the_next_run_goes_on_with_it(service: Service) -> None:
    """Hooks that were done are not done twice, and no client came in between."""
    ready = service.data.parent / "ready"
    psql = service.server.binaries.bindir / "psql"
    hooks = (
        {"name": "first", "sql": "CREATE TABLE hooked AS SELECT 1"},
        {"name": "second", "command": f'{psql} -Atc "SELECT count(*) FROM far" | grep -q 500 && test -e {ready}'},
    )
    hooked = service.configured(after_restore=hooks)
    target = accident(service)

    with pytest.raises(HookError, match=r"hook 'second' ended with 1.*complete in .*run the same command again"):
        hooked.restore(recovery=target, written="5min ago")
    assert postmasters(service.data) == []
    ready.touch()
    # the same words mean another moment by now
    outcome = hooked.restore(recovery=RecoveryTarget(kind="immediate"), written="5min ago")

    assert ([hook.name for hook in outcome.hooks], outcome.taken_up) == (["second"], "recovered")
    assert "write" not in outcome.seconds
    assert (service.count("hooked"), service.count("far")) == (1, 500)


def test_hooks_run_while_nobody_else_can_connect(service: Service) -> None:
    """Not even with the operator's own DSN."""
    psql = service.server.binaries.bindir / "psql"
    hook = {"name": "closed", "command": f"! {psql} '{service.server.dsn()}' -c 'SELECT 1'"}

    outcome = service.configured(after_restore=(hook,)).restore()

    assert [result.name for result in outcome.hooks] == ["closed"]


@pytest.mark.parametrize("state", ["stopping", "moving", "written", "recovered", "ready"])
def test_a_run_that_was_killed_is_taken_up_by_the_same_command(service: Service, state: str) -> None:
    """By SIGKILL, right after it announced what it does next."""
    target = accident(service)
    run_killed(service, state, recovery=target)

    outcome = service.restore(recovery=target)

    assert outcome.taken_up == state
    assert (service.count("far"), service.count("users"), service.count()) == (500, 100, 20)
    assert ("write" in outcome.seconds) == (state not in {"written", "recovered", "ready"})
    run_undo(service.settings)
    assert (service.count("users"), service.count()) == (101, 23)


@pytest.mark.parametrize("phase", ["making it durable", "promoting", "carrying token_blacklist"])
def test_a_run_that_was_killed_at_its_work_is_taken_up(service: Service, phase: str) -> None:
    """With a directory that cannot be started, or a private server that nobody holds any more: it is found and stopped."""
    target = accident(service)
    run_killed(service, phase=phase, recovery=target, carry=["token_blacklist"])

    outcome = service.restore(recovery=target, carry=["token_blacklist"])

    assert (service.count("far"), service.count("users"), service.count()) == (500, 100, 22)
    assert [table.inserted for table in outcome.carried] == [2]
    assert not list(service.data.parent.glob("pgkeep-carry-*"))


@pytest.mark.parametrize("state", ["moving", "moved", "recovered", "ready"])
def test_a_run_that_was_killed_can_be_undone(service: Service, state: str) -> None:
    target = accident(service)
    run_killed(service, state, recovery=target)

    run_undo(service.settings)

    assert (service.count("users"), service.count()) == (101, 23)
    assert service.sql("SHOW work_mem") == [("7MB",)]
    assert {"data", "tablespace"} <= set(service.names())
    assert not any("before" in name for name in service.names())


def test_renames_that_were_cut_short_are_finished(service: Service) -> None:
    """Between the data directory and its tablespaces: forwards, in an undo, and in an undo of that."""
    target = accident(service)
    run_killed(service, renames=1, recovery=target)
    service.restore(recovery=target)
    assert service.count("far") == 500

    for renames in (1, 2, 1):
        run_killed(service, renames=renames, undo=True)
    run_undo(service.settings)

    assert (service.count("users"), service.count()) == (101, 23)
    assert sql(service.server.dsn(), "SELECT spcname FROM pg_tablespace WHERE spcname = 'apart'") == [("apart",)]
    assert not any("before" in name for name in service.names())


def test_a_killed_run_may_be_followed_by_one_to_another_target(service: Service) -> None:
    """The first attempt is thrown away; the safety copy is the first one's."""
    target = accident(service)
    run_killed(service, "recovered", recovery=target)

    service.restore()

    assert (service.count("users"), service.count()) == (101, 23)
    run_undo(service.settings)
    assert service.count("users") == 101


def test_once_it_only_had_to_start_another_target_is_refused(service: Service) -> None:
    """Its server may have run, and been written to."""
    target = accident(service)
    run_killed(service, "ready", recovery=target)

    with pytest.raises(TargetError, match="only had to start the server"):
        service.restore()


def test_a_disk_that_is_empty_is_filled_again(service: Service) -> None:
    """There is nothing to keep, nothing to undo, and no WAL after what the repository holds."""
    service.server.stop()
    for name in ("data", "tablespace"):
        (service.data.parent / name).rename(service.data.parent / f"lost-{name}")

    sockets = {"unix_socket_directories": str(service.server.socket_directory), "listen_addresses": ""}
    outcome = service.restore(backup="latest", settings=sockets)

    assert (outcome.safety_copy, service.count()) == ([], 10)
    with pytest.raises(NotFoundError, match="nothing to undo"):
        plan_undo(service.settings)


def test_what_the_operator_kept_in_the_data_directory_is_named_where_it_differs(service: Service) -> None:
    """The backup's settings are used: they fit its data."""
    (service.data / "pg_hba.conf").write_text("# mine\nlocal all all trust\n")
    (service.data / "certificate.pem").write_text("secret")
    service.sql("ALTER SYSTEM SET lock_timeout = '9s'")
    service.sql(
        "SELECT pg_create_physical_replication_slot(name, true) FROM unnest('{pgkeep_test,theirs}'::text[]) name"
    )

    outcome = service.restore(backup="latest")

    notes = "\n".join(outcome.notes)
    assert "pg_hba.conf is the backup's and differs" in notes
    assert "certificate.pem is not in the backup" in notes
    assert "settings of ALTER SYSTEM differ" in notes
    assert "slots of the old server that are gone: theirs" in notes
    assert service.sql("SELECT slot_name, restart_lsn IS NOT NULL FROM pg_replication_slots") == [("pgkeep_test", True)]


def test_the_new_timelines_history_waits_for_the_archiver(service: Service) -> None:
    """It is written while the server does not archive, and the server does not look for it later.

    Where the data directory is, the server itself says here.
    """
    outcome = service.configured(server={}).restore()

    ready = service.data / "pg_wal" / "archive_status" / f"{outcome.timeline:08X}.history.ready"
    assert ready.exists()


def test_what_cannot_be_is_refused_before_anything_is_done(service: Service) -> None:
    """The server goes on running."""
    started = server_status(service.data).started

    with pytest.raises(UsageError, match="ends with a server that takes writes"):
        service.restore(recovery=RecoveryTarget(kind="immediate", action="pause"))
    with pytest.raises(UsageError, match="no table is named"):
        service.restore(carry_until=RecoveryTarget(kind="latest"))
    with pytest.raises(UsageError, match="no tablespace at"):
        service.restore(tablespaces={"/nowhere": "/tmp/x"})
    with exclusive(service.data), pytest.raises(BusyError, match="another pgkeep restores"):
        service.restore()
    with pytest.raises(NotFoundError, match="nothing to undo"):
        run_undo(service.settings)

    assert server_status(service.data).started == started


def test_a_tablespace_that_holds_something_else_is_not_moved(service: Service) -> None:
    """Clusters of two versions may share the directory."""
    (service.data.parent / "tablespace" / "PG_14_202107181").mkdir()

    with pytest.raises(TargetError, match=r"holds something else .* PG_14_202107181"):
        service.restore()


def test_a_server_that_does_not_stop_leaves_all_as_it_was(service: Service) -> None:
    """With the command's own words."""
    control = {"data_directory": service.data, "stop": "echo not today; exit 3", "start": "true"}

    with pytest.raises(ServerError, match="exit code 3, not today; nothing was changed"):
        service.configured(server=control).restore()

    assert service.count() == 10
    assert service.names() == ["data", "tablespace"]


def test_a_server_that_does_not_start_keeps_the_recovered_data(service: Service) -> None:
    """Whoever mends what is wrong runs the same command again."""
    target = accident(service)
    pg_ctl_stop = f"kill -INT $(head -1 {service.data}/postmaster.pid)"
    broken = {"data_directory": service.data, "stop": pg_ctl_stop, "start": "exit 4"}

    with pytest.raises(ServerError, match="exit code 4; the data is recovered and complete"):
        service.configured(server=broken).restore(recovery=target)
    outcome = service.restore(recovery=target)

    assert (outcome.taken_up, service.count("far")) == ("ready", 500)


def test_a_safety_copy_that_somebody_started_is_not_pulled_from_under_him(service: Service) -> None:
    outcome = service.restore(backup="latest")
    copy = Path(outcome.safety_copy[0].aside)
    with ThrowawayServer(service.server.binaries, parent=service.data.parent) as looking:
        looking.data_directory = copy
        looking.start()
        assert sql(looking.dsn(), "SELECT count(*) FROM far") == [(500,)]

        with pytest.raises(TargetError, match="a server runs on"):
            run_undo(service.settings)

    journal = json.loads((service.data.parent / "data.pgkeep-in-place.json").read_text())
    assert journal["moves"][0]["aside"] == str(copy)


def test_the_command_rehearses_does_it_and_takes_it_back(service: Service) -> None:
    """With documents for programs, and lines for people."""
    target = accident(service)
    moment = ("--to-lsn", target.value, "--exclusive", "--carry", "token_blacklist")

    def pgkeep(*arguments: str) -> str:
        words = [sys.executable, "-m", "pgkeep", "--config", str(service.write_config()), "restore", "--in-place"]
        answer = subprocess.run([*words, *arguments], capture_output=True, text=True, check=False, timeout=120)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    # the target lies in WAL that only the server has: a rehearsal stores nothing, and could not reach it
    service.restore_wal()
    plan = pgkeep(*moment, "--plan")
    assert f"mv {service.data} " in plan
    assert json.loads(pgkeep(*moment, "--plan", "--json"))["plan"]["was_running"]
    document = json.loads(pgkeep(*moment, "--json"))
    assert (document["rto_met"], document["carried"][0]["inserted"], service.count("far")) == (True, 2, 500)
    assert "mv " in pgkeep("--undo", "--plan")
    assert "the old data is back" in pgkeep("--undo")
    assert service.count("users") == 101
