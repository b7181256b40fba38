"""A cluster of any size in the time it takes to write it: one table whose pages are copies of one page with other bytes in its rows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg

from bench.dataset import DATABASE, FIRST_WITH_SUMMARIES, WORK_SETTINGS, open_server
from pgkeep.postgres.account import give_to
from pgkeep.postgres.server import Server

PAGE_SIZE = 8192
SEGMENT_SIZE = 1 << 30
# A byte that stands in a row's payload and nowhere else on the page; a third of them are replaced by noise, so that the pages
# compress to about a third, as the authentication service's do.
_MARK = 0xAA
_PAYLOAD = 200
_NOISE = 66
_PAGES_AT_ONCE = 1024


@contextmanager
def filled_server(directory: Path, size: int, major: int) -> Iterator[Server]:
    """A running server with a table of about ``size`` bytes, without page checksums, which the copies would not have."""
    server = open_server(directory, major)
    server.initdb(checksums=False)
    with (server.data_directory / "postgresql.conf").open("a") as configuration:
        configuration.write(WORK_SETTINGS)
        if major >= FIRST_WITH_SUMMARIES:
            configuration.write("summarize_wal = on\n")
    with server:
        server.start()
        path = _make_table(server)
        server.stop()
        _fill(server, path, size)
        os.sync()
        server.start()
        yield server


def change_rows(server: Server, share: float, seed: int) -> None:
    """Update a row on this share of the pages, chosen at random, and have them written."""
    chance = random.Random(seed)
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as connection:
        row = connection.execute("SELECT pg_relation_size('filler') / 8192").fetchone()
        assert row is not None
        pages = int(row[0])
        for _ in range(100):
            chosen = [f"({chance.randrange(pages)},{chance.randint(1, 20)})" for _ in range(round(pages * share / 100))]
            connection.execute("UPDATE filler SET number = number + 1 WHERE ctid = ANY(%s::tid[])", (chosen,))
        connection.execute("CHECKPOINT")


def _make_table(server: Server) -> Path:
    """The table with its first pages; returns its file."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(DATABASE)))
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as connection:
        connection.execute("CREATE TABLE filler (number bigint, payload bytea STORAGE PLAIN)")
        connection.execute(
            "INSERT INTO filler SELECT n, %s FROM generate_series(1, 200) AS n", (bytes([_MARK]) * _PAYLOAD,)
        )
        connection.execute("VACUUM (FREEZE) filler")
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT pg_relation_filepath('filler')").fetchone()
        assert row is not None
        return server.data_directory / str(row[0])


def _fill(server: Server, path: Path, size: int) -> None:
    """Write the table's segments full of copies of its first page."""
    page = np.frombuffer(path.read_bytes()[:PAGE_SIZE], np.uint8)
    marks = np.flatnonzero(page == _MARK)
    noise = marks[np.arange(len(marks)) % _PAYLOAD < _NOISE]
    pages = np.tile(page, (_PAGES_AT_ONCE, 1))
    chance = np.random.default_rng(1)
    for segment in range(-(-size // SEGMENT_SIZE)):
        place = path if segment == 0 else path.with_name(f"{path.name}.{segment}")
        wanted = min(SEGMENT_SIZE, size - segment * SEGMENT_SIZE)
        with place.open("wb") as file:
            for _ in range(wanted // (_PAGES_AT_ONCE * PAGE_SIZE)):
                pages[:, noise] = chance.integers(0, 256, (_PAGES_AT_ONCE, len(noise)), np.uint8)
                file.write(pages.data)
        give_to(server.account, place)
        place.chmod(0o600)
