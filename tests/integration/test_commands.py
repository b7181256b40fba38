"""The commands, as a person or a program calls them: their JSON is what is documented, their failures are clear."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.cli.main import execute
from pgkeep.errors import BusyError
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.records import read_record, write_record
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

_JSON_REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A small server with a role that may not replicate, reached by its socket and by 127.0.0.1 with a password."""
    with ThrowawayServer(binaries_of(17), loopback=True, parent=work_root) as server:
        server.initdb()
        server.configure(
            hba="local all all trust\nlocal replication all trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
        )
        server.start(TEST_SETTINGS)
        sql(server.dsn(), "CREATE ROLE plain LOGIN PASSWORD 'right'")
        sql(server.dsn(), "CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'right'")
        yield server


class Commands:
    """Runs command lines in this process with a configuration of their own."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.config = directory / "pgkeep.toml"
        self.repository = f"file://{directory}/repository"
        self.recovery_key = ""
        self._capsys = capsys

    def run(self, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON document."""
        self._capsys.readouterr()
        code = execute(["--config", str(self.config), *(str(word) for word in arguments), "--json"])
        return code, json.loads(self._capsys.readouterr().out)

    def succeed(self, *arguments: str | Path) -> dict[str, Any]:
        """The document of a command that must succeed."""
        code, document = self.run(*arguments)
        assert code == 0, document
        return document

    def fail(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code and message of a command that must fail, with one clear error and a hint."""
        code, document = self.run(*arguments)
        assert list(document) == ["error"]
        assert document["error"]["code"] == code != 0
        assert document["error"]["hint"], document
        return code, document["error"]["message"]

    def init(self, dsn: str) -> Commands:
        """Set up."""
        document = self.succeed("init", dsn, "--name", "auth", "--repository", self.repository, "--yes")
        self.recovery_key = document["repositories"][0]["recovery_key"]
        return self


@pytest.fixture
def commands(work_dir: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Command lines with nothing set up yet."""
    return Commands(work_dir, capsys)


@pytest.fixture
def ready(commands: Commands, service: ThrowawayServer) -> Commands:
    """Command lines set up for the service."""
    return commands.init(service.dsn())


def _documented(*headings: str) -> set[str]:
    text = _JSON_REFERENCE.read_text()
    keys: set[str] = set()
    for heading in headings:
        section = re.split(rf"^(?:## {heading}|{heading}:)$", text, maxsplit=1, flags=re.MULTILINE)[1]
        section = re.split(r"^(?:## |The plan:)", section, maxsplit=1, flags=re.MULTILINE)[0]
        for first_column in re.findall(r"^\| (`[^|]+`) \|", section, flags=re.MULTILINE):
            keys |= set(re.findall(r"`(\w+)`", first_column)) - {"key"}
    return keys


def test_the_json_of_every_command_has_the_documented_keys(ready: Commands, work_dir: Path) -> None:
    """No more and no fewer."""
    backup_keys = _documented("Backups")

    backup = ready.succeed("backup", "--label", "first")
    listing = ready.succeed("list")
    shown = ready.succeed("show", "latest")
    planned = ready.succeed("restore", "--target-dir", work_dir / "copy", "--plan")
    restored = ready.succeed("restore", "--target-dir", work_dir / "copy")
    verified = ready.succeed("verify")
    exported = ready.succeed("export", "latest", work_dir / "exported")
    reindexed = ready.succeed("repository", "reindex")

    assert set(backup) == _documented("backup")
    assert set(backup["backups"][0]) == backup_keys | {"repository"}
    assert set(listing) == _documented("list")
    assert set(listing["backups"][0]) == backup_keys
    assert set(shown) == backup_keys | {"repository"}
    assert set(planned) == {"plan"}
    assert set(planned["plan"]) == set(restored["plan"]) == _documented("The plan")
    assert set(restored) == _documented("restore")
    assert set(verified) == _documented("verify")
    assert set(exported) == _documented("export")
    assert set(reindexed) == _documented("repository reindex")
    assert shown["label"] == "first"
    assert shown["state"] == "taken"
    assert ready.succeed("show", shown["id"][:12])["state"] == "verified"


def test_verify_remembers_what_it_found_whole(ready: Commands) -> None:
    """A second run passes over it; --all does not; a scrub needs no key."""
    ready.succeed("backup")
    first = ready.succeed("verify")

    second = ready.succeed("verify")
    everything = ready.succeed("verify", "--all")
    (ready.directory / "pgkeep.key").unlink()
    scrubbed = ready.succeed("verify", "--scrub", "--all", "--repository", ready.repository)

    assert first["objects"] > 0
    assert len(first["backups"]) == 1
    assert (second["backups"], second["remembered"]) == ([], first["objects"] + 1)
    assert everything["objects"] >= first["objects"]
    assert scrubbed["objects"] > 0


def test_a_repository_and_its_recovery_key_are_enough(
    ready: Commands, service: ThrowawayServer, work_dir: Path
) -> None:
    """The configuration and the key file are gone with the machine; the paper is left."""
    ready.succeed("backup")
    paper = work_dir / "paper"
    paper.write_text(ready.recovery_key.lower().replace("-", " "))
    ready.config.unlink()
    (ready.directory / "pgkeep.key").unlink()

    place = ("--repository", ready.repository, "--key-file", paper)
    outcome = ready.succeed("restore", *place, "--target-dir", work_dir / "copy", "--start")

    try:
        assert outcome["recovery"]["timeline"] == 2
        assert sql(outcome["recovery"]["dsn"], "SHOW archive_mode") == [("off",)]
        auto_conf = (work_dir / "copy" / "postgresql.auto.conf").read_text()
        assert "restore_command" not in auto_conf
        assert "recovery_target" not in auto_conf
        code, _ = ready.fail("restore", *place, "--target-dir", work_dir / "copy")
        assert code == 12, "a server runs there"
    finally:
        Server(work_dir / "copy", service.binaries).stop()


def test_what_is_in_the_target_is_moved_aside(ready: Commands, work_dir: Path) -> None:
    """A plan touches nothing; a restore renames."""
    ready.succeed("backup")
    target = work_dir / "copy"
    target.mkdir()
    (target / "precious").write_text("do not touch")

    plan = ready.succeed("restore", "--target-dir", target, "--plan")["plan"]
    assert [path.name for path in target.iterdir()] == ["precious"]
    outcome = ready.succeed("restore", "--target-dir", target)

    assert plan["moved_aside"][0]["old"] == str(target)
    aside = Path(outcome["plan"]["moved_aside"][0]["new"])
    assert (aside / "precious").read_text() == "do not touch"
    assert (target / "PG_VERSION").exists()


@pytest.mark.parametrize(
    ("dsn", "code", "words"),
    [
        ("host=/nowhere dbname=postgres user=keeper", 4, "nowhere"),
        ("host=127.0.0.1 port={port} dbname=postgres user=keeper password=wrong", 5, "keeper"),
        ("host=127.0.0.1 port={port} dbname=postgres user=plain password=right", 5, "plain"),
        ("host=127.0.0.1 port=1 dbname=postgres user=keeper connect_timeout=2", 4, "127.0.0.1"),
    ],
    ids=["no such socket", "wrong password", "no replication privilege", "nobody listens"],
)
def test_a_server_that_cannot_be_used_is_one_clear_error(
    ready: Commands, service: ThrowawayServer, dsn: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its exit code, naming what is wrong; no lease and no backup is left."""
    monkeypatch.setenv("PGKEEP_CLUSTER_AUTH_DSN", dsn.format(port=service.port))

    found, message = ready.fail("backup")

    assert (found, words in message) == (code, True), message
    assert "right" not in message
    store = open_store(ready.repository)
    assert list(store.list("leases/")) == list(store.list("clusters/")) == []


def test_no_password_shows_in_the_process_list(
    ready: Commands, service: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the receiver's command line hold the DSN."""
    dsn = f"host=127.0.0.1 port={service.port} dbname=postgres user=keeper password=right"
    monkeypatch.setenv("PGKEEP_CLUSTER_AUTH_DSN", dsn)
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(path.read_bytes())
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ready.succeed("backup", "--rate", "30MB")
    finally:
        stop.set()
        watcher.join()

    assert any(b"pgkeep.receiver" in line for line in seen)
    assert not any(b"password=right" in line for line in seen)


def test_a_place_that_is_no_repository_is_said_to_be_none(ready: Commands, work_dir: Path) -> None:
    """An empty directory, and one with something else in it."""
    (work_dir / "other").mkdir()
    (work_dir / "other" / "file").write_text("not ours")

    for place in ("missing", "other"):
        code, message = ready.fail("list", "--repository", f"file://{work_dir}/{place}")
        assert (code, "is not a pgkeep repository" in message) == (6, True)


@pytest.mark.parametrize("change", [{"format": 2}, {"required_features": ["sealed-mode"]}])
def test_a_newer_format_is_left_alone(ready: Commands, change: dict[str, object]) -> None:
    """Whoever has this version is told to get a newer one."""
    store = open_store(ready.repository)
    fields = read_record(store, "pgkeep.json")
    store.delete("pgkeep.json")
    write_record(store, "pgkeep.json", {**fields, **change})

    code, message = ready.fail("backup")

    assert (code, "this pgkeep knows format 1" in message) == (6, True)


def test_wrong_keys_and_names_are_clear_errors(ready: Commands, work_dir: Path) -> None:
    """A key of another repository; a backup that is not there; a beginning that several share."""
    ready.succeed("backup")
    ready.succeed("backup")
    KeyFile.generate(work_dir / "other.key")

    assert ready.fail("list", "--key-file", work_dir / "other.key")[0] == 7
    assert ready.fail("show", "19990101")[0] == 11
    assert ready.fail("show", "2")[0] == 11
    assert ready.fail("restore", "--target-dir", work_dir / "copy", "--tablespace", "/no=/where")[0] == 2


def test_two_backups_at_once_are_one_too_many(ready: Commands, service: ThrowawayServer) -> None:
    """The second says who holds the first, and leaves it alone."""
    first = subprocess.Popen(
        [sys.executable, "-m", "pgkeep", "--config", ready.config, "backup", "--mode", "stream", "--rate", "8MB"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not sql(service.dsn(), "SELECT 1 FROM pg_stat_progress_basebackup"):
        assert first.poll() is None

    code, message = ready.fail("backup")

    assert (code, str(first.pid) in message) == (BusyError.exit_code, True)
    assert first.wait(timeout=120) == 0
    assert len(ready.succeed("list")["backups"]) == 1


def test_a_server_that_dies_in_the_middle_fails_the_backup_and_the_next_succeeds(
    commands: Commands, binaries_of: Callable[[int], ServerBinaries], work_root: Path
) -> None:
    """``kill -9`` of the postmaster while it sends."""
    with ThrowawayServer(binaries_of(18), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        commands.init(server.dsn())
        killer = threading.Timer(1.5, server.kill)
        killer.start()
        code, _ = commands.fail("backup", "--rate", "4MB")
        killer.join()
        server.start(TEST_SETTINGS)

        assert code == 4
        assert commands.succeed("list")["backups"] == []
        commands.succeed("backup")
        commands.succeed("verify", "--all")
        assert run_program(server, "psql", server.dsn(), "-Atc", "SELECT count(*) FROM pg_replication_slots") == "0\n"


def test_an_unwritable_place_is_named(ready: Commands, work_dir: Path) -> None:
    """Simulated with a file where a directory must be: root may write anywhere else."""
    ready.succeed("backup")
    (work_dir / "file").write_text("")

    code, message = ready.fail("restore", "--target-dir", work_dir / "file" / "below")

    assert (code, str(work_dir / "file") in message) == (12, True)


def test_a_repository_opens_for_a_reader_with_the_configured_key(ready: Commands) -> None:
    """The library does what the command does."""
    key = KeyFile.read(ready.directory / "pgkeep.key")

    assert Repository.open(open_store(ready.repository), key).encrypted
