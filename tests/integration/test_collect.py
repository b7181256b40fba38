"""Space that comes free, in a directory and in a bucket, and what a real server's backups are worth afterwards."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.backup.incremental import plan_backup
from pgkeep.collection import CollectReport, CollectRequest, run_collect
from pgkeep.repository import Repository, open_store
from pgkeep.repository.doomed import read_tombstones
from support.buckets import BucketProgram
from support.jobs import KEY, backup, new_repository
from support.servers import sql
from support.tiny_backups import contents_of, remove_backup

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.backup.incremental import BackupPlan
    from support.seaweed import S3Bucket
    from support.servers import MakeServer

pytestmark = pytest.mark.deletes


@pytest.mark.parametrize("where", ["directory", "bucket"])
def test_after_expiry_two_runs_free_the_space_and_every_backup_restores(
    where: str, make_server: MakeServer, work_dir: Path, s3_bucket: S3Bucket
) -> None:
    server = make_server(17, settings={"summarize_wal": True, "autovacuum": False})
    url = f"file://{work_dir}/repository" if where == "directory" else s3_bucket.url
    program = BucketProgram(work_dir / "setup", server.dsn(), url)
    repository: Repository = program.prepare().repository("auth")
    text = program.config.read_text()
    program.config.write_text(text + '[repository.auth.collection]\ngrace = "0s"\nlive_share = 0.95\n')
    sql(server.dsn(), "CREATE TABLE words AS SELECT i, md5(i::text) AS word FROM generate_series(1, 20000) AS i")
    first = program.succeed("backup")["backups"][0]["id"]
    sql(server.dsn(), "UPDATE words SET word = md5(word)")
    sql(server.dsn(), "VACUUM FULL words")
    second = program.succeed("backup")["backups"][0]["id"]
    program.succeed("expire", "--backup", first, "--yes")
    size = _size(repository)

    (planned,) = program.succeed("collect", "--dry-run")["repositories"]
    (marked,) = program.succeed("collect")["repositories"]
    (deleted,) = program.succeed("collect")["repositories"]

    assert planned["doomed"] + planned["repacked"] > 0
    assert (marked["deleted"], marked["refused"]) == (0, [])
    assert deleted["deleted_size"] > 0
    assert _size(repository) < size
    assert program.succeed("verify")["damage"] == []
    sql(server.dsn(), "UPDATE words SET word = 'new' WHERE i % 100 = 0")
    third = program.succeed("backup")["backups"][0]["id"]
    for number, each in enumerate((second, third)):
        target = work_dir / f"restored-{number}"
        program.succeed("restore", each, "--target-dir", target, "--immediate")
        assert (target / "PG_VERSION").exists()
    assert program.succeed("verify")["damage"] == []


def test_a_backup_spares_what_was_doomed_after_it_had_chosen_its_parent(
    make_server: MakeServer, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent may have gone by then, and what that alone needed is the new backup's."""
    server = make_server(17, settings={"summarize_wal": True})
    repository = new_repository(work_dir / "repository")
    parent = backup(server.dsn(), repository)

    def and_then_it_goes(*arguments: Any, **options: Any) -> BackupPlan:
        plan = plan_backup(*arguments, **options)
        assert plan.parent is not None
        remove_backup(repository, parent)
        assert collect(repository).doomed > 0
        return plan

    monkeypatch.setattr("pgkeep.backup.job.plan_backup", and_then_it_goes)
    child = backup(server.dsn(), repository)

    assert child.parent == parent.id
    (tombstone,) = read_tombstones(repository.store)
    assert tombstone.spared
    assert contents_of(repository, child)


def collect(repository: Repository) -> CollectReport:
    """As a process of its own does it, without grace."""
    return run_collect(CollectRequest(grace=timedelta(0)), Repository.open(open_store(repository.store.url), KEY))


def _size(repository: Repository) -> int:
    return sum(info.size for info in repository.store.list("packs/"))
