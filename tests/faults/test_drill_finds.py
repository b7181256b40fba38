"""Seeded damage: each gives a failed drill that names its cause, and nothing stays on the machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pgkeep.drill.memory import read_drills
from pgkeep.drill.request import DrillRequest, Source
from pgkeep.drill.runner import run_drill
from pgkeep.errors import DamageError, Interrupted, KeyFailure, NotFoundError, ProofError, RecoveryError
from pgkeep.postgres.account import give_to
from pgkeep.repository import KeyFile, Repository, open_store
from support.drill_fixtures import MakeDrilled, drilled, templates
from support.drills import AtPhase, check_of, new_timeline
from support.killed_drills import kill_drill
from support.servers import run_program

__all__ = ["drilled", "templates"]


def test_a_lost_wal_segment(drilled: MakeDrilled) -> None:
    cluster = drilled()
    cluster.write_segments(4)
    lost = cluster.wal()[-3]
    lost.unlink()
    record = cluster.drill()
    assert (record.state, record.exit_code) == ("failed", NotFoundError.exit_code)
    assert "WAL is missing from" in str(record.cause)
    assert record.remedy
    assert cluster.left_behind() == []
    assert [stored.cause for stored in read_drills(cluster.repository).records] == [record.cause]
    assert read_drills(cluster.repository).proven == {}


def test_wal_that_is_lost_while_it_is_replayed_leaves_the_server_short_of_its_target(drilled: MakeDrilled) -> None:
    cluster = drilled()
    cluster.write_segments(30)

    def lose() -> None:
        for path in cluster.wal()[8:]:
            path.unlink()

    record = cluster.drill(AtPhase("recovering", lose))
    assert (record.state, record.exit_code) == ("failed", RecoveryError.exit_code)
    assert "short of its target" in str(record.cause)
    assert check_of(record, "reached").outcome == "failed"
    assert record.rto is None
    assert cluster.left_behind() == []


def test_a_newer_timeline_whose_history_is_missing(drilled: MakeDrilled) -> None:
    cluster = drilled()
    new_timeline(cluster)
    (history,) = [path for path in cluster.wal() if path.name.endswith(".history")]
    history.unlink()
    record = cluster.drill()
    assert record.exit_code == NotFoundError.exit_code
    assert "timeline 2 cannot be reached, since its history file is missing" in str(record.cause)
    assert "pgkeep wal push pg_wal/00000002.history" in str(record.remedy)


def test_a_newer_timeline_of_which_nothing_was_stored(drilled: MakeDrilled) -> None:
    cluster = drilled()
    kept = cluster.place / "kept"
    shutil.copytree(cluster.place / "repository", kept)
    new_timeline(cluster)
    shutil.rmtree(cluster.place / "repository")
    kept.rename(cluster.place / "repository")
    record = cluster.drill()
    assert "the cluster is on timeline 2, and the repository has nothing of it" in str(record.cause)


def test_a_truncated_pack(drilled: MakeDrilled) -> None:
    cluster = drilled()
    pack = max(cluster.objects("packs"), key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    os.truncate(pack, pack.stat().st_size // 2)
    record = cluster.drill()
    assert (record.state, record.exit_code) == ("failed", DamageError.exit_code)
    assert f"packs/{pack.name[:2]}" in str(record.cause) or pack.name in str(record.cause)
    assert cluster.left_behind() == []


def test_a_wrong_key(drilled: MakeDrilled) -> None:
    cluster = drilled()

    def open_it() -> Repository:
        return Repository.open(open_store(str(cluster.place / "repository")), KeyFile(bytes(32)))

    record = run_drill(DrillRequest(), cluster.settings, [Source("main", open_it)])
    assert (record.state, record.exit_code) == ("failed", KeyFailure.exit_code)
    assert "key" in str(record.cause)
    assert any("stored nowhere" in note for note in record.notes)


def test_a_stale_visibility_map(drilled: MakeDrilled) -> None:
    cluster = drilled(18)
    (path,) = cluster.sql("SELECT pg_relation_filepath('users') || '_vm'")[0]
    vm = cluster.server.data_directory / str(path)
    cluster.sql("VACUUM (FREEZE) users")
    cluster.sql("CHECKPOINT")
    before = vm.read_bytes()
    cluster.sql("DELETE FROM users WHERE id < 100")
    cluster.server.stop()
    vm.write_bytes(before)
    give_to(cluster.server.account, vm)
    cluster.server.start({"fsync": False, "autovacuum": False})
    cluster.back_up()
    record = cluster.drill()
    assert (record.state, record.exit_code) == ("failed", DamageError.exit_code)
    assert "the visibility map of table public.users of database postgres is stale" in str(record.cause)
    assert "pg_truncate_visibility_map" in str(record.remedy)
    assert [check.name for check in record.checks if check.outcome == "failed"] == ["visibility map"]


def test_a_row_that_was_changed_behind_the_comparison_s_back(drilled: MakeDrilled) -> None:
    """On the live server's disk, by no statement that WAL would tell of."""
    cluster = drilled(17, checks=["tables"])
    ((path,),) = cluster.sql("SELECT pg_relation_filepath('users')")
    heap = cluster.server.data_directory / str(path)
    cluster.server.stop()
    run_program(cluster.server, "pg_checksums", "--disable", "-D", cluster.server.data_directory)
    pages = heap.read_bytes()
    assert pages.count(b"user 1234") == 1
    heap.write_bytes(pages.replace(b"user 1234", b"user 1235"))
    give_to(cluster.server.account, heap)
    cluster.server.start({"fsync": False, "autovacuum": False})

    with cluster.shipping():
        record = cluster.drill(compare=True)

    assert (record.state, record.exit_code) == ("failed", DamageError.exit_code)
    assert "public.users" in str(record.cause)
    assert record.comparison is not None
    (table,) = (table for table in record.comparison.tables if not table.equal)
    assert "1234" in str(table.differences), "down to the row"


def test_an_assertion_that_fails(drilled: MakeDrilled) -> None:
    rule = {"name": "nobody is called user 7", "query": "SELECT count(*) FROM users WHERE name = 'user 7'", "expect": 0}
    record = drilled(checks=["tables"], **{"assert": [rule]}).drill()
    assert (record.state, record.exit_code) == ("failed", ProofError.exit_code)
    assert record.cause == "assertion 'nobody is called user 7' failed: the query returned 1, expected 0"


def test_pages_that_carry_no_checksums_are_no_proof_by_themselves(drilled: MakeDrilled) -> None:
    cluster = drilled(checks=["server checksums"])
    cluster.server.stop()
    run_program(cluster.server, "pg_checksums", "--disable", "-D", cluster.server.data_directory)
    cluster.server.start({"fsync": False, "autovacuum": False})
    cluster.back_up()
    record = cluster.drill()
    assert record.exit_code == ProofError.exit_code
    assert "the drill checked nothing that came back" in str(record.cause)
    assert "carry no checksums" in str(record.cause)


@pytest.mark.parametrize("phase", ["writing", "recovering", "checking tables"])
def test_what_a_killed_drill_leaves_is_cleared_by_the_next(drilled: MakeDrilled, phase: str) -> None:
    cluster = drilled(checks=["tables"])
    kill_drill(cluster, phase)
    (killed, *processes) = cluster.left_behind()
    facts = json.loads((cluster.directory / killed / "drill.json").read_text())
    assert bool(processes) == (phase == "checking tables")
    assert Path(facts["sockets"]).is_dir()
    record = cluster.drill()
    assert record.cause is None
    assert any(f"drill {killed} was killed" in note for note in record.notes)
    assert cluster.left_behind() == []
    assert not Path(facts["sockets"]).exists()


def test_another_repository_does_not_hide_what_is_wrong_with_the_first(drilled: MakeDrilled) -> None:
    cluster = drilled()
    whole = cluster.place / "whole"
    shutil.copytree(cluster.place / "repository", whole)
    for pack in cluster.objects("packs"):
        pack.chmod(0o600)
        os.truncate(pack, 100)
    key = KeyFile(bytes(range(32)))
    sources = [
        Source("main", lambda: cluster.repository),
        Source("whole", lambda: Repository.open(open_store(str(whole)), key)),
    ]
    record = run_drill(DrillRequest(), cluster.settings, sources)
    assert (record.exit_code, record.repository) == (DamageError.exit_code, "main")
    wrong = Source("main", lambda: Repository.open(open_store(str(cluster.place / "repository")), KeyFile(bytes(32))))
    record = run_drill(DrillRequest(), cluster.settings, [wrong, sources[1]])
    assert record.exit_code == KeyFailure.exit_code
    # where the first cannot be opened, the other one keeps the record
    assert [stored.id for stored in read_drills(sources[1].open()).records] == [record.id]
    assert read_drills(sources[1].open()).proven == {}


def test_a_damaged_record_counts_for_nothing(drilled: MakeDrilled) -> None:
    cluster = drilled(checks=["tables"])
    record = cluster.drill()
    (path,) = cluster.objects(f"clusters/{cluster.system_identifier}/drills")
    assert path.name == record.id
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    said: list[str] = []
    memory = read_drills(cluster.repository, note=said.append)
    assert (memory.records, memory.proven, len(memory.damaged)) == ([], {}, 1)
    assert "counts for nothing" in said[0]


def test_an_interrupted_drill_cleans_up_and_leaves_no_record(drilled: MakeDrilled) -> None:
    cluster = drilled(checks=["tables"])

    def interrupt() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        cluster.drill(AtPhase("checking tables", interrupt))
    assert cluster.left_behind() == []
    assert read_drills(cluster.repository).records == []


def test_directories_that_are_no_drills_are_left_alone(drilled: MakeDrilled) -> None:
    cluster = drilled(checks=["tables"])
    (cluster.directory / "an operator's").mkdir(parents=True)
    assert cluster.drill().cause is None
    assert cluster.left_behind() == ["an operator's"]
