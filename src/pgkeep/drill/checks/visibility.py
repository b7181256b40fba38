"""The visibility map against the tables: a page that is wrongly marked as all-visible gives wrong answers to index-only scans."""

from __future__ import annotations

import random

from psycopg import sql

from pgkeep.drill.checks.amcheck import install
from pgkeep.drill.checks.found import coverage, failed, passed, skipped
from pgkeep.drill.record import Check
from pgkeep.drill.session import Connection, Copy, Job, reason_of, work_off

__all__ = ["check_visibility"]

_TABLES = """
    SELECT c.oid, format('%s.%s', n.nspname, c.relname), pg_relation_size(c.oid) + 1
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam
     WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' AND m.amname = 'heap' AND pg_relation_size(c.oid, 'vm') > 0
     ORDER BY c.oid
"""
_REMEDY = (
    "on the source, where its own map is wrong too: SELECT pg_truncate_visibility_map('TABLE'), then VACUUM TABLE;"
    " then a full backup: pgkeep backup --full"
)


def check_visibility(copy: Copy) -> Check:
    """``pg_check_visible`` and ``pg_check_frozen`` of each table that has a map, in random order, within the drill's budget."""
    jobs: list[Job[tuple[int, str]]] = []
    schemas: dict[str, str] = {}
    for database in copy.databases:
        with copy.connect(database) as connection:
            schema = install(connection, "pg_visibility")
            if schema is None:
                remedy = f"install PostgreSQL's contributed modules for version {copy.major} (postgresql-contrib)"
                return skipped("visibility map", "the server's programs here come without pg_visibility", remedy)
            schemas[database] = schema
            jobs += [Job(database, (oid, name), size) for oid, name, size in connection.execute(_TABLES)]
    random.Random(copy.seed).shuffle(jobs)  # noqa: S311 - it is to be repeated

    def look(connection: Connection, table: tuple[int, str]) -> str | None:
        schema = sql.Identifier(schemas[connection.info.dbname])
        for function, word in (("pg_check_visible", "all-visible"), ("pg_check_frozen", "all-frozen")):
            query = sql.SQL("SELECT count(*), min(found::text) FROM {}.{}({}::oid::regclass) AS found")
            row = connection.execute(query.format(schema, sql.Identifier(function), table[0])).fetchone()
            assert row is not None
            if row[0]:
                return f"{row[0]} rows that are not {word} lie on pages that its visibility map calls so, the first at {row[1]}"
        return None

    done = work_off(copy, jobs, look, limited=True)
    problems = [
        f"the visibility map of table {job.what[1]} of database {job.database} is stale: {said}"
        for job, said in done.results
        if said
    ]
    problems += [
        f"the visibility map of table {job.what[1]} of database {job.database} cannot be checked: {reason_of(error)}"
        for job, error in done.errors
    ]
    looked = len(done.results) + len(done.errors)
    if problems:
        return failed("visibility map", problems, _REMEDY, looked, "tables", sampled=done.share)
    return passed("visibility map", f"{looked:,} tables{coverage(done)}", looked, "tables", sampled=done.share)
