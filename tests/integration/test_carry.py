"""Rows written after a moment are brought into a server that was recovered to it: tables of every shape, on two real servers."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import NotFoundError, RecoveryError, UsageError
from pgkeep.progress import Silent
from pgkeep.restore.carry import CarriedTable, TableName, carry_table, parse_table_name
from support.servers import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.server import ThrowawayServer

_numbers = itertools.count(1)


class Pair:
    """The same database at two moments: ``recovered`` and ``later`` are its connection strings."""

    def __init__(self, recovered: ThrowawayServer, later: ThrowawayServer) -> None:
        self.database = f"carry_{next(_numbers)}"
        self.servers = (recovered, later)
        self.recovered, self.later = recovered.dsn(self.database), later.dsn(self.database)

    def both(self, statements: str) -> None:
        for dsn in (self.recovered, self.later):
            sql(dsn, statements)

    def carry(self, name: str = "token_blacklist") -> CarriedTable:
        recovered, later = self.servers
        return carry_table(later.dsn(), recovered.dsn(), parse_table_name(name), self.database, Silent())


@pytest.fixture(params=[(15, 17), (17, 18), (18, 15)], ids=lambda majors: f"pg{majors[0]}-from-pg{majors[1]}")
def pair(request: pytest.FixtureRequest, shared_server: Callable[[int], ThrowawayServer]) -> Iterator[Pair]:
    """Both versions of a cluster are the same in life; here they differ, so that the questions to the catalogs are tried."""
    pair = Pair(*(shared_server(major) for major in request.param))
    for server in pair.servers:
        sql(server.dsn(), f"CREATE DATABASE {pair.database}")
    yield pair
    for server in pair.servers:
        sql(server.dsn(), f"DROP DATABASE {pair.database} WITH (FORCE)")


TOKENS = """
    CREATE TABLE users (id int PRIMARY KEY, name text);
    CREATE TABLE token_blacklist (jti uuid PRIMARY KEY, user_id int REFERENCES users, revoked_at timestamptz DEFAULT now());
    INSERT INTO users SELECT i, 'user ' || i FROM generate_series(1, 10) i;
    INSERT INTO token_blacklist (jti, user_id) SELECT lpad(i::text, 32, '0')::uuid, i FROM generate_series(1, 5) i;
"""


def test_revoked_tokens_come_back_and_those_of_users_who_did_not_exist_yet_are_counted(pair: Pair) -> None:
    """The row of a user who signed up after the recovered moment has no parent there."""
    pair.both(TOKENS)
    sql(pair.later, "INSERT INTO users VALUES (11, 'came later')")
    sql(
        pair.later,
        "INSERT INTO token_blacklist SELECT lpad(i::text, 32, '0')::uuid, i, '2026-01-01 00:00Z' FROM generate_series(6, 11) i",
    )
    sql(pair.later, "UPDATE token_blacklist SET revoked_at = '2026-02-02' WHERE user_id = 1")
    sql(pair.later, "DELETE FROM token_blacklist WHERE user_id = 2")

    carried = pair.carry()

    assert (carried.found, carried.there, carried.inserted, carried.changed) == (10, 4, 5, 4)
    assert (carried.name, carried.key) == ("public.token_blacklist", ["jti"])
    (skipped,) = carried.skipped
    assert skipped.count == 1
    assert "public.users that are not there" in skipped.reason
    assert skipped.examples == ["(user_id) = (11)"]
    assert sql(pair.recovered, "SELECT array_agg(user_id ORDER BY user_id) FROM token_blacklist") == [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10],)
    ]
    assert sql(
        pair.recovered, "SELECT count(*) FROM token_blacklist WHERE user_id > 5 AND revoked_at = '2026-01-01 00:00Z'"
    ) == [(5,)]


def test_carrying_twice_brings_nothing_more(pair: Pair) -> None:
    pair.both(TOKENS)
    sql(pair.later, "INSERT INTO token_blacklist VALUES (lpad('6', 32, '0')::uuid, 6)")

    assert [pair.carry().inserted for _ in range(2)] == [1, 0]


def test_numbers_that_were_given_out_are_not_given_out_again(pair: Pair) -> None:
    """Identity, serial, a sequence of one's own and one that counts down: even numbers whose rows were not brought."""
    pair.both(
        """
        CREATE SEQUENCE own; CREATE SEQUENCE down INCREMENT -1;
        CREATE TABLE log (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b serial, c bigint DEFAULT nextval('own'),
                          d int DEFAULT nextval('down'), e int, f int GENERATED ALWAYS AS (e * 2) STORED);
        INSERT INTO log (e) SELECT i FROM generate_series(1, 3) i;
        """
    )
    sql(pair.later, "INSERT INTO log (e) SELECT i FROM generate_series(4, 9) i; DELETE FROM log WHERE a = 9")

    assert pair.carry("log").inserted == 5
    assert sql(pair.recovered, "INSERT INTO log (e) VALUES (0) RETURNING a, b, c, d, f") == [(10, 10, 10, -10, 0)]
    assert sql(pair.recovered, "SELECT f FROM log WHERE a = 8") == [(16,)]


def test_without_a_key_whole_rows_are_compared_as_often_as_they_are_there(pair: Pair) -> None:
    """Columns without an equality of their own, and rows that are there twice."""
    pair.both(
        "CREATE TABLE public.events (body json, n int); INSERT INTO events VALUES ('{\"a\": 1}', 1), (NULL, NULL)"
    )
    sql(pair.later, "INSERT INTO events VALUES ('{\"a\": 1}', 1), ('{\"a\": 1}', 1), ('{\"b\": 2}', 2)")

    carried = pair.carry("events")

    assert (carried.found, carried.there, carried.inserted, carried.key) == (5, 2, 3, [])
    assert any("whole rows" in note for note in carried.notes)
    assert sql(pair.recovered, "SELECT n, count(*) FROM events GROUP BY n ORDER BY n") == [(1, 3), (2, 1), (None, 1)]


def test_a_unique_key_does_where_there_is_no_primary_one(pair: Pair) -> None:
    """Unless it may hold NULL, or covers a part of the rows only."""
    pair.both(
        """
        CREATE TABLE keyed (a text NOT NULL, b int NOT NULL, c int, UNIQUE (c), UNIQUE (a, b));
        CREATE UNIQUE INDEX ON keyed (b) WHERE c IS NULL;
        INSERT INTO keyed VALUES ('x', 1, 1);
        """
    )
    sql(pair.later, "INSERT INTO keyed VALUES ('y', 1, 2)")

    carried = pair.carry("keyed")

    assert (carried.key, carried.there, carried.inserted) == (["a", "b"], 1, 1)


def test_rows_that_meet_another_unique_key_are_left_out_and_counted(pair: Pair) -> None:
    pair.both("CREATE TABLE names (id int PRIMARY KEY, name text UNIQUE); INSERT INTO names VALUES (1, 'one')")
    sql(pair.later, "UPDATE names SET name = 'was one'; INSERT INTO names VALUES (2, 'one'), (3, 'three')")

    carried = pair.carry("names")

    assert (carried.inserted, carried.changed) == (1, 1)
    assert [(skipped.count, skipped.reason) for skipped in carried.skipped] == [
        (1, "a row with the same value of another unique key is there")
    ]


def test_a_table_that_refers_to_itself_comes_whole_or_in_whole_branches(pair: Pair) -> None:
    """A row whose parent is left out is left out too, however deep."""
    pair.both(
        """
        CREATE TABLE owners (id int PRIMARY KEY); INSERT INTO owners VALUES (1);
        CREATE TABLE sessions (id int PRIMARY KEY, renewed int REFERENCES sessions, owner int REFERENCES owners);
        INSERT INTO sessions VALUES (1, NULL, 1);
        """
    )
    sql(pair.later, "INSERT INTO owners VALUES (2)")
    sql(pair.later, "INSERT INTO sessions VALUES (2, 1, 1), (3, 2, 1), (4, 3, 2), (5, 4, 1), (6, 5, 1)")

    carried = pair.carry("sessions")

    assert carried.inserted + sum(skipped.count for skipped in carried.skipped) == 5
    assert sql(pair.recovered, "SELECT id FROM sessions ORDER BY id") == [(1,), (2,), (3,)]
    sql(pair.recovered, "ALTER TABLE sessions VALIDATE CONSTRAINT sessions_owner_fkey")


def test_triggers_do_not_act_a_second_time(pair: Pair) -> None:
    pair.both(
        """
        CREATE TABLE audit (n int); CREATE TABLE acts (id int PRIMARY KEY);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN INSERT INTO public.audit VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER note AFTER INSERT ON acts FOR EACH ROW EXECUTE FUNCTION note();
        """
    )
    sql(pair.later, "INSERT INTO acts VALUES (1)")

    assert pair.carry("acts").inserted == 1
    assert sql(pair.recovered, "SELECT count(*) FROM audit") == [(0,)]


def test_columns_that_came_or_went_are_named(pair: Pair) -> None:
    """What both have is brought."""
    pair.both("CREATE TABLE t (id int PRIMARY KEY, gone text DEFAULT 'default', kept text)")
    sql(
        pair.later,
        "INSERT INTO t VALUES (1, 'lost', 'kept'); ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ADD fresh int",
    )

    carried = pair.carry("t")

    assert carried.notes == [
        "columns that came later and are left out: fresh",
        "columns that were gone later and take their defaults: gone",
    ]
    assert sql(pair.recovered, "SELECT * FROM t") == [(1, "default", "kept")]


def test_a_key_that_changed_is_refused_and_nothing_is_brought(pair: Pair) -> None:
    pair.both("CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL)")
    sql(pair.later, "INSERT INTO t VALUES (1, 2); ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (other)")

    with pytest.raises(RecoveryError, match=r"was given another key later: \(other\) instead of \(id\)"):
        pair.carry("t")


def test_a_row_that_the_table_refuses_takes_all_others_back(pair: Pair) -> None:
    """One transaction, with the server's own words."""
    pair.both("CREATE TABLE t (id int PRIMARY KEY, n int CONSTRAINT small CHECK (n < 10))")
    sql(pair.later, "ALTER TABLE t DROP CONSTRAINT small; INSERT INTO t VALUES (1, 1), (2, 20)")

    with pytest.raises(RecoveryError, match='violates check constraint "small"'):
        pair.carry("t")
    assert sql(pair.recovered, "SELECT count(*) FROM t") == [(0,)]


def test_a_partitioned_table_and_a_key_that_is_checked_late(pair: Pair) -> None:
    pair.both(
        """
        CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
        CREATE TABLE late (id int PRIMARY KEY DEFERRABLE, part int REFERENCES parts);
        """
    )
    sql(pair.later, "INSERT INTO parts VALUES (5, 'a'), (15, 'b'); INSERT INTO late VALUES (1, 5), (2, 15), (3, NULL)")

    assert [pair.carry(name).inserted for name in ("parts", "late")] == [2, 3]
    assert sql(pair.recovered, "SELECT count(*) FROM parts_2") == [(1,)]


def test_a_table_that_is_not_there_on_a_side_is_named_with_the_side(pair: Pair) -> None:
    """Dropped later is the accident itself: an earlier moment can be named."""
    sql(pair.recovered, "CREATE TABLE dropped ()")
    sql(pair.later, "CREATE TABLE fresh ()")

    with pytest.raises(NotFoundError, match="at the later moment") as caught:
        pair.carry("dropped")
    assert "--carry-until" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="at the recovered moment"):
        pair.carry("fresh")


def test_a_name_that_several_schemas_have_needs_its_schema(pair: Pair) -> None:
    """With one, and with odd names, it is found; so is a table in another database."""
    pair.both(
        'CREATE SCHEMA "Other One"; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE "Other One".t (id int PRIMARY KEY)'
    )
    sql(pair.later, 'INSERT INTO "Other One".t VALUES (1)')

    with pytest.raises(UsageError, match=r"Other One\.t, public\.t"):
        pair.carry("t")
    assert pair.carry(f'{pair.database}."Other One".T').inserted == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token_blacklist", TableName("token_blacklist")),
        ("Public.Users", TableName("users", "public")),
        ('auth_db."Big Schema"."x""y.z"', TableName('x"y.z', "Big Schema", "auth_db")),
    ],
)
def test_names_are_read_as_in_sql(text: str, expected: TableName) -> None:
    assert parse_table_name(text) == expected


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a.b.c.d", 'a."b', "a b", '"a"b'])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a table's name"):
        parse_table_name(text)
