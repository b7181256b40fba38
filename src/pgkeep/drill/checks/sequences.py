"""Sequences ahead of the columns that they feed: one that is behind gives out keys a second time."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgkeep.drill.checks.found import failed, passed
from pgkeep.drill.record import Check
from pgkeep.drill.session import Connection, Copy, Job, reason_of, work_off

__all__ = ["check_sequences"]

# Those that a column owns, and those that a column's default calls.
_SEQUENCES = """
    SELECT DISTINCT sn.nspname, s.relname, n.nspname, c.relname, a.attname, q.seqincrement > 0, pg_relation_size(c.oid) + 1
      FROM pg_sequence q JOIN pg_class s ON s.oid = q.seqrelid JOIN pg_namespace sn ON sn.oid = s.relnamespace
      JOIN pg_depend d ON (d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
                           AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0)
                       OR (d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid)
      LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
      JOIN pg_class c ON c.oid = coalesce(f.adrelid, d.refobjid)
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = coalesce(f.adnum, d.refobjsubid)
     WHERE a.atttypid IN (20, 21, 23) AND NOT q.seqcycle AND s.relpersistence = 'p' AND c.relkind IN ('r', 'p')
"""


@dataclass(frozen=True, slots=True)
class _Fed:
    sequence: tuple[str, str]
    table: tuple[str, str]
    column: str
    ascending: bool


def check_sequences(copy: Copy) -> Check:
    """The farthest value of each column against the sequence's last one."""
    jobs = []
    for database in copy.databases:
        with copy.connect(database) as connection:
            for schema, name, in_schema, table, column, ascending, size in connection.execute(_SEQUENCES):
                jobs.append(Job(database, _Fed((schema, name), (in_schema, table), column, ascending), size))
    done = work_off(copy, jobs, _look)
    problems = [f"{said} (database {job.database})" for job, said in done.results if said]
    problems += [
        f"sequence {'.'.join(job.what.sequence)} of database {job.database} cannot be read: {reason_of(error)}"
        for job, error in done.errors
    ]
    if problems:
        remedy = (
            "if it is so on the source too, set it there: SELECT setval('SEQUENCE', (SELECT max(COLUMN) FROM TABLE))"
        )
        return failed("sequences", problems, remedy, len(jobs), "sequences")
    detail = f"{len(jobs):,} sequences are ahead of their columns" if jobs else "no sequence feeds a column"
    return passed("sequences", detail, len(jobs), "sequences")


def _look(connection: Connection, fed: _Fed) -> str | None:
    query = sql.SQL("SELECT {}({}), (SELECT last_value FROM {}) FROM {}").format(
        sql.SQL("max" if fed.ascending else "min"),
        sql.Identifier(fed.column),
        sql.Identifier(*fed.sequence),
        sql.Identifier(*fed.table),
    )
    row = connection.execute(query).fetchone()
    assert row is not None
    farthest, last = row
    if farthest is None or (farthest <= last if fed.ascending else farthest >= last):
        return None
    return f"sequence {'.'.join(fed.sequence)} stands at {last}, behind {'.'.join(fed.table)}.{fed.column}, which has {farthest}"
