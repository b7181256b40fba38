"""Libraries that functions need: a cluster that was restored where one is missing works until the first call."""

from __future__ import annotations

from psycopg import sql

from pgkeep.drill.checks.found import failed, passed
from pgkeep.drill.record import Check
from pgkeep.drill.session import Connection, Copy, Job, reason_of, work_off

__all__ = ["check_extensions"]

_LIBRARIES = """
    SELECT p.probin, coalesce(min(e.extname), '')
      FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c'
      LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
      LEFT JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
     WHERE p.probin IS NOT NULL GROUP BY p.probin ORDER BY p.probin
"""
_EXTENSIONS = "SELECT count(*) FROM pg_extension"


def check_extensions(copy: Copy) -> Check:
    """Load each library that a function of C names, in each database."""
    jobs, extensions = [], 0
    for database in copy.databases:
        with copy.connect(database) as connection:
            row = connection.execute(_EXTENSIONS).fetchone()
            extensions += int(row[0]) if row is not None else 0
            jobs += [Job(database, (library, extension)) for library, extension in connection.execute(_LIBRARIES)]
    done = work_off(copy, jobs, _load)
    problems = [
        f"{f'extension {job.what[1]}' if job.what[1] else f'library {job.what[0]}'} of database {job.database}"
        f" cannot be loaded: {reason_of(error)}"
        for job, error in done.errors
    ]
    if problems:
        remedy = (
            f"install its package for PostgreSQL {copy.major} on this machine, and wherever a restore may have to run"
        )
        return failed("extensions", problems, remedy, len(jobs), "libraries")
    detail = f"{extensions:,} extensions in {len(copy.databases)} databases, their {len(jobs):,} libraries load"
    return passed("extensions", detail, len(jobs), "libraries")


def _load(connection: Connection, library: tuple[str, str]) -> None:
    connection.execute(sql.SQL("LOAD {}").format(sql.Literal(library[0])))
