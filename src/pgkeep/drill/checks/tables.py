"""Every table read from its first row to its last, as a dump does it, and thrown away; and the catalogs, by a dump of the schema."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgkeep.drill.checks.found import failed, passed
from pgkeep.drill.record import Check
from pgkeep.drill.session import Connection, Copy, Job, reason_of, work_off
from pgkeep.errors import NotFoundError

__all__ = ["check_tables"]

# Unlogged tables come back empty. A foreign table's rows are elsewhere.
_TABLES = """
    SELECT n.nspname, c.relname, c.relkind = 'm', pg_table_size(c.oid) + 1
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE (c.relkind = 'r' OR c.relkind = 'm' AND c.relispopulated) AND c.relpersistence = 'p'
       AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
     ORDER BY pg_table_size(c.oid) DESC
"""
_LARGE_OBJECTS = "SELECT count(*), coalesce(sum(length(data)), 0) FROM pg_largeobject"


@dataclass(frozen=True, slots=True)
class _Table:
    schema: str
    name: str
    is_view: bool

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def check_tables(copy: Copy) -> Check:
    """Read them all, whatever the time."""
    jobs: list[Job[_Table]] = []
    problems: list[str] = []
    for database in copy.databases:
        with copy.connect(database) as connection:
            found = connection.execute(_TABLES).fetchall()
        jobs += [Job(database, _Table(schema, name, view), size) for schema, name, view, size in found]
        problems += _dump_schema(copy, database)
    done = work_off(copy, sorted(jobs, key=lambda job: -job.weight), _read)
    problems += [
        f"table {job.what} of database {job.database} cannot be read: {reason_of(error)}" for job, error in done.errors
    ]
    large = work_off(copy, [Job(database, None) for database in copy.databases], _read_large_objects)
    problems += [
        f"large objects of database {job.database} cannot be read: {reason_of(error)}" for job, error in large.errors
    ]
    rows = sum(count for _, count in done.results)
    objects = sum(count for _, count in large.results)
    if problems:
        remedy = "find out since when: pgkeep verify, then a drill of an older backup; what the source says: SELECT from that table there"
        return failed("tables", problems, remedy, len(jobs), "tables")
    detail = f"{len(jobs):,} tables in {len(copy.databases)} databases, {rows:,} rows"
    return passed("tables", detail + (f", {objects:,} pages of large objects" if objects else ""), len(jobs), "tables")


def _read(connection: Connection, table: _Table) -> int:
    """The server writes the rows to nowhere by itself: none of them crosses a socket."""
    name: sql.Composable = sql.Identifier(table.schema, table.name)
    if table.is_view:
        name = sql.SQL("(SELECT * FROM {})").format(name)
    return connection.execute(sql.SQL("COPY {} TO '/dev/null'").format(name)).rowcount


def _read_large_objects(connection: Connection, _: None) -> int:
    row = connection.execute(_LARGE_OBJECTS).fetchone()
    assert row is not None
    return int(row[0])


def _dump_schema(copy: Copy, database: str) -> list[str]:
    try:
        answer = copy.binaries.run("pg_dump", "--schema-only", "--file=/dev/null", f"--dbname={copy.dsn_of(database)}")
    except NotFoundError:
        # the package of the server's programs may leave the client's out
        return []
    if answer.returncode == 0:
        return []
    said = " ".join(answer.stderr.split()).removeprefix("pg_dump: ")
    return [f"the schema of database {database} cannot be dumped: {said}"]
