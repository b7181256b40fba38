"""Each check finds what it is for, in a live server whose data is damaged on purpose, and passes where nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.drill.checking import timed
from pgkeep.drill.checks.amcheck import check_amcheck
from pgkeep.drill.checks.checksums import check_checksums
from pgkeep.drill.checks.extensions import check_extensions
from pgkeep.drill.checks.sequences import check_sequences
from pgkeep.drill.checks.tables import check_tables
from pgkeep.drill.checks.visibility import check_visibility
from pgkeep.drill.session import Copy
from support.servers import sql

if TYPE_CHECKING:
    from pgkeep.postgres.server import Server
    from support.servers import MakeServer

_FICKLE = """
    CREATE FUNCTION asc_cmp(a int, b int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT sign($1 - $2)::int';
    CREATE FUNCTION desc_cmp(a int, b int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT sign($2 - $1)::int';
    CREATE OPERATOR CLASS fickle FOR TYPE int USING btree AS
        OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 asc_cmp(int, int);
    CREATE TABLE numbers (id int GENERATED ALWAYS AS IDENTITY, n int);
    INSERT INTO numbers (n) SELECT generate_series(1, 1000);
    CREATE INDEX numbers_n ON numbers (n fickle);
"""


def copy_of(server: Server, budget: float | None = None) -> Copy:
    dsn = server.dsn()
    return Copy(dsn, server.data_directory, server.binaries, Copy.databases_of(dsn), jobs=2, seed=1, budget=budget)


def test_each_check_finds_its_damage_and_names_it(make_server: MakeServer) -> None:
    server = make_server(17, settings={"autovacuum": False})
    sql(server.dsn(), _FICKLE)
    sql(server.dsn(), "CREATE DATABASE other")
    sql(server.dsn("other"), "CREATE TABLE lost AS SELECT generate_series(1, 10) AS n")
    sql(server.dsn("other"), "CREATE MATERIALIZED VIEW seen AS SELECT * FROM lost")
    sql(server.dsn("other"), "SELECT lo_from_bytea(0, 'a large object')")
    copy = copy_of(server)

    def outcomes() -> list[str]:
        looks = (check_tables, check_extensions, check_sequences, check_visibility, check_amcheck)
        return [look(copy).outcome for look in looks]

    assert outcomes() == ["passed"] * 5
    assert check_tables(copy).detail.endswith("3 tables in 3 databases, 1,020 rows, 1 pages of large objects")

    sql(server.dsn(), "SELECT setval('numbers_id_seq', 17)")
    found = check_sequences(copy)
    assert found.detail == (
        "sequence public.numbers_id_seq stands at 17, behind public.numbers.id, which has 1000 (database postgres)"
    )
    sql(server.dsn(), "SELECT setval('numbers_id_seq', 1000)")

    sql(server.dsn(), "UPDATE pg_amproc SET amproc = 'desc_cmp'::regproc WHERE amproc = 'asc_cmp'::regproc")
    found = check_amcheck(copy)
    assert found.detail.startswith("index public.numbers_n of database postgres is damaged: item order invariant")
    assert found.remedy is not None
    assert "REINDEX" in found.remedy
    sql(server.dsn(), "DROP INDEX numbers_n")

    sql(server.dsn("other"), "UPDATE pg_proc SET probin = '$libdir/gone' WHERE probin = '$libdir/amcheck'")
    found = check_extensions(copy)
    assert found.detail.startswith("extension amcheck of database other cannot be loaded: could not access file")

    (path,) = sql(server.dsn("other"), "SELECT pg_relation_filepath('lost')")[0]
    sql(server.dsn(), "CHECKPOINT")
    (server.data_directory / str(path)).unlink()
    found = check_tables(copy)
    assert found.detail.startswith("table public.lost of database other cannot be read: could not open file")
    assert outcomes()[0] == "failed"


def test_a_check_that_has_no_time_looks_at_a_part_and_says_how_much(make_server: MakeServer) -> None:
    copy = copy_of(make_server(18), budget=0.0)
    found = check_amcheck(copy)
    assert found.outcome == "passed"
    assert 0 < found.sampled < 1
    assert 0 < found.counted < 500
    assert "of the bytes in the time that there was" in found.detail


def test_a_server_that_dies_of_a_check_has_failed_it(make_server: MakeServer) -> None:
    server = make_server(17)
    copy = copy_of(server)
    server.stop("immediate")
    found = timed("tables", lambda: check_tables(copy))
    assert found.outcome == "failed"
    assert found.detail.startswith("the check of tables broke off: ")


def test_a_page_whose_checksum_is_wrong_is_named(make_server: MakeServer) -> None:
    server = make_server(15)
    sql(server.dsn(), "CREATE TABLE t AS SELECT generate_series(1, 5000) AS n")
    (path,) = sql(server.dsn(), "SELECT pg_relation_filepath('t')")[0]
    server.stop()
    found = check_checksums(server.data_directory, budget=None, seed=1, jobs=2)
    assert (found.outcome, found.sampled) == ("passed", 1.0)
    assert found.counted > 500
    with (server.data_directory / str(path)).open("r+b") as file:
        file.seek(3 * 8192 + 5000)
        file.write(b"damage")
    found = check_checksums(server.data_directory, budget=None, seed=1, jobs=2)
    assert found.detail == f"the checksum of block 3 of {path} is wrong"
    part = check_checksums(server.data_directory, budget=0.0, seed=1, jobs=1)
    assert 0 < part.sampled < 1
