"""Credentials that may add objects, and neither delete nor replace them: all jobs work with them, and an intruder does no harm.

The policy that denies deletion is SeaweedFS's own; that puts must be conditional is simulated (`SimulatedBucketPolicy`).
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.checks import Finding
from pgkeep.config import load_config
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.postgres.wal import segment_name, segment_start
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.leases import Lease, running
from pgkeep.repository.locks import format_moment
from pgkeep.repository.storage_classes import StorageClasses
from pgkeep.repository.write_protection import may_delete, may_replace
from pgkeep.units import utc_now
from pgkeep.verify import VerifyRequest, run_verify
from support.buckets import QuickProgram, give_credentials
from support.jobs import backup, running_copy, server_place
from support.seaweed import ADMIN, WRITER, Answer, S3Bucket, SeaweedServer
from support.servers import TEST_SETTINGS, dump_all, sql
from support.simulated_bucket_policy import SimulatedBucketPolicy
from support.wal import WAL_SETTINGS, write_wal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

SECRET = "nobody knows this"


@dataclass
class Host:
    """A database host whose credentials only add; the recovery key is elsewhere."""

    server: ThrowawayServer
    program: QuickProgram
    bucket: S3Bucket
    recovery_key: Path
    backups: list[dict[str, Any]]
    findings: list[dict[str, Any]]

    def intrude(self, method: str, key: str, **options: Any) -> Answer:
        """A request with the host's credentials, by its own way to the server."""
        return self.bucket.request(method, key, identity=WRITER, **options)

    def objects(self) -> dict[str, bytes]:
        """All that is in the bucket, by the owner's own eyes."""
        store = open_store(S3Bucket(self.bucket.server, self.bucket.name).url)
        return {info.name: store.get(info.name) for info in store.list("")}


@pytest.fixture(scope="module")
def host(binaries_of: Callable[[int], ServerBinaries], work_root: Path, s3_server: SeaweedServer) -> Iterator[Host]:
    """Set up in sealed mode, backed up in full and by increments, its WAL pushed: with these credentials alone."""
    bucket = s3_server.make_bucket()
    bucket.deny_deletion()
    settings = {**TEST_SETTINGS, **WAL_SETTINGS, "summarize_wal": True}
    with (
        ThrowawayServer(binaries_of(18), parent=work_root) as server,
        SimulatedBucketPolicy(s3_server.port) as proxy,
    ):
        server.initdb(wal_segment_size=1)
        server.start(settings)
        sql(server.dsn(), f"CREATE TABLE t AS SELECT i, '{SECRET} ' || i AS word FROM generate_series(1, 20000) i")
        place = server_place(server.directory / "etc")
        credentials = give_credentials(s3_server, place)
        way = copy.copy(s3_server)
        way.endpoint = proxy.endpoint
        url = bucket.url_at(proxy.endpoint, credentials_file=str(credentials), profile="writer")
        program = QuickProgram(place, server.dsn(), url)
        made = program.succeed("init", server.dsn(), "--name", "auth", "--repository", url, "--sealed", "--yes")
        recovery_key = server.directory / "elsewhere.key"
        recovery_key.write_text(made["repositories"][0]["recovery_key"])
        config = program.config.read_text().replace("[repository.auth]\n", "[repository.auth]\nappend_only = true\n")
        program.config.write_text(config)
        backups = program.succeed("backup")["backups"]
        sql(server.dsn(), "UPDATE t SET word = 'new ' || i WHERE i % 500 = 0")
        backups += program.succeed("backup")["backups"]
        last = write_wal(server.dsn(), 0.1)
        sql(server.dsn(), "SELECT pg_switch_wal()")
        segment = segment_name(1, segment_start(last - 1, 1 << 20), 1 << 20)
        program.succeed("wal", "push", server.data_directory / "pg_wal" / segment)
        yield Host(server, program, S3Bucket(way, bucket.name), recovery_key, backups, made["findings"])


def test_backups_wal_and_reads_work_with_credentials_that_only_add(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    full, incremental = host.backups

    assert (full["kind"], incremental["kind"]) == ("full", "incremental")
    assert [found["id"] for found in host.program.succeed("list")["backups"]] == [full["id"], incremental["id"]]
    assert any("/wal/" in name for name in host.objects())
    scrubbed = host.program.succeed("verify", "--scrub")
    content = host.program.succeed("verify", "--content", "--key-file", host.recovery_key)
    assert scrubbed["damage"] == content["damage"] == []
    store = open_store(host.program.url)
    assert (may_delete(store), may_replace(store)) == (False, False)


def test_check_says_that_they_only_add(host: Host) -> None:
    _, checked = host.program.run("check")

    found = next(finding for finding in checked["findings"] if finding["name"] == "protection of auth")
    said = "these credentials can add objects, and neither delete nor replace them"
    assert (found["status"], found["message"]) == ("ok", said)


def test_check_warns_of_credentials_that_can_do_more(host: Host, s3_server: SeaweedServer) -> None:
    from pgkeep.checks import _append_only

    store = open_store(s3_server.make_bucket().url)
    repository = Repository.create(store, KeyFile.new())

    found: Finding = _append_only("protection", repository)

    assert found.status == "warning"
    assert "can delete and replace objects" in found.message


def test_what_was_stored_restores(host: Host, binaries_of: Callable[[int], ServerBinaries], work_dir: Path) -> None:
    target = server_place(work_dir / "restored") / "data"

    host.program.succeed("restore", "latest", "--target-dir", target, "--key-file", host.recovery_key)

    with running_copy(target, binaries_of(18)) as restored:
        assert dump_all(restored) == dump_all(host.server)


def test_jobs_that_end_and_jobs_that_die_leave_no_live_lease(host: Host) -> None:
    """Their records stay, ended, until somebody comes who can delete."""
    store = open_store(host.program.url)
    assert running(store) == []
    with Lease(store, "backup of auth"):
        assert running(store) == ["backup of auth"]
    dying = host.program.start("backup", "--rate", "200kB")
    while not running(store):
        assert dying.poll() is None, dying.communicate()
    dying.kill()
    dying.communicate()
    assert running(store) == []

    with Lease(store, "backup of auth") as lease:
        assert lease.took_over or running(store) == ["backup of auth"]

    names = [info.name for info in store.list("leases/")]
    assert sum(name.endswith(".ended") for name in names) >= 3
    owner = open_store(S3Bucket(host.bucket.server, host.bucket.name).url_at(host.bucket.server.endpoint))
    # SeaweedFS's denials bind its administrator too
    assert host.bucket.request("DELETE", "", query={"policy": ""}).status == 204
    try:
        with Lease(owner, "backup of auth"):
            assert running(owner) == ["backup of auth"]
        assert list(owner.list("leases/")) == []
    finally:
        host.bucket.deny_deletion()


def test_an_intruder_deletes_and_replaces_nothing(host: Host) -> None:
    """With the host's credentials and his own hands: by one, by many, by copies, by parts, by rules of the bucket."""
    before = host.objects()
    assert {"packs", "clusters", "index", "keys"} <= {name.split("/")[0] for name in before}
    kinds = {name.split("/")[0]: name for name in before}

    for name in kinds.values():
        key = f"auth/{name}"
        source = {"x-amz-copy-source": f"/{host.bucket.name}/auth/pgkeep.json", "x-amz-metadata-directive": "REPLACE"}
        answers = {
            "delete": host.intrude("DELETE", key).status,
            "replace": host.intrude("PUT", key, body=b"his").status,
            "replace, on condition that it is there": host.intrude(
                "PUT", key, body=b"his", headers={"if-match": "*"}
            ).status,
            "put where there is one": host.intrude("PUT", key, body=b"his", headers={"if-none-match": "*"}).status,
            "copy over it": host.intrude("PUT", key, headers=source).status,
            "upload in parts": host.intrude("POST", key, query={"uploads": ""}).status,
        }
        assert answers == {
            "delete": 403,
            "replace": 403,
            "replace, on condition that it is there": 403,
            "put where there is one": 412,
            "copy over it": 403,
            "upload in parts": 403,
        }, name
    many = "".join(f"<Object><Key>auth/{name}</Key></Object>" for name in before)
    answer = host.intrude("POST", "", query={"delete": ""}, body=f"<Delete>{many}</Delete>".encode())
    assert answer.body.count(b"AccessDenied") == len(before)
    assert b"<Deleted>" not in answer.body
    for query in ("policy", "lifecycle"):
        assert host.intrude("PUT", "", query={query: ""}, body=b"{}").status == 403, query
        assert host.intrude("DELETE", "", query={query: ""}).status == 403, query
    assert host.intrude("DELETE", "").status == 403
    assert host.objects() == before


def test_an_intruder_reads_nothing_in_sealed_mode(host: Host, work_dir: Path) -> None:
    """He has the host's key too, and every byte of the bucket."""
    for words in (
        ("restore", "--target-dir", work_dir / "his"),
        ("verify", "--content"),
        ("export", "latest", work_dir / "his"),
    ):
        code, document = host.program.run(*words)
        assert code == 7, document
        assert "does not read data or WAL back" in document["error"]["message"]
    config = load_config(host.program.config)
    assert config.repository("auth").append_only
    objects = host.objects()
    assert sum(map(len, objects.values())) > 200_000
    assert not [name for name, data in objects.items() if SECRET.encode() in data]


@dataclass
class Locked:
    """A repository whose objects nobody can delete for 14 days, in a bucket that keeps versions."""

    program: QuickProgram
    repository: Repository
    bucket: S3Bucket

    @property
    def classes(self) -> StorageClasses:
        return StorageClasses(self.repository.store)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def locked(host: Host, work_root: Path, s3_server: SeaweedServer) -> Locked:
    bucket = s3_server.make_bucket(headers={"x-amz-bucket-object-lock-enabled": "true"})
    url = bucket.url_at(s3_server.endpoint, lock="compliance", lock_for="14d")
    program = QuickProgram(work_root / "locked", host.server.dsn(), url)
    program.init()
    repository = Repository.open(open_store(url), KeyFile.read(program.directory / "pgkeep.key"))
    backup(host.server.dsn(), repository, cluster="auth")
    return Locked(program, repository, bucket)


def test_objects_are_locked_from_their_first_moment_for_everybody(locked: Locked) -> None:
    names = [info.name for info in locked.repository.store.list("")]
    kept = [name for name in names if name.startswith(("packs/", "clusters/", "keys/", "index/", "pgkeep.json"))]
    assert {name.split("/")[0] for name in kept} == {"packs", "clusters", "keys", "index", "pgkeep.json"}

    for name in kept:
        state = locked.classes.state(name)
        assert state.lock_mode == "COMPLIANCE"
        assert state.locked_until is not None
        # another test of the same bucket may have made it longer
        assert (state.locked_until - utc_now()).total_seconds() / 86400 > 13.9
        for identity in (WRITER, ADMIN):
            version = {"versionId": str(state.version)}
            assert locked.bucket.request("DELETE", f"auth/{name}", query=version, identity=identity).status == 403
    # leases must be able to go
    assert [info.name for info in locked.repository.store.list("leases/")] == []


def test_a_lock_is_made_longer_for_what_newer_backups_share_and_never_shorter(locked: Locked) -> None:
    name = next(info.name for info in locked.repository.store.list("packs/data/"))
    before = locked.classes.state(name).locked_until
    assert before is not None
    body = (
        '<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Mode>COMPLIANCE</Mode>'
        f"<RetainUntilDate>{format_moment(utc_now() + timedelta(hours=1))}</RetainUntilDate></Retention>"
    ).encode()
    assert locked.bucket.request("PUT", f"auth/{name}", query={"retention": ""}, body=body).status == 403

    # locks end in whole seconds
    time.sleep(1.1)
    backup(locked.program.dsn, locked.repository, cluster="auth")
    dry = locked.program.succeed("repository", "lock", "--dry-run")
    done = locked.program.succeed("repository", "lock")
    again = locked.program.succeed("repository", "lock")

    assert locked.classes.state(name).locked_until is not None
    assert dry["extended"] == done["extended"] > 0
    assert done["objects"] > done["extended"]
    assert (again["extended"], again["missing"]) == (0, [])
    after = locked.classes.state(name).locked_until
    assert after is not None
    assert after > before


def test_what_an_intruder_overwrites_is_found_and_undone(locked: Locked) -> None:
    """Versions keep what was there, and the lock keeps the version."""
    store = locked.repository.store
    name = next(info.name for info in store.list("packs/data/"))
    right = store.get(name)
    assert locked.program.succeed("repository", "undo-overwrites")["objects"] == []

    assert locked.bucket.request("PUT", f"auth/{name}", body=b"his", identity=WRITER).status == 200
    request = VerifyRequest(max_age_seconds=0)
    fresh = open_store(locked.program.url)
    damage = run_verify(request, fresh, locked.repository).damage
    shown = locked.program.succeed("repository", "undo-overwrites", "--dry-run")
    assert open_store(locked.program.url).get(name) == b"his"
    undone = locked.program.succeed("repository", "undo-overwrites")

    assert any(name in str(found) for found in damage)
    assert [each["name"] for each in shown["objects"]] == [each["name"] for each in undone["objects"]] == [name]
    assert open_store(locked.program.url).get(name) == right
    assert locked.classes.state(name).lock_mode == "COMPLIANCE"
    assert run_verify(request, open_store(locked.program.url), locked.repository).damage == []
    assert locked.program.succeed("repository", "undo-overwrites")["objects"] == []


def test_what_is_locked_is_not_moved_to_cold_storage(locked: Locked) -> None:
    """The copy would be a second version, and the first one would be paid for until its lock ends."""
    config = locked.program.config.read_text()
    backup(locked.program.dsn, locked.repository, cluster="auth", label="one more")
    locked.program.config.write_text(config + '[repository.auth.cold]\nafter = "1s"\nclass = "GLACIER_IR"\n')

    report = locked.program.succeed("cold")

    assert report["moved"] == 0
    assert report["locked"] == sum(move["objects"] for move in report["moves"])


def test_check_says_until_when_the_newest_backup_is_locked(locked: Locked) -> None:
    _, checked = locked.program.run("check")

    found = next(finding for finding in checked["findings"] if finding["name"] == "protection of auth")
    assert (found["status"], "is locked until" in found["message"]) == ("ok", True), found
