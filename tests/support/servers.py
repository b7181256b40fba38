"""Throw-away servers for tests, and the programs that judge them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from pgkeep.postgres.account import run_as

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pgkeep.postgres.server import Server, ThrowawayServer

__all__ = ["MAJORS", "TEST_SETTINGS", "MakeServer", "dump_all", "run_program", "sql"]

MAJORS = (15, 17, 18)
# Tests crash processes, not machines: without fsync they run several times faster.
TEST_SETTINGS: dict[str, str | int | bool] = {"fsync": False, "shared_buffers": "32MB", "max_connections": 50}


class MakeServer(Protocol):
    """The ``make_server`` fixture: a running server of the test's own, removed after the test."""

    def __call__(
        self,
        major: int,
        *,
        checksums: bool = True,
        wal_segment_size: int = 16,
        settings: Mapping[str, str | int | bool] | None = None,
        hba: str | None = None,
        loopback: bool = False,
        initdb_options: Sequence[str] = (),
    ) -> ThrowawayServer:
        """``wal_segment_size`` in MiB; ``settings`` on top of TEST_SETTINGS; ``hba`` replaces ``pg_hba.conf`` (default: trust)."""


def sql(dsn: str, query: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """Run a query, or several without parameters, in autocommit; the rows of the last, none where it returns none."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, parameters)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def run_program(server: Server, name: str, *arguments: str | Path) -> str:
    """Run a program of the server's version as the server's account; its output, or AssertionError with what it said."""
    answer = run_as(server.account, [server.binaries.path(name), *arguments], timeout=250)
    assert answer.returncode == 0, (
        f"{name} {arguments} ended with {answer.returncode}:\n{answer.stdout}\n{answer.stderr}"
    )
    return answer.stdout


def dump_all(server: Server) -> str:
    """What ``pg_dumpall`` says of a server, without the random key that newer versions put around it."""
    text = run_program(server, "pg_dumpall", f"--dbname={server.dsn()}")
    return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))
