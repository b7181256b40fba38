"""A repository in a bucket of a real S3 server, from ``init`` to a server that was recovered from it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.demo.workload import Client, load
from pgkeep.errors import BusyError
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.postgres.wal import segment_name, segment_start
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.leases import Lease, running
from pgkeep.repository.records import write_record
from pgkeep.repository.store_probe import describe, probe
from pgkeep.units import utc_now
from pgkeep.verify import VerifyRequest, run_verify
from pgkeep.wal.fetch import restore_command
from support.buckets import BucketProgram, give_credentials
from support.fetch import SIZE, Copy, give_tree
from support.jobs import server_place
from support.servers import TEST_SETTINGS, run_program, sql
from support.wal import (
    WAL_SETTINGS,
    ReceiverThread,
    change_setting,
    expect_same_wal,
    system_identifier,
    until,
    write_wal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from support.seaweed import S3Bucket, SeaweedServer
    from support.servers import MakeServer

_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A small authentication service whose WAL segments are of 1 MiB."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        load(server.dsn(), users=300)
        yield server


@pytest.fixture
def program(work_dir: Path, service: ThrowawayServer, s3_bucket: S3Bucket) -> BucketProgram:
    """The program, with nothing set up yet."""
    return BucketProgram(work_dir / "setup", service.dsn(), s3_bucket.url)


@pytest.mark.deletes
def test_init_finds_out_what_the_store_can_do_says_it_and_writes_it_down(
    program: BucketProgram, s3_bucket: S3Bucket
) -> None:
    document = program.init()
    again = program.init()

    repository = Repository.open(open_store(s3_bucket.url), KeyFile.read(program.directory / "pgkeep.key"))
    found = repository.capabilities
    assert found is not None
    assert (found.conditional_put, found.sorted_listing, found.denies_deletion) == (True, False, False)
    assert (found.lock_mode, found.clock_difference) == (None, 0)
    assert {"GLACIER", "DEEP_ARCHIVE"} <= set(found.storage_classes)
    said = [finding["message"] for finding in document["findings"] if finding["name"] == "store of auth"]
    assert "creates an object only where there is none" in said
    assert "no object lock: these credentials can replace and delete objects" in said
    assert {info.name.split("/")[0] for info in repository.store.list("")} == {"keys", "pgkeep.json"}
    assert f'url = "{repository.store.url}"' in program.config.read_text()
    assert not again["repositories"][0]["created"]


def test_a_probe_sees_what_the_buckets_owner_has_forbidden_and_locked(s3_server: SeaweedServer) -> None:
    plain, locked = s3_server.make_bucket(), s3_server.make_bucket(headers={"x-amz-bucket-object-lock-enabled": "true"})
    answer = plain.request("PUT", "", query={"policy": ""}, body=deny(plain, "s3:DeleteObject"))
    assert answer.status == 204
    answer = locked.request(
        "PUT",
        "",
        query={"object-lock": ""},
        body=b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
        b"<Mode>COMPLIANCE</Mode><Days>7</Days></DefaultRetention></Rule></ObjectLockConfiguration>",
    )
    assert answer.status == 200
    options = {"credentials_file": str(s3_server.credentials_file), "profile": "writer"}

    kept, held = (probe(open_store(bucket.url_at(s3_server.endpoint, **options))) for bucket in (plain, locked))

    assert kept is not None
    assert held is not None
    assert (kept.denies_deletion, kept.lock_mode, kept.keeps_versions) == (True, None, False)
    assert (held.lock_mode, held.keeps_versions) == ("COMPLIANCE", True)
    assert held.lock_seconds == pytest.approx(7 * 86400, abs=60)
    assert "locks new objects for 7 days (COMPLIANCE)" in [finding.message for finding in describe("store", held)]
    assert "no object lock: these credentials can replace objects" in [f.message for f in describe("store", kept)]
    assert list(open_store(plain.url).list("")) == []


def deny(bucket: S3Bucket, *actions: str) -> bytes:
    """A policy that forbids everybody but the administrator these actions."""
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": actions,
        "Resource": [f"arn:aws:s3:::{bucket.name}/*"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}).encode()


def test_a_cluster_is_backed_up_received_verified_and_recovered(
    program: BucketProgram, service: ThrowawayServer, work_dir: Path
) -> None:
    """Every command that touches a repository, on one whose bytes are in a bucket."""
    setup = program.prepare()
    identifier = system_identifier(service.dsn())

    with ReceiverThread(setup) as receiver, Client(service.dsn(), rate=100) as client:
        receiver.wait_for("streaming")
        taken = program.succeed("backup")["backups"][0]
        receiver.wait_shipped(write_wal(service.dsn(), 3))
        client.stop()
        end = write_wal(service.dsn(), 0.1)
        receiver.wait_shipped(end)
        assert program.succeed("wal", "status")["ok"]
    expect_same_wal(setup, service, identifier, LSN.parse(taken["start_lsn"]), end)
    assert len(client.committed()) > 10

    assert [found["id"] for found in program.succeed("list")["backups"]] == [taken["id"]]
    assert program.succeed("check")["ok"]
    verified = program.succeed("verify")
    assert (verified["damage"], verified["leftover_bytes"]) == ([], 0)

    restored = program.succeed("restore", "--target-dir", work_dir / "copy", "--latest", "--start")
    try:
        assert rows(restored["recovery"]["dsn"]) == rows(service.dsn())
    finally:
        Server(work_dir / "copy", service.binaries).stop()
    run_program(service, "pg_checksums", "--check", "-D", work_dir / "copy")


@pytest.mark.deletes
def test_the_index_of_a_bucket_is_made_again(program: BucketProgram) -> None:
    setup = program.prepare()
    program.succeed("backup")
    packs = {info.name for info in setup.repository("auth").store.list("packs/")}
    assert program.succeed("repository", "reindex")["packs"] == len(packs)
    verified = program.succeed("verify")
    assert (verified["damage"], verified["leftover_bytes"]) == ([], 0)


def rows(dsn: str) -> list[tuple[str, ...]]:
    """What the tables hold."""
    tables = [
        name for (name,) in sql(dsn, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid > 16383")
    ]
    return sorted(
        (table, *sql(dsn, f"SELECT count(*)::text, md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {table} t")[0])
        for table in tables
    )


@dataclass
class Pushing:
    """What a `Copy` asks of its origin."""

    server: ThrowawayServer
    repository: Repository


def test_the_servers_own_archive_command_pushes_and_its_copy_fetches(
    work_dir: Path, s3_server: SeaweedServer, s3_bucket: S3Bucket, make_server: MakeServer
) -> None:
    """Both run as the server's account, and not with the operator's environment: the address names the credentials."""
    server = make_server(17, wal_segment_size=1, settings={**WAL_SETTINGS, "archive_mode": True})
    place = server_place(work_dir / "etc")
    credentials = give_credentials(s3_server, place)
    url = s3_bucket.url_at(s3_server.endpoint, credentials_file=str(credentials), profile="writer")
    program = BucketProgram(place, server.dsn(), url)
    setup = program.prepare()
    program.succeed("backup")
    give_tree(place)
    command: str = program.succeed("wal", "push", "--archive-command")["archive_command"]
    change_setting(server.dsn(), "archive_command", "'" + command.replace("'", "''") + "'")
    repository = setup.repository("auth")
    archive = repository.wal(system_identifier(server.dsn()))
    start = repository.catalog.find("latest").start_lsn

    sql(server.dsn(), "CREATE TABLE pushed AS SELECT generate_series(1, 20000) AS number")
    end = write_wal(server.dsn(), 3)
    sql(server.dsn(), "SELECT pg_switch_wal()")
    last = segment_name(1, segment_start(end - 1, SIZE), SIZE)
    until(lambda: archive.exists(last), lambda: f"{last} in the bucket:\n{server.log_tail()}", 60)
    expect_same_wal(setup, server, archive.system_identifier, start, end)

    words = [sys.executable, "-P", "-m", "pgkeep", "wal", "fetch", "--config", str(program.config)]
    with Copy(Pushing(server, repository), work_dir / "copy" / "data", restore_command(words)) as copy:  # type: ignore[arg-type]
        copy.start()
        copy.wait_promoted()
        assert sql(copy.dsn(), "SELECT count(*) FROM pushed") == [(20000,)]
        assert copy.log.count("restored log file") >= 3


def test_of_two_backups_at_once_one_is_told_who_holds_the_cluster(program: BucketProgram) -> None:
    setup = program.prepare()
    first = program.start("backup", "--rate", "10MB")
    store = setup.repository("auth").store
    until(lambda: list(store.list("leases/")), "the first one's lease")
    code, document = program.run("backup")
    _, errors = first.communicate(timeout=60)
    assert (first.returncode, code) == (0, 10), errors
    assert f"process {first.pid} on" in document["error"]["message"]
    assert running(store) == []


@pytest.mark.timeout(120)
def test_kills_of_a_backup_leave_nothing_half_done(
    program: BucketProgram, service: ThrowawayServer, work_dir: Path
) -> None:
    """``kill -9`` at random moments: the repository always verifies, the next backup adopts what there is."""
    chance = random.Random(_SEED)
    setup = program.prepare()
    begun = time.monotonic()
    program.succeed("backup")
    duration, finished = time.monotonic() - begun, 1
    sql(service.dsn(), "CREATE TABLE more AS SELECT md5(i::text) AS filler FROM generate_series(1, 100000) i")
    for _ in range(3):
        process = program.start("backup")
        time.sleep(chance.uniform(0.3, 1.2) * duration)
        process.kill()
        process.communicate()
        repository = setup.repository("auth")
        assert run_verify(VerifyRequest(scrub=False, max_age_seconds=0), repository.store, repository).damage == []
        before, finished = finished, len(repository.catalog.names())
        assert finished - before in {0, 1}, f"seed {_SEED}"

    program.succeed("backup")

    repository = setup.repository("auth")
    assert {info.name for info in repository.store.list("packs/")} == repository.index.known_packs(), f"seed {_SEED}"
    assert len(repository.catalog.names()) == finished + 1
    assert run_verify(VerifyRequest(max_age_seconds=0), repository.store, repository).damage == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_backup_that_is_stopped_says_so_and_leaves_no_lease(program: BucketProgram, number: signal.Signals) -> None:
    setup = program.prepare()
    process = program.start("backup", "--rate", "1MB")
    store = setup.repository("auth").store
    until(lambda: list(store.list("leases/")), "its lease")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert running(store) == []


_CONTEND = """
import os, sys, time
from pgkeep.errors import BusyError
from pgkeep.repository import leases, open_store
leases._SETTLING = 0.5
store, log, stop = open_store(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND), time.monotonic() + float(sys.argv[3])
while time.monotonic() < stop:
    try:
        with leases.Lease(store, "backup"):
            os.write(log, f"{os.getpid()} in\\n".encode())
            time.sleep(0.02)
            os.write(log, f"{os.getpid()} out\\n".encode())
    except BusyError:
        os.write(log, f"{os.getpid()} busy\\n".encode())
"""


@pytest.mark.deletes
def test_writers_that_fight_for_a_lease_never_hold_it_together(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    """Three processes, again and again, for some seconds: each gets it at times, and no two at once.

    Where ended leases cannot be deleted, those who come back at once, again and again, keep giving way to each other.
    """
    log = tmp_path / "log"
    log.touch()
    writers = [subprocess.Popen([sys.executable, "-c", _CONTEND, s3_bucket.url, str(log), "3"]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    lines = [line.split() for line in log.read_text().splitlines()]
    holder = None
    for pid, what in lines:
        if what == "in":
            assert holder is None, f"{pid} came in while {holder} was there"
            holder = pid
        elif what == "out":
            assert holder == pid
            holder = None
    held = [pid for pid, what in lines if what == "in"]
    assert len(held) >= 3
    assert len(set(held)) >= 2
    assert running(open_store(s3_bucket.url)) == []


def test_the_lease_of_a_dead_writer_is_taken_over(s3_bucket: S3Bucket) -> None:
    store = open_store(s3_bucket.url)
    hold = (
        "import sys, time; from pgkeep.repository import leases, open_store\n"
        "with leases.Lease(open_store(sys.argv[1]), 'backup'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, s3_bucket.url], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(BusyError, match=f"process {holder.pid} on"), Lease(store, "backup"):
        pytest.fail("both hold it")
    holder.kill()
    holder.communicate()
    with Lease(store, "backup") as lease:
        assert lease.took_over


def test_a_lease_from_another_machine_holds_until_it_is_over(s3_bucket: S3Bucket) -> None:
    store = open_store(s3_bucket.url)
    fields = {
        "resource": "backup",
        "host": "elsewhere",
        "boot": "another machine",
        "pid": 1,
        "process_start": 1,
        "writer": "feedfeedfeedfeed",
        "expires": utc_now().isoformat(),
    }
    write_record(store, "leases/20000101T000000000000Z-00000000.0", fields)
    with Lease(store, "backup") as lease:
        assert lease.took_over
        assert running(store) == ["backup"]


def test_a_repository_whose_data_packs_have_a_storage_class_of_their_own(
    program: BucketProgram, s3_bucket: S3Bucket, s3_server: SeaweedServer
) -> None:
    """Everything else, which every command reads, stays where it is quick."""
    program.url = s3_bucket.url_at(s3_server.endpoint, storage_class="STANDARD_IA")
    store = program.prepare().repository("auth").store
    program.succeed("backup")

    def storage_class(name: str) -> str | None:
        return s3_bucket.request("HEAD", f"auth/{name}").headers.get("x-amz-storage-class")

    found = {info.name.rpartition("/")[0][:11]: storage_class(info.name) for info in store.list("")}
    assert found.pop("packs/data/") == "STANDARD_IA"
    assert set(found.values()) <= {None, "STANDARD"}


@pytest.mark.deletes
def test_a_restore_as_another_account_needs_no_right_to_write(
    program: BucketProgram, s3_bucket: S3Bucket, work_dir: Path, s3_server: SeaweedServer
) -> None:
    """Reading leaves no trace in the bucket: with credentials that cannot write, a restore and a listing work."""
    program.prepare()
    program.succeed("backup")
    answer = s3_bucket.request("PUT", "", query={"policy": ""}, body=deny(s3_bucket, "s3:PutObject", "s3:DeleteObject"))
    assert answer.status == 204
    credentials = give_credentials(s3_server, work_dir)
    give_to(server_account(), credentials)
    url = s3_bucket.url_at(s3_server.endpoint, credentials_file=str(credentials), profile="writer")
    reader = [*("--repository", url), *("--key-file", str(program.directory / "pgkeep.key"))]

    assert len(program.succeed("list", *reader)["backups"]) == 1
    program.succeed("restore", *reader, "--target-dir", work_dir / "copy")
    program.config.write_text(program.config.read_text().replace("endpoint=", "profile=writer&credentials_file="
                              f"{credentials}&endpoint="))  # fmt: skip
    code, document = program.run("backup")
    assert code == 9
    assert "cannot write leases/" in document["error"]["message"]
    assert "access denied (AccessDenied)" in document["error"]["message"]
    assert "s3:PutObject" in document["error"]["hint"]
