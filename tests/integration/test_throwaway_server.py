"""Finding server programs, and running servers with them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgkeep.errors import ConfigError, NotFoundError, RecoveryError, ServerError, TargetError
from pgkeep.postgres.account import ServerAccount, can_run, run_as, server_account
from pgkeep.postgres.binaries import ServerBinaries, binaries_in, find_binaries, installed_binaries
from pgkeep.postgres.server import Server, ThrowawayServer
from support.servers import MakeServer, dump_all, run_program, sql


@pytest.fixture
def binaries() -> ServerBinaries:
    return find_binaries(18)


def test_the_server_of_each_version_answers(server: ThrowawayServer, postgres_major: int) -> None:
    assert sql(server.dsn(), "SHOW server_version_num") == [(str(server.binaries.version),)]
    assert server.binaries.major == postgres_major


def test_every_version_brings_the_tools_that_judge_a_restore(server: ThrowawayServer, database: str) -> None:
    for tool in ("pg_amcheck", "pg_basebackup", "pg_checksums", "pg_dump", "pg_dumpall", "pg_verifybackup", "pgbench"):
        assert "PostgreSQL" in run_program(server, tool, "--version")
    for extension in ("amcheck", "pageinspect", "pg_visibility"):
        sql(database, f"CREATE EXTENSION {extension}")


def test_the_dump_of_a_server_holds_its_roles_and_is_the_same_twice(make_server: MakeServer) -> None:
    server = make_server(18)
    sql(server.dsn(), "CREATE ROLE auditor")

    first = dump_all(server)

    assert "CREATE ROLE auditor" in first
    assert dump_all(server) == first


def test_a_server_listens_on_its_socket_only_whatever_its_settings_say(make_server: MakeServer) -> None:
    server = make_server(18, settings={"listen_addresses": "*"})

    assert sql(server.dsn(), "SHOW listen_addresses") == [("",)]


def test_a_server_on_loopback_asks_for_the_password_that_its_rules_want(make_server: MakeServer) -> None:
    server = make_server(18, loopback=True, hba="local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    sql(server.dsn(), "CREATE ROLE visitor LOGIN PASSWORD 'open sesame'")
    visitor = server.dsn(user="visitor", host="127.0.0.1", password="open sesame")

    assert sql(visitor, "SELECT host(inet_server_addr())") == [("127.0.0.1",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        sql(server.dsn(user="visitor", host="127.0.0.1", password="wrong"), "SELECT 1")


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("wal_segment_size", [1, 64])
def test_a_cluster_has_the_checksums_and_the_segment_size_asked_for(
    make_server: MakeServer, postgres_major: int, checksums: bool, wal_segment_size: int
) -> None:
    server = make_server(postgres_major, checksums=checksums, wal_segment_size=wal_segment_size)

    answer = sql(server.dsn(), "SELECT current_setting('data_checksums'), current_setting('wal_segment_size')")

    assert answer == [("on" if checksums else "off", f"{wal_segment_size}MB")]


def test_rows_survive_a_crash(make_server: MakeServer, postgres_major: int) -> None:
    server = make_server(postgres_major)
    sql(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS answer")

    server.kill()
    crashed = (server.is_running, server.status())
    server.start()

    assert crashed == (False, None)
    assert "was not properly shut down" in server.log_tail(100)
    assert sql(server.dsn(), "SELECT answer FROM kept") == [(42,)]


def test_a_stopped_server_starts_again(make_server: MakeServer) -> None:
    server = make_server(18)

    server.stop()
    stopped = server.process_id
    server.start()

    assert stopped is None
    assert server.status() == "ready"


def test_stopping_a_server_that_does_not_run_does_nothing(make_server: MakeServer) -> None:
    server = make_server(18)
    server.stop()

    server.stop()
    server.kill()

    assert not server.is_running


def test_another_object_sees_and_stops_a_server_that_was_let_go(make_server: MakeServer) -> None:
    server = make_server(18)
    pid = server.process_id
    server.detach()

    other = Server(server.data_directory, server.binaries)
    seen = (other.process_id, other.status())
    other.stop()

    assert seen == (pid, "ready")
    assert not server.is_running
    assert pid is not None
    assert os.waitpid(pid, 0)[0] == pid


def test_a_number_that_another_process_took_over_is_not_taken_for_the_server(
    binaries: ServerBinaries, work_dir: Path
) -> None:
    server = Server(work_dir / "data", binaries)
    server.initdb()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        (server.data_directory / "postmaster.pid").write_text(f"{bystander.pid}\n{server.data_directory}\n")

        server.stop()

        assert not server.is_running
        assert bystander.poll() is None


def test_a_server_that_does_not_start_tells_the_end_of_its_log(make_server: MakeServer) -> None:
    server = make_server(18)
    server.stop()

    with pytest.raises(RecoveryError, match=r"did not start(?s:.)*bogus"):
        server.start({"wal_level": "bogus"})
    assert not server.is_running


def test_a_server_that_is_not_ready_in_time_is_an_error(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(18)
    server.stop()
    (server.data_directory / "recovery.signal").touch()

    with pytest.raises(RecoveryError, match="was not ready after 1 s"):
        server.start({"restore_command": "sleep 30; false", "hot_standby": False}, timeout=1)
    assert server.status() == "starting"


def test_a_server_that_sessions_hold_up_is_an_error_when_it_does_not_stop_in_time(make_server: MakeServer) -> None:
    server = make_server(18)

    with psycopg.connect(server.dsn()), pytest.raises(ServerError, match="did not stop in 1 s"):
        server.stop("smart", timeout=1)


def test_two_servers_on_one_data_directory_are_refused(make_server: MakeServer) -> None:
    server = make_server(18)

    with pytest.raises(TargetError, match="already running"):
        Server(server.data_directory, server.binaries).start()


def test_a_socket_directory_too_long_for_the_system_is_named(binaries: ServerBinaries, work_dir: Path) -> None:
    sockets = work_dir / ("s" * 93)

    with pytest.raises(TargetError, match=r"socket directory .* longer than 92 bytes"):
        Server(work_dir / "data", binaries, socket_directory=sockets).start()


def test_a_throwaway_server_leaves_nothing_behind(binaries: ServerBinaries, work_dir: Path) -> None:
    with ThrowawayServer(binaries, parent=work_dir) as server:
        server.initdb()
        server.start()
        pid = server.process_id

    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    assert list(work_dir.iterdir()) == []


def test_a_server_without_a_socket_directory_gets_one_until_it_stops(binaries: ServerBinaries, work_dir: Path) -> None:
    with Server(work_dir / "data", binaries) as server:
        server.initdb()
        server.start()
        sockets = server.socket_directory
        assert sql(server.dsn(), "SELECT 1") == [(1,)]

    assert sockets is not None
    assert not sockets.exists()
    assert not server.is_running


def test_initdb_on_a_directory_in_use_says_so(make_server: MakeServer) -> None:
    server = make_server(18)

    with pytest.raises(ServerError, match=r"initdb failed .* exists but is not empty"):
        server.initdb()


def test_a_directory_without_a_server_is_not_found(work_dir: Path) -> None:
    with pytest.raises(NotFoundError, match=f"no PostgreSQL server.* was found in {work_dir}") as failure:
        find_binaries(directory=work_dir)
    assert "apt-get install postgresql" in str(failure.value.hint)


def test_a_version_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"no PostgreSQL 9 server.* was found; there is .*18\.\d+ in /"):
        find_binaries(9)


def test_a_server_in_the_named_directories_comes_first(
    binaries: ServerBinaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGKEEP_PG_BIN", f"/nowhere:{binaries.bindir}")

    assert installed_binaries()[0] == binaries
    assert find_binaries() == binaries


def test_a_link_leads_to_the_programs_beside_the_real_one(binaries: ServerBinaries, work_dir: Path) -> None:
    (work_dir / "postgres").symlink_to(binaries.path("postgres"))

    assert binaries_in(work_dir) == binaries


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho postgres of another kind\n", "\x7fELF"])
def test_a_program_that_does_not_say_its_version_is_no_server(work_dir: Path, script: str) -> None:
    program = work_dir / "postgres"
    program.write_text(script)
    program.chmod(0o755)

    assert binaries_in(work_dir) is None


def test_a_program_that_is_lacking_is_named(work_dir: Path) -> None:
    with pytest.raises(NotFoundError, match=f"PostgreSQL 16.3 in {work_dir} has no pg_amcheck"):
        ServerBinaries(work_dir, 160003).path("pg_amcheck")


def test_the_account_executes_the_interpreter_that_runs_us() -> None:
    assert can_run(server_account(), [sys.executable, "-c", "import pgkeep"])


@pytest.mark.parametrize("command", [["/nonexistent"], [sys.executable, "-c", "raise SystemExit(1)"]])
def test_what_fails_cannot_be_run(command: list[str]) -> None:
    assert not can_run(server_account(), command)


def test_programs_do_not_see_the_operators_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "production.example.com")
    monkeypatch.setenv("PGKEEP_CONFIG", "/etc/pgkeep/pgkeep.toml")
    script = "import os; print(os.environ.get('PGHOST'), os.environ['PGKEEP_CONFIG'], os.environ['EXTRA'])"

    answer = run_as(server_account(), [sys.executable, "-c", script], environment={"EXTRA": "more"})

    assert answer.stdout.split() == ["None", "/etc/pgkeep/pgkeep.toml", "more"]


def test_what_a_server_writes_is_its_accounts(make_server: MakeServer) -> None:
    server = make_server(18)
    owner = server.account.uid if server.account else os.geteuid()

    assert {path.stat().st_uid for path in server.data_directory.iterdir()} == {owner}
    assert stat.S_IMODE(server.data_directory.stat().st_mode) == 0o700


def test_only_root_needs_another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert server_account() is None


def test_root_takes_the_account_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PGKEEP_SERVER_ACCOUNT", "nobody")

    account = server_account()

    assert isinstance(account, ServerAccount)
    assert (account.name, account.uid > 0) == ("nobody", True)


@pytest.mark.parametrize(("name", "reason"), [("root", "is root"), ("no-such-account", "has no account")])
def test_an_account_that_cannot_run_a_server_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PGKEEP_SERVER_ACCOUNT", name)

    with pytest.raises(ConfigError, match=reason):
        server_account()
