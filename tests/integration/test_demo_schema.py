"""The demo's schema, load and client on real servers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pgkeep.demo import schema
from pgkeep.demo.workload import AUDITS_PER_USER, Client, Commit, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.server import ThrowawayServer

CONTENT = SQL("SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {} t")


@pytest.fixture
def new_database(server: ThrowawayServer) -> Iterator[Callable[[str], str]]:
    """Makes databases for this test alone, and answers with their connection strings."""
    made = []
    with psycopg.connect(server.dsn(), autocommit=True) as connection:

        def make(name: str) -> str:
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
            made.append(name)
            return server.dsn(name)

        yield make
        for name in made:
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def content(dsn: str) -> dict[str, object]:
    with psycopg.connect(dsn) as connection:
        return {name: connection.execute(CONTENT.format(Identifier(name))).fetchone() for name in schema.TABLE_NAMES}


def test_a_load_fills_every_table_the_same_way_however_many_processes_do_it(
    new_database: Callable[[str], str],
) -> None:
    alone, together = new_database("alone"), new_database("together")

    load(alone, users=2_000, seed=7)
    load(together, users=2_000, seed=7, jobs=2)

    found = content(alone)
    assert found == content(together)
    assert [row[0] for row in found.values() if isinstance(row, tuple)] == [
        2_000,
        2_000,
        4_000,
        AUDITS_PER_USER * 2_000,
    ]


def test_the_client_records_exactly_what_it_committed(new_database: Callable[[str], str]) -> None:
    dsn = new_database("traffic")
    load(dsn, users=100, seed=3)

    with Client(dsn, rate=500, seed=3) as client:
        client.wait_for(60)
    commits = client.committed()

    with psycopg.connect(dsn) as connection:
        audits = connection.execute(
            "SELECT action, user_id, id, created_at FROM audit_logs WHERE id > %s ORDER BY id", (100 * AUDITS_PER_USER,)
        ).fetchall()
        tokens = connection.execute(
            "SELECT count(*) FROM token_blacklist WHERE jti = ANY(%s)", (_tokens(commits),)
        ).fetchone()
    assert [row[:3] for row in audits] == [(commit.action, commit.user_id, commit.audit_id) for commit in commits]
    assert {commit.action for commit in commits} == {"signup", "login", "token.revoke"}
    assert tokens == (len(_tokens(commits)),)
    assert all(
        timedelta() <= commit.committed_at - row[3] < timedelta(minutes=1)
        for commit, row in zip(commits, audits, strict=True)
    )


def test_the_client_works_on_an_empty_service(new_database: Callable[[str], str]) -> None:
    dsn = new_database("empty")
    with psycopg.connect(dsn) as connection:
        schema.create(connection)

    with Client(dsn, rate=500) as client:
        client.wait_for(5)

    assert client.committed()[0].action == "signup"


def test_the_client_keeps_to_its_rate(new_database: Callable[[str], str]) -> None:
    dsn = new_database("paced")
    load(dsn, users=10)

    with Client(dsn, rate=20) as client:
        client.wait_for(11)
    commits = client.committed()

    assert commits[10].committed_at - commits[0].committed_at > timedelta(seconds=0.4)


def test_a_client_that_lost_its_server_says_so_when_stopped(new_database: Callable[[str], str]) -> None:
    dsn = new_database("lost")
    load(dsn, users=10)
    client = Client(dsn, rate=100)
    client.start()
    client.wait_for(1)

    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'auth-service'"
        )
    with pytest.raises(psycopg.OperationalError):
        client.wait_for(10_000)

    with pytest.raises(psycopg.OperationalError):
        client.stop()


def _tokens(commits: list[Commit]) -> list[object]:
    return [commit.jti for commit in commits if commit.jti]
