"""Exercises: each does what its runbook says, and says it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec

from pgkeep.drill.request import DrillRequest, Source
from pgkeep.drill.runner import run_drill
from pgkeep.repository import Repository, open_store
from support.drill_fixtures import MakeDrilled, drilled, templates
from support.drills import check_of
from support.jobs import KEY
from support.servers import sql

if TYPE_CHECKING:
    from pgkeep.drill.record import DrillRecord, Step

__all__ = ["drilled", "templates"]


def outcomes(record: DrillRecord) -> list[str]:
    return [step.outcome for step in record.steps]


def test_a_table_that_was_dropped_comes_back_as_it_was_before(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    with cluster.shipping():
        record = cluster.drill(scenario="table-dropped")
    assert record.cause is None
    assert check_of(record, "what was lost is back").outcome == "passed"
    assert record.target is not None
    assert (record.target.kind, record.scenario) == ("time", "table dropped")
    assert outcomes(record) == ["passed", "passed", "passed", "passed", "passed", "skipped"]
    assert cluster.sql("SELECT FROM pg_namespace WHERE nspname LIKE 'pgkeep%'") == []


def test_a_migration_that_spoiled_rows_is_undone_by_its_transaction_id(drilled: MakeDrilled) -> None:
    cluster = drilled(18, checks=["tables"])
    sql(cluster.server.dsn(), "CREATE SCHEMA pgkeep_drill_staged_0badcafe")
    with cluster.shipping():
        record = cluster.drill(scenario="bad-migration")
    assert record.cause is None
    assert check_of(record, "what was lost is back").outcome == "passed"
    assert record.target is not None
    assert (record.target.kind, record.target.exclusive) == ("xid", True)
    # what a drill left that was killed goes too
    assert cluster.sql("SELECT FROM pg_namespace WHERE nspname LIKE 'pgkeep%'") == []


def test_an_incident_needs_a_role_that_may_make_a_schema(drilled: MakeDrilled) -> None:
    cluster = drilled(17)
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
    dsn = cluster.server.dsn(user="watcher")
    cluster.settings = cluster.settings.model_copy(update={"dsn": dsn})
    record = cluster.drill(scenario="table-dropped")
    assert record.exit_code == 5
    assert "the incident cannot be made" in str(record.cause)
    assert "GRANT CREATE ON DATABASE postgres TO watcher;" in str(record.remedy)
    assert outcomes(record) == ["passed", "failed"]


def test_a_server_that_is_lost_is_not_asked(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    cluster.server.stop()
    said: list[Step] = []
    request = DrillRequest(scenario="server-lost")
    source = Source("main", lambda: cluster.repository)
    record = run_drill(request, cluster.settings, [source], on_step=said.append)
    assert record.cause is None
    assert [step.text for step in said] == [step.text for step in record.steps]
    assert outcomes(record)[-2:] == ["skipped", "skipped"]
    assert any(step.command.startswith("pgkeep restore") for step in said)


def test_a_region_that_is_lost_leaves_the_off_site_repository_alone(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    elsewhere = cluster.place / "elsewhere"
    shutil.copytree(cluster.place / "repository", elsewhere)
    settings = cluster.settings.model_copy(update={"repositories": ("main", "offsite")})

    def lost() -> Repository:
        raise AssertionError("the first region is gone, and was asked")

    sources = [Source("main", lost), Source("offsite", lambda: Repository.open(open_store(str(elsewhere)), KEY))]
    record = run_drill(DrillRequest(scenario="region-lost"), settings, sources)
    assert record.cause is None
    assert record.repository == "offsite"
    assert "offsite alone" in record.steps[0].text


def test_where_the_newest_backup_is_damaged_the_one_before_it_does(drilled: MakeDrilled) -> None:
    cluster = drilled(17, checks=["tables"])
    alone = cluster.drill(scenario="newest-damaged")
    assert "no backup before the newest" in str(alone.cause)
    (before,) = cluster.repository.catalog.read_all()
    cluster.sql("INSERT INTO users (name) VALUES ('in the newest')")
    newest = cluster.back_up()
    cluster.ship()
    record = cluster.drill(scenario="newest-damaged")
    assert record.cause is None
    assert record.backup == before.id
    assert check_of(record, "tables").detail.endswith("2,501 rows")
    assert any(newest in note for note in record.notes)
    assert msgspec.to_builtins(record.steps)[1]["command"] == "pgkeep verify latest"
