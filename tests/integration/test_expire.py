"""What a real server's backups and WAL are worth after an expiry: all that is kept restores, to every moment that is promised."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeep.backup.incremental import BackupPlan, plan_backup
from pgkeep.policy import ExpireRequest, Rules, run_expire
from pgkeep.postgres.server import Server
from pgkeep.repository.manifests import BackupName, Manifest
from pgkeep.units import utc_now
from support.buckets import BucketProgram
from support.jobs import backup, restore, running_copy
from support.servers import sql
from support.stored_wal import store_wal
from support.wal import write_wal

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.postgres.server import ThrowawayServer
    from pgkeep.repository import Repository
    from support.seaweed import S3Bucket
    from support.servers import MakeServer

pytestmark = pytest.mark.deletes


SETTINGS: dict[str, str | int | bool] = {
    "wal_keep_size": "1GB",
    "max_wal_size": "2GB",
    "track_commit_timestamp": True,
    "summarize_wal": True,
    "autovacuum": False,
}
NO_GRACE = timedelta(0)


@dataclass
class Story:
    """A server whose table grows by a word in each transaction, and its backups."""

    server: ThrowawayServer
    program: BucketProgram
    repository: Repository
    manifests: list[Manifest] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)

    def write(self) -> None:
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            ((xid,),) = connection.execute(
                "INSERT INTO words VALUES (%s) RETURNING pg_current_xact_id()::xid::text", [str(len(self.times))]
            ).fetchall()
            ((moment,),) = connection.execute("SELECT pg_xact_commit_timestamp(%s::xid)", [xid]).fetchall()
        self.times.append(moment.astimezone(UTC))

    def back_up(self) -> None:
        self.manifests.append(backup(self.server.dsn(), self.repository, cluster="auth"))

    def words_at(self, moment: datetime) -> int:
        return sum(time_ <= moment for time_ in self.times)

    def words_of(self, manifest: Manifest, place: Path) -> int:
        """What a backup holds by itself, recovered by the WAL that is kept for it alone."""
        restore(self.repository, place, backup=manifest.id)
        with running_copy(place, self.server.binaries) as copy:
            found: int = sql(copy.dsn(), "SELECT count(*) FROM words")[0][0]
            return found

    def words_after_restore_to(self, moment: datetime, place: Path) -> int:
        document = self.program.succeed("restore", "--target-dir", place, "--to", moment.isoformat(), "--start")
        copy = Server(place, self.server.binaries)
        try:
            found: int = sql(document["recovery"]["dsn"], "SELECT count(*) FROM words")[0][0]
            return found
        finally:
            copy.stop()


@pytest.fixture(params=["directory", "bucket"])
def story(request: pytest.FixtureRequest, make_server: MakeServer, work_dir: Path) -> Story:
    """Five backups, one full, the others incremental, a second or so apart, with words and WAL between them."""
    server = make_server(17, wal_segment_size=1, settings=SETTINGS)
    if request.param == "bucket":
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        url = bucket.url
    else:
        url = f"file://{work_dir}/repository"
    program = BucketProgram(work_dir / "setup", server.dsn(), url)
    sql(server.dsn(), "CREATE TABLE words (word text)")
    made = Story(server, program, program.prepare().repository("auth"))
    for _ in range(5):
        made.back_up()
        for _ in range(3):
            made.write()
            # times in buckets are in whole seconds
            time.sleep(0.4)
        write_wal(server.dsn(), 1.5)
        sql(server.dsn(), "SELECT pg_switch_wal()")
    store_wal(server, made.repository)
    assert [manifest.kind for manifest in made.manifests] == ["full"] + ["incremental"] * 4
    return made


def expire(story: Story, since: datetime, **options: object) -> list[str]:
    """Keep every moment since then; the ids that went."""
    now = utc_now() + timedelta(seconds=2)
    rules = Rules(window=now - since, grace=NO_GRACE)
    (report,) = run_expire(ExpireRequest(rules=rules, now=now, **options), story.repository)  # type: ignore[arg-type]
    assert report.wal_objects > 0
    return report.backups


def test_after_an_expiry_all_that_is_kept_restores(story: Story, work_dir: Path) -> None:
    pinned, goes, begins, *later = story.manifests
    story.repository.pins.add(BackupName(pinned.id, pinned.system_identifier), "case 4711", None)
    since = story.times[8]
    before = len(list(story.repository.wal(pinned.system_identifier).names()))

    assert expire(story, since) == [goes.id]

    listed = story.program.succeed("list")["backups"]
    assert [found["id"] for found in listed] == [pinned.id, begins.id, *(manifest.id for manifest in later)]
    assert [pin["reason"] for found in listed for pin in found["pins"]] == ["case 4711"]
    assert story.program.succeed("verify")["damage"] == []
    assert len(list(story.repository.wal(pinned.system_identifier).names())) < before
    assert story.words_of(pinned, work_dir / "pinned") == 0
    assert story.words_of(later[-1], work_dir / "last") == 12
    chance = random.Random(20261123)
    moment = since + (story.times[-1] - since) * chance.random()
    assert story.words_after_restore_to(moment, work_dir / "moment") == story.words_at(moment)
    assert story.words_after_restore_to(since, work_dir / "since") == story.words_at(since)


def test_an_incremental_backup_outlives_the_parent_that_expires_under_it(
    make_server: MakeServer, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maps are its own, and contents stay until a collector finds them without a backup, which has a grace of its own."""
    server = make_server(17, wal_segment_size=1, settings=SETTINGS)
    program = BucketProgram(work_dir / "setup", server.dsn(), f"file://{work_dir}/repository")
    story = Story(server, program, program.prepare().repository("auth"))
    sql(server.dsn(), "CREATE TABLE words (word text)")
    for _ in range(2):
        story.back_up()
        story.write()
        write_wal(server.dsn(), 1.5)
        sql(server.dsn(), "SELECT pg_switch_wal()")
    parent = story.manifests[1]
    plans: list[BackupPlan] = []

    def plan_and_expire(*arguments: object, **options: object) -> BackupPlan:
        """The parent goes right after it was chosen."""
        plans.append(plan_backup(*arguments, **options))  # type: ignore[arg-type]
        run_expire(ExpireRequest(rules=None, remove=[parent.id], now=utc_now()), story.repository)
        return plans[-1]

    monkeypatch.setattr("pgkeep.backup.job.plan_backup", plan_and_expire)
    story.back_up()

    assert plans[0].parent is not None
    assert story.manifests[2].parent == parent.id
    assert [name.id for name in story.repository.catalog.names()] == [story.manifests[0].id, story.manifests[2].id]
    assert program.succeed("verify")["damage"] == []
    assert story.words_of(story.manifests[2], work_dir / "copy") == 2


@pytest.mark.parametrize("story", ["directory"], indirect=True)
def test_the_command_draws_the_line_asks_no_program_and_says_what_went(story: Story) -> None:
    with story.program.config.open("a") as file:
        file.write('[repository.auth.retention]\nminimum = 2\ngrace = "0s"\n')
    dry = story.program.succeed("expire", "--dry-run")["repositories"][0]["clusters"][0]
    assert [found["id"] for found in dry["backups"] if found["goes"]] == [m.id for m in story.manifests[:3]]
    assert dry["removed"] is None
    assert dry["wal"]["objects"] > 0
    assert len(story.program.succeed("list")["backups"]) == 5

    pinned = story.program.succeed("pin", story.manifests[0].id, "--reason", "case 4711", "--for", "7y")
    assert pinned["until"] > f"{utc_now().year + 6}"
    done = story.program.succeed("expire", "--yes")["repositories"][0]["clusters"][0]
    assert done["removed"]["backups"] == [m.id for m in story.manifests[1:3]]
    assert done["removed"]["wal_objects"] > 0
    status = story.program.run("wal", "status")[1]
    assert len(status["repositories"][0]["timelines"][0]["gaps"]) >= 1
    assert not [finding for finding in status["findings"] if finding["name"].startswith("gap")]
    assert story.program.succeed("status")["repositories"][0]["backups"] == 3
    story.program.succeed("unpin", story.manifests[0].id)
    assert story.program.run("unpin", story.manifests[0].id)[0] == 11
    again = story.program.succeed("expire")["repositories"][0]["clusters"][0]
    assert again["removed"]["backups"] == [story.manifests[0].id]
    findings = {finding["message"] for finding in story.program.run("check")[1]["findings"]}
    assert any("without a window only moments since the newest backup" in message for message in findings)
