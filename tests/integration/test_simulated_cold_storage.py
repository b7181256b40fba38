"""Cold storage end to end: a real cluster, real objects in a real bucket, and an archive that is simulated (`SimulatedGlacier`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.cold.needs import packs_of
from pgkeep.errors import StoreError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.cold_records import read_cold
from pgkeep.repository.contents import Parameters
from pgkeep.repository.leases import Lease
from pgkeep.repository.storage_classes import StorageClasses
from pgkeep.repository.store import ObjectArchived
from support.buckets import QuickProgram
from support.fault_proxy import Fault
from support.jobs import backup, running_copy, server_place
from support.servers import TEST_SETTINGS, dump_all, sql
from support.simulated_glacier import SimulatedGlacier
from support.wal import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgkeep.postgres.binaries import ServerBinaries
    from support.fault_proxy import Message
    from support.seaweed import S3Bucket, SeaweedServer

RULE = '[repository.auth.cold]\nafter = "1s"\nclass = "GLACIER"\n'


class Vault:
    """A bucket behind a simulated archive, with an old backup and a new one that share the catalogs and nothing large."""

    def __init__(self, directory: Path, server: ThrowawayServer, bucket: S3Bucket, glacier: SimulatedGlacier) -> None:
        self.server, self.glacier = server, glacier
        self.program = QuickProgram(directory, server.dsn(), bucket.url_at(glacier.endpoint, retry_for="20s"))
        key = directory / "pgkeep.key"
        directory.mkdir()
        small = Parameters(cell_size=64 << 10, pack_size=256 << 10)
        self.repository = Repository.create(open_store(self.program.url), KeyFile.generate(key), small)
        self.configure(RULE)
        sql(
            server.dsn(),
            "DROP TABLE IF EXISTS accounts;"
            "CREATE TABLE accounts AS SELECT i, gen_random_uuid()::text || gen_random_uuid()::text AS secret"
            " FROM generate_series(1, 30000) i",
        )
        self.old = backup(server.dsn(), self.repository, cluster="auth").id
        self.old_rows = dump_all(server)
        sql(server.dsn(), "UPDATE accounts SET secret = gen_random_uuid()::text || gen_random_uuid()::text")
        self.new = backup(server.dsn(), self.repository, cluster="auth").id

    def configure(self, cold: str, cluster: str = "") -> None:
        """Write the configuration."""
        key = self.program.directory / "pgkeep.key"
        self.program.config.write_text(
            f'[repository.auth]\nurl = "{self.program.url}"\nkey = "file:{key}"\n{cold}'
            f'[cluster.auth]\ndsn = "{self.server.dsn()}"\nrepositories = ["auth"]\n{cluster}\n'
        )

    def packs(self, backup: str) -> set[str]:
        """What a backup needs."""
        fresh = Repository.open(open_store(self.program.url), KeyFile.read(self.program.directory / "pgkeep.key"))
        return packs_of(fresh, fresh.catalog.find(backup))

    def archive(self) -> dict[str, Any]:
        """Move what the rule says."""
        # the rule's second, by the clock of whole seconds that backups have
        time.sleep(1.1)
        return self.program.succeed("cold")


@pytest.fixture(scope="module")
def origin(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.start({**TEST_SETTINGS, "full_page_writes": False})
        yield server


@pytest.fixture(scope="module")
def hot(origin: ThrowawayServer, work_root: Path, s3_server: SeaweedServer) -> Iterator[Vault]:
    """One of which nothing moves."""
    with SimulatedGlacier(s3_server.port) as glacier:
        yield Vault(work_root / "hot-vault", origin, s3_server.make_bucket(), glacier)


@pytest.fixture(scope="module")
def settled(origin: ThrowawayServer, work_root: Path, s3_server: SeaweedServer) -> Iterator[Vault]:
    """One whose old backup has moved."""
    with SimulatedGlacier(s3_server.port) as glacier:
        vault = Vault(work_root / "settled-vault", origin, s3_server.make_bucket(), glacier)
        assert vault.archive()["moved"] >= 3
        yield vault


@pytest.fixture
def vault(origin: ThrowawayServer, work_dir: Path, s3_server: SeaweedServer, s3_bucket: S3Bucket) -> Iterator[Vault]:
    with SimulatedGlacier(s3_server.port) as glacier:
        yield Vault(work_dir / "vault", origin, s3_bucket, glacier)


def test_old_backups_move_are_refused_with_what_they_need_thawed_and_restored(
    vault: Vault, work_dir: Path, binaries_of: Callable[[int], ServerBinaries]
) -> None:
    """The whole way, with a thaw that is killed in its middle and run again: nothing is asked for twice."""
    old, program, glacier = vault.old, vault.program, vault.glacier
    expected = vault.packs(old) - vault.packs(vault.new)

    planned = program.succeed("cold", "--dry-run")
    assert glacier.archived() == set()
    moved = vault.archive()

    gone = glacier.archived()
    assert gone <= expected
    assert {name.split("/")[1] for name in gone} == {"data"}
    assert moved["moved"] == len(gone) == planned["moves"][0]["objects"] >= 3
    assert moved["complete"]
    assert read_cold(vault.repository.store).archived == gone
    assert program.succeed("cold")["moved"] == 0

    # what is left hot is all that listings, the newest backup and the next one take
    assert [found["id"] for found in program.succeed("list")["backups"]] == [old, vault.new]
    assert program.succeed("restore", vault.new, "--target-dir", work_dir / "new", "--plan")

    target = server_place(work_dir / "restored") / "data"
    code, refused = program.run("restore", old, "--target-dir", target)
    assert code == 9
    assert not target.exists()
    error = refused["error"]
    assert f"{len(gone)} objects in GLACIER" in error["message"]
    assert "must be thawed first" in error["message"]
    assert error["hint"].startswith(f"pgkeep thaw {old} --wait")
    assert "Standard (GLACIER): 5 h 0 min" in error["hint"]

    asked = program.succeed("thaw", old, "--dry-run")
    assert glacier.restore_requests == []
    assert asked["need"]["bytes"] == sum(vault.repository.store.info(name).size for name in gone)
    assert {tier["tier"] for tier in asked["need"]["tiers"]} == {"Expedited", "Standard", "Bulk"}

    kill_in_the_middle(vault)
    before = len(glacier.restore_requests)
    assert before == 2

    waiting = program.start("thaw", old, "--wait", "--tier", "bulk", "--days", "3", "--poll", "0.1")
    until(lambda: len(glacier.restore_requests) == len(gone), "all asked for")
    code, refused = program.run("restore", old, "--target-dir", target)
    assert code == 9
    assert f"{len(gone)} of them are being thawed" in refused["error"]["message"]
    assert waiting.poll() is None
    glacier.deliver()
    output, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, output + errors

    assert {request.key.partition("/auth/")[2] for request in glacier.restore_requests} == gone
    assert len(glacier.restore_requests) == len(gone)
    assert {(request.tier, request.days) for request in glacier.restore_requests[before:]} == {("Bulk", 3)}
    assert program.succeed("thaw", old)["requested"] == 0
    restored = program.succeed("restore", old, "--target-dir", target)
    assert any("were thawed for it and freeze again" in note for note in restored["plan"]["notes"]), restored["plan"]
    with running_copy(target, binaries_of(17)) as copy:
        assert dump_all(copy) == vault.old_rows


def kill_in_the_middle(vault: Vault) -> None:
    """``kill -9`` of a thaw of which two requests got through, and the others hang."""
    glacier = vault.glacier
    glacier.silent_after = 2
    process = vault.program.start("thaw", vault.old)
    until(lambda: glacier.waiting and len(glacier.restore_requests) == 2, "a request that hangs")
    process.kill()
    process.communicate()
    glacier.silent_after = None


@pytest.mark.deletes
def test_a_move_that_is_killed_is_finished_by_the_next_one(vault: Vault) -> None:
    """The record comes first, so that nobody takes for hot what may be cold by now; moving again costs nothing for what is there."""
    copies = [0]

    def plan(message: Message) -> Fault:
        if message.header("x-amz-copy-source") is None:
            return Fault.NONE
        copies[0] += 1
        return Fault.NONE if copies[0] <= 2 else Fault.SILENCE

    time.sleep(1.1)
    vault.glacier.plan = plan
    process = vault.program.start("cold")
    until(lambda: copies[0] > 2 and len(vault.glacier.archived()) == 2, "the third copy")
    process.kill()
    process.communicate()
    vault.glacier.plan = None

    half = vault.glacier.archived()
    assert half < read_cold(vault.repository.store).archived
    code, refused = vault.program.run("restore", vault.old, "--target-dir", vault.program.directory / "copy")
    assert (code, "2 objects in GLACIER" in refused["error"]["message"]) == (9, True), refused

    report = vault.program.succeed("cold")
    assert report["complete"]
    assert vault.glacier.archived() > half
    records = read_cold(vault.repository.store)
    assert records.archived == vault.glacier.archived()
    assert len(records.records) == 1


def test_verify_passes_over_what_must_be_thawed_and_says_so(settled: Vault, work_dir: Path) -> None:
    scrubbed = settled.program.succeed("verify", "--scrub")
    content = settled.program.succeed("verify", "--content")
    code, named = settled.program.run("verify", settled.old, "--content")
    exported, said = settled.program.run("export", settled.old, work_dir / "export")

    assert scrubbed["damage"] == content["damage"] == []
    assert scrubbed["cold_objects"] == len(settled.glacier.archived())
    assert content["cold"] == [settled.old]
    assert (code, exported) == (9, 9)
    assert "cannot be read to verify it" in named["error"]["message"]
    assert "cannot be read to export it" in said["error"]["message"]


def test_a_random_drill_passes_over_what_must_be_thawed_and_one_that_names_it_is_refused(
    settled: Vault, work_dir: Path
) -> None:
    drills = server_place(work_dir / "drills")
    settled.configure(RULE, f'drill = {{ directory = "{drills}", checks = ["tables"] }}')
    record = settled.program.succeed("drill", "--random", "--seed", "1")
    code, refused = settled.program.run("drill", "--backup", settled.old, "--immediate")

    assert (record["state"], record["backup"]) == ("passed", settled.new)
    assert f"backup {settled.old} was passed over: it must be thawed before it can be restored" in record["notes"]
    assert code == 9
    assert "must be thawed first" in refused["cause"]
    assert "pgkeep thaw" in refused["remedy"]


def test_the_next_backup_rests_on_nothing_that_is_archived(settled: Vault) -> None:
    sql(settled.server.dsn(), "CREATE TABLE IF NOT EXISTS more AS SELECT 1 AS i")

    taken = settled.program.succeed("backup")["backups"][0]["id"]

    assert settled.packs(taken).isdisjoint(settled.glacier.archived())


def test_rules_that_break_the_objective_are_refused_before_anything_moves(hot: Vault) -> None:
    hot.configure(
        '[repository.auth.cold]\nafter = "1s"\nclass = "DEEP_ARCHIVE"\n',
        'objectives = { rto = "1h", rto_span = "30d" }',
    )
    time.sleep(1.1)

    code, document = hot.program.run("cold")
    _, check = hot.program.run("check")

    assert code == 3
    assert "cluster auth must be back within 1 h 0 min for 30 d 0 h" in document["error"]["message"]
    assert hot.glacier.archived() == set()
    finding = next(finding for finding in check["findings"] if finding["name"] == "cold storage of auth")
    assert finding["status"] == "failed"
    assert "break an objective" in finding["message"]


def test_what_retention_lets_go_before_its_class_is_paid_for_stays(hot: Vault) -> None:
    """GLACIER charges for 90 days; a window of 30 keeps the old backup for no more than that."""
    retention = '[repository.auth.retention]\nwindow = "30d"\n'
    hot.configure(retention + RULE)

    time.sleep(1.1)

    short = hot.program.succeed("cold", "--dry-run")
    hot.configure(retention.replace("30d", "200d") + RULE)
    lasting = hot.program.succeed("cold", "--dry-run")

    assert short["moves"][0]["objects"] == 0
    assert any("expire before the 90 days that GLACIER charges for" in stay["reason"] for stay in short["stays"])
    assert lasting["moves"][0]["objects"] >= 3


def test_the_users_prices_are_what_a_refusal_says(settled: Vault, work_dir: Path) -> None:
    settled.configure(RULE + "tiers.GLACIER.Standard = { hours = 3, per_1000 = 10000 }\n")
    count = len(settled.glacier.archived())

    code, refused = settled.program.run("restore", settled.old, "--target-dir", work_dir / "copy", "--plan")

    assert code == 9
    assert f"Standard (GLACIER): 3 h 0 min, about ${10 * count}." in refused["error"]["hint"]


def test_a_running_backup_goes_first(hot: Vault) -> None:
    time.sleep(1.1)
    hot.configure(RULE)
    with Lease(hot.repository.store, "backup of auth"):
        report = hot.program.succeed("cold")

    assert (report["complete"], report["moved"]) == (False, 0)
    assert report["notes"] == ["a backup began, and goes first: run it again to move the rest"]


def test_what_somebody_else_archived_is_named_by_the_read_itself(hot: Vault) -> None:
    """A lifecycle rule of the bucket leaves no record of pgkeep's; nothing is tried again in vain."""
    store = hot.repository.store
    classes = StorageClasses(store)  # type: ignore[arg-type]
    pack = "tmp/lifecycle"
    store.put(pack, [b"data"])
    classes.change(pack, "DEEP_ARCHIVE")
    begun = time.monotonic()

    with pytest.raises(ObjectArchived, match=pack):
        open_store(store.url).get(pack)
    assert time.monotonic() - begun < 5
    with pytest.raises(StoreError, match="archive"):
        classes.change(pack, "STANDARD_IA")
    state = classes.state(pack)
    assert (state.storage_class, state.is_archived, state.thawing) == ("DEEP_ARCHIVE", True, False)
    classes.thaw(pack, "Bulk", 1)
    classes.thaw(pack, "Bulk", 1)
    assert classes.state(pack).thawing
    hot.glacier.deliver()
    assert classes.state(pack).thawed_until is not None
    assert classes.is_readable(pack)
    store.delete(pack)
