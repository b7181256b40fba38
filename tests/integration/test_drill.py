"""Drills on real servers: what came back is looked at, and stays as a record."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg

from pgkeep.drill.memory import read_drills
from pgkeep.restore.target import target_lsn
from support.drill_fixtures import MakeDrilled, drilled, templates
from support.drills import check_of, new_timeline

if TYPE_CHECKING:
    from pgkeep.drill.record import DrillRecord

__all__ = ["drilled", "templates"]


def test_a_backup_comes_back_and_is_proven(drilled: MakeDrilled, postgres_major: int) -> None:
    cluster = drilled(postgres_major)
    record = cluster.drill(full=True, reason="a test", asked_by="kim")
    assert record.cause is None
    assert [check.outcome for check in record.checks] == ["passed"] * 7, record.checks
    assert check_of(record, "tables").detail.endswith("1 tables in 2 databases, 2,500 rows")
    assert (record.server_major, record.target and record.target.how, record.asked_by) == (
        postgres_major,
        "latest",
        "kim",
    )
    assert record.reached is not None
    assert record.reached.time == record.target.time if record.target else False
    phases = {phase.name for phase in record.phases}
    assert phases == {"plan", "write", "start", "replay", "first query", "checks", "clean up"}
    assert record.rto is not None
    assert 0 < record.rto.measured < (record.ended - record.started).total_seconds()
    assert cluster.left_behind() == []
    (stored,) = read_drills(cluster.repository).records
    assert stored == record
    assert read_drills(cluster.repository).proven[record.backup].drill == record.id


def test_a_random_moment_is_the_same_for_its_seed_and_lies_behind_a_switch_of_timelines(drilled: MakeDrilled) -> None:
    cluster = drilled(17)
    new_timeline(cluster)
    first = cluster.drill(random=True, settings={"checks": ["tables"]})
    again = cluster.drill(random=True, seed=first.seed, settings={"checks": ["tables"]})
    for record in (first, again):
        assert record.cause is None, record
        assert record.target is not None
        assert record.reached is not None
        assert (record.reached.timeline, record.reached.crossed) == (2, [1, 2])
    assert again.target == first.target
    assert again.reached == first.reached
    assert first.target is not None
    assert first.target.how == "random"


def test_a_drill_restores_the_named_backup_to_the_named_target(drilled: MakeDrilled) -> None:
    cluster = drilled(18, checks=["tables"])
    (manifest,) = cluster.repository.catalog.read_all()
    lsn = str(cluster.sql("SELECT pg_current_wal_insert_lsn()")[0][0])
    cluster.sql("INSERT INTO users (name) VALUES ('after it')")
    cluster.ship()
    record = cluster.drill(backup=manifest.id, target=target_lsn(lsn), written=f"--to-lsn {lsn}")
    assert record.cause is None
    assert record.backup == manifest.id
    assert check_of(record, "tables").detail.endswith("2,500 rows")


def test_a_target_that_is_the_very_record_of_a_commit_is_reached(drilled: MakeDrilled) -> None:
    """By its LSN: the server replays it, and does not count it when it tells of the last transaction."""
    cluster = drilled(17, checks=["tables"])
    cluster.sql("INSERT INTO users (name) VALUES ('before')")
    with psycopg.connect(cluster.server.dsn()) as connection:
        connection.execute("INSERT INTO users (name) VALUES ('at the target')")
        ((lsn,),) = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchall()
    cluster.sql("INSERT INTO users (name) VALUES ('after it')")
    cluster.ship()

    record = cluster.drill(target=target_lsn(str(lsn)))

    assert record.cause is None
    assert check_of(record, "tables").detail.endswith("2,502 rows")


def test_two_drills_at_once_leave_each_other_alone(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    records: list[DrillRecord] = []
    threads = [threading.Thread(target=lambda: records.append(cluster.drill())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.cause for record in records] == [None, None]
    assert len({record.id for record in records}) == 2
    assert cluster.left_behind() == []


def test_a_copy_that_is_kept_is_left_alone_by_the_next_drill(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    kept = cluster.drill(keep=True)
    cluster.drill()
    assert cluster.left_behind() == [kept.id]
    assert (cluster.directory / kept.id / "data" / "PG_VERSION").exists()
    assert any(f"rm -r {cluster.directory / kept.id}" in note for note in kept.notes)


def test_the_copy_is_held_against_the_live_cluster_row_for_row(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    cluster.sql("INSERT INTO users (name) VALUES ('newest')")
    with cluster.shipping():
        record = cluster.drill(compare=True)
    assert record.cause is None
    assert record.comparison is not None
    assert (record.comparison.mode, record.comparison.equal) == ("exact", True)
    assert [(table.name, table.rows) for table in record.comparison.tables] == [("postgres.public.users", 2501)]
    assert record.target is not None
    assert record.target.how == "compared"


def test_wal_that_does_not_come_is_the_cause_where_the_drill_made_the_moment(drilled: MakeDrilled) -> None:
    record = drilled(17).drill(compare=True, settings={"wal_wait": 0.5})
    assert record.exit_code == 13
    assert "did not come into the repository within 0.50 s" in str(record.cause)
    assert "wal status" in str(record.remedy)
