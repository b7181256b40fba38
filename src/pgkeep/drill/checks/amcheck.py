"""Tables and B-tree indexes looked through by amcheck: the questions of ``pg_amcheck``, in parts, as long as there is time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from pgkeep.drill.checks.found import coverage, failed, passed, skipped
from pgkeep.drill.record import Check
from pgkeep.drill.session import Connection, Copy, Job, reason_of, work_off

__all__ = ["check_amcheck"]

_SCHEMA = "pgkeep_drill"
_PART = 16384
"""Blocks of a table that are looked through at once: 128 MiB."""

_RELATIONS = """
    SELECT c.oid, format('%s.%s', n.nspname, c.relname), c.relkind = 'i',
           pg_relation_size(c.oid, 'main') / current_setting('block_size')::int, pg_relation_size(c.oid, 'main') + 1
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam
      LEFT JOIN pg_index i ON i.indexrelid = c.oid
     WHERE c.relpersistence = 'p'
       AND (c.relkind IN ('r', 'm', 't') AND m.amname = 'heap' OR c.relkind = 'i' AND m.amname = 'btree' AND i.indisvalid AND i.indisready)
"""
_INSTALLED = """
    SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = %s
"""


@dataclass(frozen=True, slots=True)
class _Part:
    oid: int
    name: str
    is_index: bool
    start: int
    end: int


def install(connection: Connection, extension: str) -> str | None:
    """Create an extension in the copy; the schema that it is in, None where this server does not bring it."""
    row = connection.execute(_INSTALLED, (extension,)).fetchone()
    if row is None:
        if connection.execute("SELECT FROM pg_available_extensions WHERE name = %s", (extension,)).fetchone() is None:
            return None
        schema = sql.Identifier(_SCHEMA)
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
        connection.execute(sql.SQL("CREATE EXTENSION {} SCHEMA {}").format(sql.Identifier(extension), schema))
        return _SCHEMA
    return str(row[0])


def check_amcheck(copy: Copy) -> Check:
    """In random order by the drill's seed, within its budget; everything, and every index against its table, where it is None."""
    jobs: list[Job[_Part]] = []
    schemas: dict[str, str] = {}
    for database in copy.databases:
        with copy.connect(database) as connection:
            schema = install(connection, "amcheck")
            if schema is None:
                return skipped("amcheck", "the server's programs here come without amcheck", _contrib(copy))
            schemas[database] = schema
            jobs += [
                Job(database, part, weight) for row in connection.execute(_RELATIONS) for part, weight in _parts(row)
            ]
    jobs.sort(key=lambda job: (job.database, job.what.oid, job.what.start))
    random.Random(copy.seed).shuffle(jobs)  # noqa: S311 - it is to be repeated

    def look(connection: Connection, part: _Part) -> str | None:
        schema = sql.Identifier(schemas[connection.info.dbname])
        return _index(connection, schema, part, copy) if part.is_index else _heap(connection, schema, part)

    done = work_off(copy, jobs, look, limited=True)
    problems = [f"{_kind(job)} of database {job.database} is damaged: {said}" for job, said in done.results if said]
    problems += [
        f"{_kind(job)} of database {job.database} is damaged: {reason_of(error)}" for job, error in done.errors
    ]
    looked = {(job.database, job.what.oid) for job, _ in (*done.results, *done.errors)}
    every = {(job.database, job.what.oid) for job in jobs}
    if problems:
        remedy = "an index: REINDEX it on the source; a table: pgkeep drill --backup of an older one says since when it is so"
        return failed("amcheck", problems, remedy, len(looked), "relations", sampled=done.share)
    detail = f"{len(looked):,} of {len(every):,} relations{coverage(done)}"
    return passed("amcheck", detail, len(looked), "relations", sampled=done.share)


def _parts(row: tuple[Any, ...]) -> list[tuple[_Part, int]]:
    oid, name, is_index, blocks, size = row
    if is_index or blocks <= _PART:
        return [(_Part(oid, name, is_index, 0, max(blocks - 1, 0)), size)]
    starts = range(0, blocks, _PART)
    return [(_Part(oid, name, False, start, min(start + _PART, blocks) - 1), size // len(starts)) for start in starts]


def _heap(connection: Connection, schema: sql.Identifier, part: _Part) -> str | None:
    # an empty table has no block 0 that could be named
    window = sql.SQL(", startblock => {}, endblock => {}").format(part.start, part.end) if part.end else sql.SQL("")
    query = sql.SQL(
        "SELECT blkno, offnum, msg FROM {}.verify_heapam({}::oid::regclass, on_error_stop => false, check_toast => true{}) LIMIT 3"
    )
    rows = connection.execute(query.format(schema, part.oid, window)).fetchall()
    return "; ".join(f"block {block}, item {item}: {said}" for block, item, said in rows) or None


def _index(connection: Connection, schema: sql.Identifier, part: _Part, copy: Copy) -> str | None:
    query = sql.SQL("SELECT {}.bt_index_check({}::oid::regclass, {})")
    connection.execute(query.format(schema, part.oid, copy.budget is None))
    return None


def _kind(job: Job[_Part]) -> str:
    return f"{'index' if job.what.is_index else 'table'} {job.what.name}"


def _contrib(copy: Copy) -> str:
    return f"install the package that brings PostgreSQL's contributed modules for version {copy.major} (postgresql-contrib)"
