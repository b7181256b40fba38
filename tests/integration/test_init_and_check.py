"""``pgkeep init`` and ``pgkeep check`` against real servers, called as a user calls them."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgkeep.checks import check_server
from pgkeep.cli.main import execute
from pgkeep.config import load_config
from pgkeep.errors import ServerSettingError
from pgkeep.opening import open_repository
from pgkeep.postgres.connection import connect_sql, open_replication
from pgkeep.postgres.facts import read_server_facts, server_facts
from pgkeep.repository import KeyFile, Repository, open_store
from support.servers import MakeServer, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.server import ThrowawayServer

SCRAM_HBA = (
    "local all postgres trust\nhost all postgres 127.0.0.1/32 trust\nhost auth_db all 127.0.0.1/32 scram-sha-256\n"
)


class Pgkeep:
    """Runs commands with one configuration file, and reads their JSON."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = directory / "pgkeep.toml"
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        self._capsys.readouterr()
        code = execute([*arguments, "--config", str(self.config), "--json"])
        return code, json.loads(self._capsys.readouterr().out)

    def text(self, *arguments: str) -> tuple[int, str]:
        self._capsys.readouterr()
        code = execute([*arguments, "--config", str(self.config)])
        return code, self._capsys.readouterr().out


@pytest.fixture
def pgkeep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pgkeep:
    return Pgkeep(tmp_path, capsys)


@pytest.fixture
def role(server: ThrowawayServer) -> Iterator[str]:
    """A role that may log in and nothing else."""
    sql(server.dsn(), "CREATE ROLE keeper LOGIN; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    yield "keeper"
    sql(server.dsn(), "GRANT CONNECT ON DATABASE postgres TO PUBLIC; DROP OWNED BY keeper; DROP ROLE keeper")


def finding(document: dict[str, Any], name: str) -> tuple[str, str | None]:
    (found,) = [each for each in document["findings"] if each["name"] == name]
    return found["status"], found["remedy"]


def test_init_creates_all_and_check_agrees(server: ThrowawayServer, pgkeep: Pgkeep, tmp_path: Path) -> None:
    code, made = pgkeep("init", server.dsn(), "--name", "auth", "--repository", str(tmp_path / "store"))
    assert (code, made["ok"], made["cluster"]) == (0, True, "auth")
    assert stat.S_IMODE((tmp_path / "pgkeep.key").stat().st_mode) == 0o600
    config = load_config(pgkeep.config, {})
    repository = open_repository(config.repository())
    assert repository.encrypted
    recovery = KeyFile.from_recovery_key(made["repositories"][0]["recovery_key"])
    assert Repository.open(open_store(config.repository().url), recovery).id == repository.id
    code, checked = pgkeep("check")
    assert (code, checked["ok"], checked["cluster"]) == (0, True, "auth")
    assert {each["status"] for each in checked["findings"]} <= {"ok", "warning"}


def test_the_recovery_key_is_printed_once_with_what_losing_it_means(
    server: ThrowawayServer, pgkeep: Pgkeep, tmp_path: Path
) -> None:
    code, first = pgkeep.text("init", server.dsn(), "--repository", str(tmp_path / "store"))
    assert code == 0
    assert "PGKEEP1-" in first
    assert "both lost" in first
    before = pgkeep.config.read_text()
    code, second = pgkeep.text("init", server.dsn())
    assert (code, "PGKEEP1-" in second) == (0, False)
    assert pgkeep.config.read_text() == before


def test_a_second_cluster_joins_the_configuration(server: ThrowawayServer, pgkeep: Pgkeep, tmp_path: Path) -> None:
    pgkeep("init", server.dsn(), "--repository", str(tmp_path / "store"))
    pgkeep.config.write_text(pgkeep.config.read_text() + "# mine\n")
    code, refused = pgkeep("init", server.dsn("template1"))
    assert (code, refused["error"]["name"]) == (3, "ConfigError")
    code, made = pgkeep("init", server.dsn("template1"), "--name", "second")
    assert (code, made["repositories"][0]["created"]) == (0, False)
    config = load_config(pgkeep.config, {})
    assert config.cluster("main").repositories == config.cluster("second").repositories
    assert "# mine\n" in pgkeep.config.read_text()


@pytest.mark.parametrize(
    ("option", "encrypted"), [("--passphrase-file", True), ("--key-file", True), ("--no-encryption", False)]
)
def test_the_key_can_be_chosen(
    option: str, encrypted: bool, shared_server: Callable[[int], ThrowawayServer], pgkeep: Pgkeep, tmp_path: Path
) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    file = {"--passphrase-file": [str(tmp_path / "passphrase")], "--key-file": [str(tmp_path / "my.key")]}.get(
        option, []
    )
    arguments = [shared_server(18).dsn(), "--repository", str(tmp_path / "store"), option, *file]
    code, made = pgkeep("init", *arguments)
    assert (code, made["repositories"][0]["recovery_key"] is not None) == (0, encrypted)
    assert open_repository(load_config(pgkeep.config, {}).repository()).encrypted is encrypted
    assert not (tmp_path / "pgkeep.key").exists()


def test_a_place_that_holds_something_else_is_left_alone(
    server: ThrowawayServer, pgkeep: Pgkeep, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "letter").write_text("dear")
    code, answer = pgkeep("init", server.dsn(), "--repository", str(tmp_path / "store"))
    assert (code, answer["error"]["name"]) == (6, "RepositoryError")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["letter"]
    assert not pgkeep.config.exists()


def test_a_wrong_key_is_found_by_check(server: ThrowawayServer, pgkeep: Pgkeep, tmp_path: Path) -> None:
    pgkeep("init", server.dsn(), "--repository", str(tmp_path / "store"))
    (tmp_path / "pgkeep.key").unlink()
    KeyFile.generate(tmp_path / "pgkeep.key")
    code, checked = pgkeep("check")
    assert (code, finding(checked, "repository main")[0]) == (7, "failed")


def test_a_role_without_replication_is_told_the_alter_role(server: ThrowawayServer, role: str, pgkeep: Pgkeep) -> None:
    sql(server.dsn(), f"GRANT CONNECT ON DATABASE postgres TO {role}")
    code, answer = pgkeep("init", server.dsn(user=role))
    assert code == ServerSettingError.exit_code
    assert finding(answer, "replication role") == ("failed", f"ALTER ROLE {role} WITH REPLICATION;")
    assert not pgkeep.config.exists()


def test_the_remedies_for_a_role_are_enough(server: ThrowawayServer, role: str, pgkeep: Pgkeep, tmp_path: Path) -> None:
    """A role without any right, mended with nothing but what each answer says."""
    arguments = ("init", server.dsn(user=role), "--repository", str(tmp_path / "store"))
    statuses = []
    for _ in range(3):
        code, answer = pgkeep(*arguments)
        statuses.append(code)
        for each in answer["findings"]:
            if each["remedy"] and each["remedy"].startswith(("ALTER ROLE", "GRANT")):
                sql(server.dsn(), each["remedy"])
    assert statuses == [5, 0, 0]
    assert {each["status"] for each in pgkeep("check")[1]["findings"]} <= {"ok", "warning"}


def test_a_pure_replication_role_is_enough_and_sizes_stay_unknown(
    server: ThrowawayServer, role: str, pgkeep: Pgkeep, tmp_path: Path
) -> None:
    sql(server.dsn(), f"ALTER ROLE {role} REPLICATION")
    code, answer = pgkeep("init", server.dsn(user=role), "--repository", str(tmp_path / "store"))
    assert code == 0
    assert finding(answer, "SQL session") == ("unknown", f"GRANT CONNECT ON DATABASE postgres TO {role};")
    assert finding(answer, "room in main")[0] == "unknown"
    facts = read_server_facts(server.dsn(user=role))
    assert (facts.role, facts.size, facts.tablespaces, facts.data_directory) == (role, None, None, None)
    assert facts.major_version == server.binaries.major


def test_facts_are_the_same_over_either_connection(server: ThrowawayServer) -> None:
    replication = open_replication(server.dsn())
    with connect_sql(server.dsn()) as connection:
        over_sql = server_facts(None, connection)
        both = server_facts(replication, connection)
    replication.finish()
    assert both.size is not None
    assert over_sql.wal_senders_in_use == (both.wal_senders_in_use or 0) + 1
    same = set(both.__slots__) - {"wal_senders_in_use", "size"}
    assert {name: getattr(both, name) for name in same} == {name: getattr(over_sql, name) for name in same}
    (system_identifier,) = sql(server.dsn(), "SELECT system_identifier FROM pg_control_system()")[0]
    assert both.system_identifier == system_identifier


def test_missing_pg_hba_lines_and_passwords_are_named(make_server: MakeServer, pgkeep: Pgkeep, tmp_path: Path) -> None:
    server = make_server(18, hba=SCRAM_HBA, loopback=True)
    sql(server.dsn(), "CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'geheim:\\'")
    sql(server.dsn(), "CREATE DATABASE auth_db")
    address = {"host": "127.0.0.1", "port": str(server.port)}
    dsn = server.dsn("auth_db", "keeper", **address)
    with_password = psycopg.conninfo.make_conninfo(dsn, password="geheim:\\")

    (failed,) = check_server(psycopg.conninfo.make_conninfo(dsn, password="wrong", dbname="auth_db")).findings
    assert (failed.name, failed.status) == ("connection", "failed")

    code, answer = pgkeep("init", with_password, "--repository", str(tmp_path / "store"))
    status, remedy = finding(answer, "replication connection")
    assert (code, status) == (5, "failed")
    assert remedy is not None
    line = remedy.rpartition(" -- ")[2]
    assert line == "host replication keeper 127.0.0.1/32 scram-sha-256"

    server.configure(hba=SCRAM_HBA + line + "\n")
    sql(server.dsn(), "SELECT pg_reload_conf()")
    with pytest.raises(ServerSettingError, match="does not accept the password"):
        open_replication(psycopg.conninfo.make_conninfo(dsn, password="wrong"))
    with pytest.raises(ServerSettingError, match="asks for a password"):
        open_replication(psycopg.conninfo.make_conninfo(dsn, passfile="/dev/null"))
    code, answer = pgkeep("init", with_password, "--repository", str(tmp_path / "store"))
    assert code == 0
    assert "geheim" not in pgkeep.config.read_text()
    assert stat.S_IMODE((tmp_path / "main.pgpass").stat().st_mode) == 0o600
    assert pgkeep("check")[0] == 0


def test_server_settings_that_forbid_backups_fail_with_their_remedy(make_server: MakeServer, pgkeep: Pgkeep) -> None:
    server = make_server(
        17, checksums=False, settings={"wal_level": "minimal", "max_wal_senders": 0, "full_page_writes": False}
    )
    code, answer = pgkeep("init", server.dsn())
    assert code == 5
    assert finding(answer, "wal_level") == (
        "failed",
        "ALTER SYSTEM SET wal_level = 'replica'; -- then restart the server",
    )
    assert finding(answer, "max_wal_senders")[0] == "failed"
    assert finding(answer, "full_page_writes")[0] == "warning"
    assert finding(answer, "fsync")[0] == "warning"
    assert finding(answer, "data checksums")[0] == "warning"


def test_wal_senders_must_be_free_for_backup_and_wal(make_server: MakeServer) -> None:
    server = make_server(18, settings={"max_wal_senders": 2})
    held = open_replication(server.dsn())
    findings = {each.name: each for each in check_server(server.dsn()).findings}
    assert findings["max_wal_senders"].status == "failed"
    held.finish()


def test_configuration_files_outside_the_data_directory_are_a_warning(make_server: MakeServer, work_dir: Path) -> None:
    outside = work_dir / "pg_hba.conf"
    outside.write_text("local all all trust\nlocal replication all trust\n")
    outside.chmod(0o644)
    server = make_server(18, settings={"hba_file": str(outside)})
    facts = read_server_facts(server.dsn())
    assert facts.config_files_outside == (str(outside),)
    (found,) = [each for each in check_server(server.dsn()).findings if each.name == "configuration files"]
    assert (found.status, str(outside) in found.message) == ("warning", True)


def test_sizes_segments_and_tablespaces_are_read(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(15, wal_segment_size=64)
    place = work_dir / "space"
    place.mkdir()
    if server.account is not None:
        import os

        os.chown(place, server.account.uid, server.account.gid)
    sql(server.dsn(), f"CREATE TABLESPACE space LOCATION '{place}'")
    facts = read_server_facts(server.dsn())
    assert facts.tablespaces is not None
    assert [(space.name, space.location) for space in facts.tablespaces] == [("space", str(place))]
    assert (facts.wal_segment_size, facts.block_size, facts.segment_size) == (64 << 20, 8192, 1 << 30)
    assert facts.size is not None
    assert facts.size > 20 << 20
    server.stop()
