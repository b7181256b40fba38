"""Pages that change between two backups: rows updated at random until so many pages of the cluster differ."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import numpy as np
import numpy.typing as npt
import psycopg

from bench.dataset import DATABASE
from pgkeep.postgres.server import Server
from pgkeep.repository.codec import compress
from pgkeep.repository.contents import Parameters

PAGE_SIZE = 8192
# A column of each table that its service changes.
_COLUMNS: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("users", "last_login_at = now(), failed_logins = (failed_logins + 1) %% 5"),
    ("platform_accounts", "profile = profile || jsonb_build_object('seen', now())"),
    ("token_blacklist", "reason = 'rotated'"),
    ("audit_logs", "details = details || jsonb_build_object('checked', now())"),
)
# A row that moves to another page changes a page of each index too: about so many pages a row, to begin with.
_FIRST_GUESS = 3.0
_ROWS_A_PAGE = 12


@dataclass(frozen=True, slots=True)
class Changed:
    """``pages`` of the ``total`` pages of relations differ; together they compress to ``compressed`` bytes."""

    pages: int
    total: int
    compressed: int

    @property
    def share(self) -> float:
        return self.pages / self.total


class PageChanger:
    """Updates rows of all tables, chosen at random pages, and tells which pages have changed. Learns how many a row takes."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)
        self._pages_a_row = _FIRST_GUESS

    def change(self, share: float) -> Changed:
        """Change about this share of all pages, and see to it that they are on disk."""
        with psycopg.connect(self._server.dsn(DATABASE), autocommit=True) as connection:
            before = _lsn(connection)
            rows = self._update(connection, round(share * _relation_pages(self._server) / self._pages_a_row))
            connection.execute("CHECKPOINT")
        changed = self._look(before)
        self._pages_a_row = changed.pages / max(rows, 1)
        return changed

    def _update(self, connection: psycopg.Connection, count: int) -> int:
        """Update so many rows; each is chosen by a page that is as likely as any other of the tables."""
        tables = [(table, pages) for parent, _ in _COLUMNS for table, pages in _partitions(connection, parent)]
        assignments = {table: words for parent, words in _COLUMNS for table, _ in _partitions(connection, parent)}
        rows = 0
        for table, pages in tables:
            wanted = round(count * pages / sum(size for _, size in tables))
            for attempt in range(4):
                # rows that moved leave their places empty, so that some of the first choices are missed
                chosen = [
                    f"({self._random.randrange(pages)},{self._random.randint(1, _ROWS_A_PAGE)})"
                    for _ in range(wanted if attempt == 0 else wanted // 4)
                ]
                statement = psycopg.sql.SQL("UPDATE {} SET {} WHERE ctid = ANY(%s::tid[])").format(
                    psycopg.sql.Identifier(table), psycopg.sql.SQL(assignments[table])
                )
                done = connection.execute(statement, (chosen,)).rowcount
                wanted -= done
                rows += done
                if wanted <= 0:
                    break
        return rows

    def _look(self, since: int) -> Changed:
        """Find the pages whose LSN is after ``since``, and compress them, a cell's size at a time."""
        room, level = Parameters().cell_size, Parameters().compression_level
        pages = total = compressed = 0
        waiting = bytearray()
        for path in relation_files(self._server.data_directory):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                rows = np.frombuffer(mapped, np.uint8, len(mapped) // PAGE_SIZE * PAGE_SIZE).reshape(-1, PAGE_SIZE)
                numbers = np.flatnonzero(_lsns(rows) > since)
                total, pages = total + len(rows), pages + len(numbers)
                for number in numbers.tolist():
                    waiting += rows[number].tobytes()
                    if len(waiting) >= room:
                        compressed += len(compress(bytes(waiting), level))
                        waiting.clear()
                del rows
        return Changed(pages, total, compressed + (len(compress(bytes(waiting), level)) if waiting else 0))


def scribble(data_directory: Path, share: float, seed: int) -> int:
    """Overwrite this share of all pages of relations with other bytes, in place; returns how many pages."""
    chance = np.random.default_rng(seed)
    count = 0
    for path in relation_files(data_directory):
        size = path.stat().st_size // PAGE_SIZE
        numbers = np.flatnonzero(chance.random(size) < share)
        if len(numbers):
            with path.open("r+b") as file:
                for number in numbers.tolist():
                    file.seek(number * PAGE_SIZE + 64)
                    file.write(chance.bytes(PAGE_SIZE - 64))
        count += len(numbers)
    return count


def relation_files(data_directory: Path) -> Iterator[Path]:
    """The main forks of relations, segment by segment, that are not empty."""
    for path in sorted((data_directory / "base").rglob("*")):
        if path.name.replace(".", "").isdigit() and path.is_file() and path.stat().st_size >= PAGE_SIZE:
            yield path


def _relation_pages(server: Server) -> int:
    return sum(path.stat().st_size for path in relation_files(server.data_directory)) // PAGE_SIZE


def _lsns(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Each page's LSN: the high half, then the low half (src/include/storage/bufpage.h, PageXLogRecPtr)."""
    halves = np.ascontiguousarray(rows[:, :8]).view("<u4").astype(np.uint64)
    lsns: npt.NDArray[np.uint64] = halves[:, 0] << np.uint64(32) | halves[:, 1]
    return lsns


def _lsn(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def _partitions(connection: psycopg.Connection, table: str) -> list[tuple[str, int]]:
    """A table, or its partitions, with their sizes in pages; empty ones left out."""
    rows = connection.execute(
        "SELECT relid::regclass::text, pg_relation_size(relid) / 8192 FROM pg_partition_tree(%s::regclass) WHERE isleaf",
        (table,),
    ).fetchall()
    rows = rows or connection.execute("SELECT %s, pg_relation_size(%s::regclass) / 8192", (table, table)).fetchall()
    return [(str(name), int(pages)) for name, pages in rows if pages]
