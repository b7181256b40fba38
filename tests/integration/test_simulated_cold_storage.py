"""Backups in cold storage: moved by rule, thawed, restored. The S3 server is real; its storage classes are simulated (support.simulated_glacier)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pgkeep.repository.parameters import Parameters
from support.buckets import BucketProgram
from support.servers import sql
from support.simulated_glacier import SimulatedGlacier

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.postgres.server import ThrowawayServer
    from support.fault_proxy import FaultProxy
    from support.seaweed import S3Bucket
    from support.servers import MakeServer

COLD = '[repository.auth.cold]\nafter = "1s"\nclass = "GLACIER"\n[repository.auth.cold.tiers.GLACIER]\nbulk = { hours = 20 }\n'


@dataclass
class Archive:
    """A cluster whose first of two backups is old enough to move."""

    server: ThrowawayServer
    program: BucketProgram
    glacier: SimulatedGlacier
    old: str
    new: str

    def restore(self, backup: str, target: Path) -> tuple[int, dict[str, object]]:
        code, document = self.program.run("restore", backup, "--target-dir", target, "--immediate")
        return code, document


@pytest.fixture
def archive(make_server: MakeServer, work_dir: Path, s3_bucket: S3Bucket, fault_proxy: FaultProxy) -> Archive:
    server = make_server(17, settings={"autovacuum": False})
    glacier = SimulatedGlacier(fault_proxy)
    program = BucketProgram(work_dir / "setup", server.dsn(), s3_bucket.url_at(fault_proxy.endpoint))
    program.prepare(Parameters(pack_size=256 << 10))
    program.config.write_text(program.config.read_text() + COLD)
    sql(server.dsn(), "CREATE TABLE words AS SELECT i, md5(i::text) AS word FROM generate_series(1, 120000) AS i")
    old = program.succeed("backup")["backups"][0]["id"]
    sql(server.dsn(), "UPDATE words SET word = md5(word)")
    sql(server.dsn(), "VACUUM FULL words")
    new = program.succeed("backup", "--full")["backups"][0]["id"]
    time.sleep(1.2)
    return Archive(server, program, glacier, old, new)


def test_what_only_old_backups_need_moves_and_comes_back_by_a_thaw(archive: Archive, work_dir: Path) -> None:
    program, glacier = archive.program, archive.glacier

    planned = program.succeed("cold", "--dry-run")
    assert glacier.classes == {}
    moved = program.succeed("cold")
    again = program.succeed("cold")

    assert planned["moves"][0]["objects"] == moved["moved"] > 0
    assert again["moved"] == 0
    assert {key.split("/")[4] for key in glacier.classes if "/packs/" in key} <= {"data"}, "metadata stays hot"
    assert archive.restore(archive.new, work_dir / "new")[0] == 0, "what the newest backup needs is where it was"

    code, refused = archive.restore(archive.old, work_dir / "old")
    assert code != 0
    assert "must be thawed first" in str(refused["error"])
    assert "Bulk (GLACIER): 20 h" in str(refused["error"]), (
        "the hint has the choices, as the configuration corrects them"
    )
    assert glacier.counts["refused"] == 0, "found out without a try"
    assert not (work_dir / "old").exists()

    dry = program.succeed("thaw", archive.old, "--dry-run", "--tier", "Bulk")
    assert glacier.asked == {}
    assert dry["need"]["objects"] > 0
    asked = program.succeed("thaw", archive.old, "--tier", "Bulk")
    assert set(glacier.asked.values()) == {"Bulk"}
    assert asked["requested"] == len(glacier.asked) == dry["need"]["objects"]
    assert program.succeed("thaw", archive.old, "--tier", "Bulk")["requested"] == 0, "asked for once"
    assert archive.restore(archive.old, work_dir / "old")[0] != 0
    glacier.thaw()
    done = program.succeed("thaw", archive.old, "--wait")

    assert done["left"] == 0
    assert archive.restore(archive.old, work_dir / "old")[0] == 0
    assert (work_dir / "old" / "PG_VERSION").exists()


def test_a_thaw_that_waits_can_be_killed_and_goes_on(archive: Archive, work_dir: Path) -> None:
    program, glacier = archive.program, archive.glacier
    program.succeed("cold")
    waiting = program.start("thaw", archive.old, "--wait", "--poll", "0.1")
    until = time.monotonic() + 30
    while not glacier.asked and time.monotonic() < until:
        time.sleep(0.05)
    glacier.thaw(most=1)
    waiting.kill()
    waiting.communicate()
    before = dict(glacier.asked)

    resumed = program.start("thaw", archive.old, "--wait", "--poll", "0.1")
    time.sleep(1)
    assert resumed.poll() is None, "it waits for the rest"
    glacier.thaw()
    resumed.communicate(timeout=30)
    assert resumed.returncode == 0
    assert glacier.asked == before
    assert archive.restore(archive.old, work_dir / "old")[0] == 0


def test_new_backups_rest_on_nothing_that_must_be_thawed(archive: Archive, work_dir: Path) -> None:
    """A table as it was in the old backup is stored again."""
    program = archive.program
    program.succeed("cold")
    sql(archive.server.dsn(), "DROP TABLE words")
    sql(
        archive.server.dsn(),
        "CREATE TABLE words AS SELECT i, md5(i::text) AS word FROM generate_series(1, 120000) AS i",
    )

    newest = program.succeed("backup", "--full")["backups"][0]["id"]

    assert archive.restore(newest, work_dir / "newest")[0] == 0
    assert archive.glacier.counts["refused"] == 0


def test_verify_passes_over_what_is_frozen_and_says_so(archive: Archive) -> None:
    archive.program.succeed("cold")

    document = archive.program.succeed("verify")

    assert document["damage"] == []


def test_a_rule_that_would_break_the_objective_is_refused(archive: Archive) -> None:
    config = archive.program.config
    text = config.read_text()
    text = text.replace('class = "GLACIER"', 'class = "DEEP_ARCHIVE"')
    config.write_text(
        text.replace("[cluster.auth]\n", '[cluster.auth]\nobjectives = { rto = "15min", rto_span = "7d" }\n')
    )

    code, document = archive.program.run("cold")

    assert code != 0
    assert "break an objective" in str(document["error"])
    assert "cluster auth must be back within 15 min" in str(document["error"])
    assert archive.glacier.classes == {}


def test_what_would_expire_before_it_is_paid_for_stays(archive: Archive) -> None:
    config = archive.program.config
    config.write_text(config.read_text() + '[repository.auth.retention]\nwindow = "14d"\n')

    plan = archive.program.succeed("cold", "--dry-run")

    assert plan["moves"][0]["objects"] == 0
    assert any("expire before" in stay["reason"] for stay in plan["stays"])
