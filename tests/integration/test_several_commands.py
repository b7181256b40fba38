"""The commands of a cluster whose backups and WAL go to a directory and to a bucket, with a network between that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository.keys import same_keys
from support.fault_proxy import Fault
from support.servers import TEST_SETTINGS, run_program, sql
from support.wal import WAL_SETTINGS, ReceiverThread, Setup, write_wal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.binaries import ServerBinaries
    from support.fault_proxy import FaultProxy, Message
    from support.seaweed import S3Bucket


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A small server with small segments."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        sql(server.dsn(), "CREATE TABLE kept AS SELECT generate_series(1, 20000) AS id")
        yield server


@dataclass
class Program:
    """``pgkeep`` with two repositories: ``near`` in a directory, ``far`` in a bucket behind a proxy."""

    directory: Path

    def run(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Exit code and document of a command."""
        command = [sys.executable, "-m", "pgkeep", "--config", str(self.directory / "pgkeep.toml"), *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def succeed(self, *words: str) -> dict[str, Any]:
        """The document of a command that must succeed."""
        code, document = self.run(*words)
        assert code == 0, document
        return document

    @property
    def setup(self) -> Setup:
        """For a receiver."""
        return Setup(self.directory, self.directory / "pgkeep.toml", ["near", "far"])


@pytest.fixture
def program(
    work_dir: Path,
    service: ThrowawayServer,
    s3_bucket: S3Bucket,
    fault_proxy: FaultProxy,
    request: pytest.FixtureRequest,
) -> Program:
    """The two repositories are created, and share their keys."""
    directory = work_dir / "pgkeep"
    directory.mkdir()
    policy = getattr(request, "param", "all")
    (directory / "pgkeep.toml").write_text(
        f"""
        [repository.near]
        url = "near"
        key = "file:near.key"
        [repository.far]
        url = "{s3_bucket.url_at(fault_proxy.endpoint, retry_for="1s")}"
        key = "file:far.key"
        [cluster.auth]
        dsn = "{service.dsn()}"
        repositories = ["near", "far"]
        backup = {{ mode = "stream", policy = "{policy}" }}
        wal = {{ spool = "spool", ship_every = "200ms", slot_cap = "none" }}
        """
    )
    program = Program(directory)
    program.succeed("repository", "create", "near")
    program.succeed("repository", "create", "far", "--share-keys-of", "near")
    return program


def away(_message: Message) -> Fault:
    """No request gets through."""
    return Fault.RESET


def test_a_bucket_that_is_away_is_behind_and_catches_up(
    program: Program, service: ThrowawayServer, fault_proxy: FaultProxy, work_dir: Path
) -> None:
    """Backups with the next one, WAL by the receiver; status tells each time, and the bucket alone restores in the end."""
    near, far = (program.setup.repository(name) for name in ("near", "far"))
    assert same_keys(near.keys, far.keys)
    with ReceiverThread(program.setup) as receiver:
        receiver.wait_for("streaming")
        first = program.succeed("backup")["backups"]
        assert [(each["repository"], each["id"]) for each in first] == [
            ("near", first[0]["id"]),
            ("far", first[0]["id"]),
        ]
        receiver.wait_shipped(write_wal(service.dsn(), 2))
        assert program.succeed("status")["ok"]

        fault_proxy.plan = away
        fault_proxy.break_connections()
        code, missed = program.run("backup")
        assert code == 9
        assert [each["repository"] for each in missed["backups"]] == ["near"]
        assert [each["repository"] for each in missed["behind"]] == ["far"]
        code, status = program.run("status")
        assert code == 9
        assert [each["reachable"] for each in status["repositories"]] == [True, False]
        end = write_wal(service.dsn(), 3)

        fault_proxy.plan = None
        receiver.wait_shipped(end)
        code, status = program.run("status")
        assert code == 9
        assert status["repositories"][1]["behind"]["backups"] == [missed["backups"][0]["id"]]
        assert program.succeed("wal", "status")["repositories"][1]["behind_best"]["wal_bytes"] < 1 << 20
        caught_up = program.succeed("backup")["caught_up"]
        assert caught_up == [{"repository": "far", "id": missed["backups"][0]["id"]}]
        status = program.succeed("status")
    assert [each["backups"] for each in status["repositories"]] == [3, 3]

    program.succeed("restore", "--repository", "far", "latest", "--target-dir", str(work_dir / "restored"))

    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")


@pytest.mark.parametrize("program", ["first"], indirect=True)
def test_with_the_policy_first_one_repository_is_enough(program: Program, fault_proxy: FaultProxy) -> None:
    """Copy brings the other up to date, with the WAL that it lacks, and moves nothing the second time."""
    fault_proxy.plan = away

    document = program.succeed("backup")

    assert [each["repository"] for each in document["behind"]] == ["far"]
    fault_proxy.plan = None
    plan = program.succeed("copy", "--from", "near", "--to", "far", "--wal", "--dry-run")
    copied = program.succeed("copy", "--from", "near", "--to", "far", "--wal")
    again = program.succeed("copy", "--from", "near", "--to", "far", "--wal")
    assert plan["backups"] == [each["id"] for each in copied["copied"]] == [document["backups"][0]["id"]]
    assert plan["bytes"] == copied["copied"][0]["new_bytes"]
    assert (again["copied"], again["there"]) == ([], 1)
    assert program.succeed("status")["ok"]


def test_a_restore_goes_on_when_the_first_repository_is_damaged(
    program: Program, service: ThrowawayServer, work_dir: Path
) -> None:
    """It ends with 0, and names what is damaged; mending brings the very object back."""
    program.succeed("backup")
    packs = sorted((program.directory / "near" / "packs" / "data").glob("*/*"))
    whole = packs[0].read_bytes()
    packs[0].write_bytes(whole[:100] + b"\0" * (len(whole) - 100))

    restored = program.succeed("restore", "latest", "--target-dir", str(work_dir / "restored"))

    run_program(service, "pg_verifybackup", "--exit-on-error", work_dir / "restored")
    assert any(packs[0].name in note for note in restored["notes"])
    mended = program.succeed("copy", "--from", "far", "--to", "near", "--mend")
    assert mended["mended"] == [f"packs/data/{packs[0].parent.name}/{packs[0].name}"]
    assert packs[0].read_bytes() == whole
    assert program.succeed("verify", "--all")["ok"]
