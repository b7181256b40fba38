"""A drill's copy keeps to itself, whatever the settings that came back with it say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.drill_fixtures import MakeDrilled, drilled, templates
from support.drills import check_of
from support.jobs import backup, server_place

if TYPE_CHECKING:
    from pathlib import Path

    from support.drills import Drilled

__all__ = ["drilled", "templates"]


def ask(name: str, query: str, expect: object) -> dict[str, object]:
    return {"name": name, "query": query, "expect": expect}


def point_at_the_source(cluster: Drilled, trap: Path) -> None:
    """Settings that would make a copy act on its origin; the running source does not read them."""
    configuration = cluster.server.data_directory / "postgresql.conf"
    with configuration.open("a") as file:
        file.write(
            f"data_directory = '{cluster.server.data_directory}'\nexternal_pid_file = '{trap / 'pid'}'\n"
            f"archive_mode = on\narchive_command = 'touch {trap}/archived'\nlisten_addresses = '*'\n"
            "shared_preload_libraries = 'pg_stat_statements, pg_cron'\n"
        )


def test_nothing_of_the_copy_reaches_beyond_it(drilled: MakeDrilled) -> None:
    cluster = drilled(17)
    trap, apart = server_place(cluster.place / "trap"), server_place(cluster.place / "apart")
    cluster.sql(f"CREATE TABLESPACE apart LOCATION '{apart}'")
    cluster.sql("CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 100) AS n")
    cluster.sql("CREATE EXTENSION postgres_fdw; CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw")
    cluster.sql("CREATE FOREIGN TABLE remote (n int) SERVER other")
    cluster.sql(
        "CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false, slot_name = 's');"
    )
    cluster.sql("ALTER SUBSCRIPTION s ENABLE")
    cluster.sql("SELECT pg_create_physical_replication_slot('held', true)")
    cluster.sql(
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trigger acted'; END $$;"
        "CREATE EVENT TRIGGER no ON login EXECUTE FUNCTION no(); ALTER EVENT TRIGGER no ENABLE ALWAYS"
    )
    quiet = cluster.server.dsn(options="-c event_triggers=off")
    cluster.settings = cluster.settings.model_copy(update={"dsn": quiet})
    point_at_the_source(cluster, trap)
    backup(quiet, cluster.repository)
    before = sorted(path.name for path in apart.rglob("*"))
    record = cluster.drill(
        settings={
            "checks": ["tables"],
            "assert": [
                ask("directory", "SELECT current_setting('data_directory')", f"> {cluster.directory}"),
                ask("listens nowhere", "SELECT current_setting('listen_addresses')", ""),
                ask("archives nothing", "SELECT current_setting('archive_mode')", "off"),
                ask("no slots", "SELECT slot_name FROM pg_replication_slots", "no rows"),
                ask("no workers", "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'logical%'", "no rows"),
                ask("libraries", "SELECT current_setting('shared_preload_libraries')", '"pg_stat_statements"'),
                ask("subscription is there", "SELECT count(*) FROM pg_subscription", 1),
                ask("its tablespace", "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'apart'",
                    f"> {cluster.directory}"),
                ask("read only", "CREATE TABLE more ()", True),
                ask("foreign tables", "SELECT n FROM remote", "no rows"),
            ],
        }
    )  # fmt: skip
    said = {check.name: check.detail for check in record.checks if check.outcome == "failed"}
    assert set(said) == {"read only", "foreign tables"}, said
    assert "read-only transaction" in said["read only"]
    assert 'foreign-data wrapper "postgres_fdw" has no handler' in said["foreign tables"]
    assert check_of(record, "tables").outcome == "passed"
    assert list(trap.iterdir()) == []
    assert sorted(path.name for path in apart.rglob("*")) == before
    assert any("pg_cron" in note for note in record.notes)
    assert any("foreign tables cannot be read in the copy" in note for note in record.notes)
    assert cluster.left_behind() == []
