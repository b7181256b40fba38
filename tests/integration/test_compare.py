"""Comparisons of a restored cluster with its source: what is held equal, what is found, and what is said when it is not exact."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgkeep.drill import compare_source
from pgkeep.drill.compare import ComparisonRequest, begin_comparison, compare
from pgkeep.drill.fingerprint import RangeSum, SourceFingerprints
from pgkeep.drill.fingerprint_moment import LockRules
from pgkeep.drill.fingerprint_ranges import Chosen, Readers, Unreadable, sum_ranges
from pgkeep.errors import NotFoundError, ServerError, TargetError
from support.servers import sql
from support.standby import SteppingStandby

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgkeep.drill.record import ComparedTable, Comparison
    from pgkeep.postgres.server import ThrowawayServer
    from support.servers import MakeServer

_SHAPES = """
    CREATE TABLE orders (id bigint PRIMARY KEY, item text, price numeric, paid bool);
    INSERT INTO orders SELECT n, 'item ' || n, n * 1.5, n % 2 = 0 FROM generate_series(1, 40000) n;
    CREATE TABLE odd_values (f float8, r float4, t timestamptz, i interval, b bytea, c money, k regclass, ks regclass[], j jsonb, a int[]);
    INSERT INTO odd_values VALUES ('NaN', 'Infinity', '2026-11-01 01:30+02', '1 mon -3 days', '\\x00ff', 12.5, 'orders', '{orders}', '{"a": 1}', '{1,NULL}'),
        ('-0', 1e-40, 'infinity', NULL, NULL, NULL, NULL, NULL, NULL, '{}'), (0.1::float8 + 0.2, 0.1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE no_key (word text); INSERT INTO no_key VALUES ('same'), ('same'), ('other'), (NULL);
    CREATE TABLE events (day date, note text) PARTITION BY RANGE (day);
    CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    INSERT INTO events VALUES ('2026-05-05', repeat('long', 5000));
    CREATE UNLOGGED TABLE scratch (n int); INSERT INTO scratch VALUES (1);
    CREATE TABLE "Odd ""name" ("a b" int PRIMARY KEY, doubled int GENERATED ALWAYS AS ("a b" * 2) STORED);
    INSERT INTO "Odd ""name" VALUES (1), (2);
    CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES;
    CREATE TABLE dropped (gone int, kept int); INSERT INTO dropped VALUES (1, 2); ALTER TABLE dropped DROP COLUMN gone;
    CREATE TABLE empty (n int);
    CREATE SEQUENCE used; SELECT nextval('used') FROM generate_series(1, 100);
    CREATE SEQUENCE down INCREMENT -1; SELECT nextval('down') FROM generate_series(1, 100);
    CREATE SEQUENCE unused;
"""
_COMPARED = {
    "postgres.public.orders",
    "postgres.public.odd_values",
    "postgres.public.no_key",
    "postgres.public.events_2026",
    'postgres.public.Odd "name',
    "postgres.public.nothing",
    "postgres.public.dropped",
    "postgres.public.empty",
    "second.public.other",
}


@dataclass
class Pair:
    """A source, its fingerprints, and a cluster recovered to their moment that can be written to."""

    source: str
    fingerprints: SourceFingerprints
    restored: str

    def compare(self) -> Comparison:
        """With the source at hand."""
        return compare(self.fingerprints, self.restored, source=self.source)

    def table(self, name: str) -> ComparedTable:
        """One table of a comparison."""
        return next(table for table in self.compare().tables if table.name == f"postgres.public.{name}")


@pytest.fixture
def make_pair(make_server: MakeServer, work_dir: Path) -> Iterator[Callable[..., Pair]]:
    """Make one, after changes that the test makes to the source."""
    standbys = []

    def make(major: int, *statements: str, request: ComparisonRequest | None = None, user: str = "postgres") -> Pair:
        source = make_server(major)
        sql(source.dsn(), _SHAPES)
        if major >= 18:
            sql(source.dsn(), "ALTER TABLE dropped ADD COLUMN virtual int GENERATED ALWAYS AS (kept + 1) VIRTUAL")
        sql(source.dsn(), "CREATE DATABASE second")
        sql(source.dsn("second"), "CREATE TABLE other (n int PRIMARY KEY); INSERT INTO other VALUES (1)")
        standby = SteppingStandby(source, work_dir / "standby")
        standbys.append(standby)
        for statement in statements:
            sql(source.dsn(), statement)
        found = begin_comparison(psycopg.conninfo.make_conninfo(source.dsn(), user=user), request)
        standby.go_to(name=found.restore_point, lsn=found.lsn)
        return Pair(source.dsn(), found, standby.promote())

    yield make
    for standby in standbys:
        standby.server.stop("immediate")


def test_every_shape_of_table_is_equal_to_itself_and_a_change_behind_its_back_is_shown(
    make_pair: Callable[..., Pair], postgres_major: int
) -> None:
    pair = make_pair(postgres_major)
    # what happens to the source later is nothing to the comparison
    sql(pair.source, "UPDATE orders SET item = 'later' WHERE id > 39900; DELETE FROM orders WHERE id = 1")
    first = pair.compare()
    assert first.equal, first
    assert first.mode == "exact"
    assert {table.name for table in first.tables} == _COMPARED
    assert "2 sequences" in first.detail

    sql(pair.restored, "UPDATE orders SET price = 0 WHERE id = 777; DELETE FROM orders WHERE id = 12345")
    orders = pair.table("orders")
    assert not orders.equal
    assert {(each.key, each.live, each.restored) for each in orders.differences} >= {
        ("(777)", '(777,"item 777",1165.5,f)', '(777,"item 777",0,f)'),
        ("(12345)", '(12345,"item 12345",18517.5,f)', None),
    }
    assert "rows that differ, by id: (777), (12345)" in orders.detail

    sql(pair.restored, "UPDATE odd_values SET f = '0' WHERE f = '-0'")
    assert not pair.table("odd_values").equal
    sql(pair.restored, "INSERT INTO no_key VALUES ('same'), ('same')")
    assert [(each.live, each.restored) for each in pair.table("no_key").differences] == [
        (None, "(same)"),
        (None, "(same)"),
    ]
    sql(pair.restored, "SELECT setval('used', 1), setval('down', -1)")
    assert "stands at 1, and the source had handed out 100" in pair.table("used").detail
    assert "stands at -1, and the source had handed out -100" in pair.table("down").detail
    sql(pair.restored, "DROP TABLE events_2026")
    assert "cannot be read in the restored cluster" in pair.table("events_2026").detail


def test_a_row_that_the_source_has_changed_since_is_found_all_the_same(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(18)
    sql(pair.source, "UPDATE orders SET item = 'later' WHERE id = 777")
    sql(pair.restored, "UPDATE orders SET item = 'wrong' WHERE id = 777")
    orders = pair.table("orders")
    assert not orders.equal
    assert [(each.live, each.restored) for each in orders.differences] == [
        ("(777,later,1165.5,f)", "(777,wrong,1165.5,f)")
    ]
    sql(pair.source, "UPDATE no_key SET word = 'later'")
    sql(pair.restored, "DELETE FROM no_key WHERE word = 'other'")
    no_key = pair.table("no_key")
    assert (no_key.equal, no_key.differences, no_key.rows, no_key.live_rows) == (False, [], 3, 4)
    assert "were changed on the source since" in no_key.detail


def test_a_large_table_is_sampled_by_a_rule_and_the_same_rows_on_both_sides(make_pair: Callable[..., Pair]) -> None:
    big = "CREATE TABLE big AS SELECT n, repeat('x', 900) FROM generate_series(1, 40000) n"
    pair = make_pair(17, big, request=ComparisonRequest(most_bytes=16 << 20))
    table = pair.table("big")
    assert table.equal
    assert 0.05 < table.sampled < 0.95
    assert table.rows == table.live_rows
    sql(pair.restored, "UPDATE big SET n = -n")
    assert not pair.table("big").equal


@pytest.mark.parametrize("postgres_major", [17], scope="session")
def test_a_server_of_another_cluster_and_the_source_itself_are_refused(make_server: MakeServer, database: str) -> None:
    request = ComparisonRequest(databases={"postgres"})
    found = begin_comparison(make_server(17).dsn(), request)
    with pytest.raises(TargetError, match="of another cluster"):
        compare(found, database)
    with pytest.raises(TargetError, match="is the source itself"):
        compare(begin_comparison(database, request), database)


@pytest.mark.parametrize("postgres_major", [17], scope="session")
def test_a_transaction_that_stays_open_is_not_waited_for_and_nobody_behind_us_either(
    server: ThrowawayServer, database: str
) -> None:
    sql(database, "CREATE TABLE held (n int); CREATE TABLE free (n int)")
    longest = 0.0
    with psycopg.connect(database) as holder, _OthersWrite(database, "held") as waits:
        holder.execute("INSERT INTO held VALUES (0)")
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        request = ComparisonRequest(databases={str(name)}, rules=LockRules(timeout=0.2, give_up=2))
        found = begin_comparison(database, request)
        longest = max(waits)
    assert found.mode == "tolerance"
    (note,) = (note for note in found.notes if "not exact" in note)
    assert "public.held is held by process" in note
    assert 0.05 < longest < 0.4, "writers waited, and no longer than told"
    found = begin_comparison(database, request)
    assert (found.mode, found.tables[0].rows) == ("exact", 0)


def test_a_prepared_transaction_is_named_as_what_is_in_the_way(make_server: MakeServer) -> None:
    source = make_server(15, settings={"max_prepared_transactions": 2})
    sql(source.dsn(), "CREATE TABLE held (n int)")
    sql(source.dsn(), "BEGIN; INSERT INTO held VALUES (1); PREPARE TRANSACTION 'forgotten'")
    request = ComparisonRequest(rules=LockRules(timeout=0.1, give_up=0.5))
    found = begin_comparison(source.dsn(), request)
    assert found.mode == "tolerance"
    assert "public.held is held by a prepared transaction" in found.notes[0]


@pytest.mark.parametrize("postgres_major", [17], scope="session")
def test_what_holds_tables_in_the_opposite_order_makes_us_change_ours_and_fails_in_nothing(database: str) -> None:
    sql(database, "CREATE TABLE a_last (n int); CREATE TABLE z_first (n int)")
    stop, failures = threading.Event(), []

    def write() -> None:
        with psycopg.connect(database) as connection:
            try:
                while not stop.is_set():
                    with connection.transaction():
                        connection.execute("INSERT INTO z_first VALUES (1)")
                        time.sleep(0.03)
                        connection.execute("INSERT INTO a_last VALUES (1)")
            except psycopg.Error as error:
                failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        found = begin_comparison(database, ComparisonRequest(databases={str(name)}))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
    assert found.mode == "exact"
    first, second = found.tables
    assert first.rows == second.rows, "the snapshot is of one moment"


def test_without_the_right_to_lock_it_compares_with_tolerance_and_says_so(make_pair: Callable[..., Pair]) -> None:
    grant = "CREATE ROLE reader LOGIN; GRANT pg_read_all_data, pg_monitor TO reader"
    pair = make_pair(17, grant, user="reader")
    assert (pair.fingerprints.mode, pair.fingerprints.restore_point) == ("tolerance", None)
    comparison = pair.compare()
    assert comparison.equal, comparison
    assert "not every table was locked" in comparison.detail
    sql(pair.restored, "UPDATE orders SET item = 'changed' WHERE id = 3")
    assert not pair.table("orders").equal


@pytest.mark.parametrize("postgres_major", [17], scope="session")
def test_a_table_that_is_truncated_while_it_is_read_is_left_out_with_a_note(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(
        database,
        "CREATE TABLE emptied AS SELECT 1 AS n; CREATE TABLE stays AS SELECT 1 AS n; CREATE TABLE widened AS SELECT 1 AS n",
    )

    def late(readers: Readers, chosen: Sequence[Chosen]) -> list[list[RangeSum] | Unreadable]:
        sql(database, "TRUNCATE emptied; ALTER TABLE widened ADD COLUMN more int DEFAULT 5")
        return sum_ranges(readers, chosen)

    monkeypatch.setattr(compare_source, "sum_ranges", late)
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    found = begin_comparison(database, ComparisonRequest(databases={str(name)}, jobs=1))
    assert [table.name for table in found.tables] == ["stays", "widened"]
    assert any("emptied was left out: it was truncated or rewritten meanwhile" in note for note in found.notes)
    assert found.tables[1].columns == found.tables[0].columns


@pytest.mark.parametrize("postgres_major", [17], scope="session")
def test_what_is_not_there_is_named(database: str) -> None:
    with pytest.raises(NotFoundError, match="no database 'nowhere'"):
        begin_comparison(database, ComparisonRequest(databases={"nowhere"}))
    with pytest.raises(NotFoundError, match=r"no table public\.nothing"):
        begin_comparison(database, ComparisonRequest(tables={"public.nothing"}))


def test_a_standby_is_no_source(make_server: MakeServer, work_dir: Path) -> None:
    source = make_server(17)
    with SteppingStandby(source, work_dir / "standby") as standby:
        (row,) = sql(source.dsn(), "SELECT pg_create_restore_point('here')::text")
        with pytest.raises(ServerError, match="is a standby"):
            begin_comparison(standby.go_to(name="here"))
        assert row


class _OthersWrite:
    """Somebody who writes into a table again and again; the seconds that each took."""

    def __init__(self, dsn: str, table: str) -> None:
        self._dsn, self._table = dsn, table
        self._stop, self._waits = threading.Event(), [0.0]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self._waits

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stop.wait(0.02):
                began = time.monotonic()
                connection.execute(f"DELETE FROM {self._table} WHERE false")
                self._waits.append(time.monotonic() - began)
