"""Any history: whatever a cluster goes through, and however it is backed up meanwhile, each backup is the cluster at its moment.

Hypothesis makes up histories of changes, crashes and backups on a real server. After each backup the server is stopped, and
its relations are copied as plain files; in the end the backups are restored in random order, and each must equal its copy,
page by page, and be without a flaw that PostgreSQL's own programs find. `PGKEEP_HISTORIES` sets how many histories there are for
each version.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pgkeep.postgres.server import Server, ThrowawayServer
from support.incremental import expect_sound, quiet_settings
from support.jobs import SMALL, backup, new_repository, restore, server_place, wait_until_recovered
from support.pages import differences
from support.servers import run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgkeep.postgres.binaries import ServerBinaries

_HISTORIES = int(os.environ.get("PGKEEP_HISTORIES", "1"))
_MOST_BACKUPS = 5

_INDEXES = {
    "btree": "btree (id)",
    "text": "btree (filler)",
    "hash": "hash (id)",
    "gist": "gist (int4range(least(id, 0), greatest(id, 0)))",
    "gin": "gin (to_tsvector('simple', filler))",
    "spgist": "spgist (filler)",
    "brin": "brin (id)",
}


@dataclass(slots=True)
class _Table:
    name: str
    database: str
    indexes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A backup, the copy that it must equal, and where its tablespaces were."""

    id: str
    copy: Path
    tablespaces: dict[str, str]


class History(RuleBasedStateMachine):
    """A server, what it has, and what was backed up of it."""

    binaries: ClassVar[ServerBinaries]
    root: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.place = Path(tempfile.mkdtemp(dir=self.root))
        self.place.chmod(0o755)
        self.stack.callback(shutil.rmtree, self.place)
        self.server = self.stack.enter_context(ThrowawayServer(self.binaries, parent=self.place))
        self.server.initdb()
        self.settings = quiet_settings(self.binaries.major)
        self.server.start(self.settings)
        self.repository = new_repository(self.place / "repository", SMALL)
        self.tables: list[_Table] = []
        self.databases = ["postgres"]
        self.tablespaces: dict[str, Path] = {}
        self.taken: list[_Taken] = []
        self.numbers = iter(range(1, 1000))
        self.chance = random.Random(0)

    @initialize(mode=st.sampled_from(["stream", "local"]), seed=st.integers(0, 2**32))
    def begin(self, mode: str, seed: int) -> None:
        """A table, and a backup to build on."""
        self.chance.seed(seed)
        self.create_table(0, 0, 400)
        self.back_up(mode, full=False, deep_check=0)

    def _sql(self, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        return sql(self.server.dsn(database), query)

    def _on(self, number: int, query: str) -> None:
        """Run a statement on a table, any of those there are."""
        table = self.tables[number % len(self.tables)]
        self._sql(query.format(t=table.name), table.database)

    @rule(database=st.integers(0, 9), tablespace=st.integers(0, 3), rows=st.integers(0, 1500))
    def create_table(self, database: int, tablespace: int, rows: int) -> None:
        name, where = f"t{next(self.numbers)}", self.databases[database % len(self.databases)]
        spaces = ["pg_default", *self.tablespaces]
        self._sql(
            f"CREATE TABLE {name} (id int, filler text) WITH (autovacuum_enabled = off)"
            f" TABLESPACE {spaces[tablespace % len(spaces)]}",
            where,
        )
        self.tables.append(_Table(name, where))
        self.insert(len(self.tables) - 1, rows)

    @rule(table=st.integers(0, 9), rows=st.integers(1, 1500))
    def insert(self, table: int, rows: int) -> None:
        length = self.chance.choice([10, 100, 900])
        self._on(
            table, f"INSERT INTO {{t}} SELECT i, rpad(md5(i::text), {length}, 'x') FROM generate_series(1, {rows}) i"
        )

    @rule(table=st.integers(0, 9), rows=st.integers(100, 600))
    def copy_in(self, table: int, rows: int) -> None:
        """The table is extended by many pages at once, some of which stay unused."""
        chosen = self.tables[table % len(self.tables)]
        with (
            psycopg.connect(self.server.dsn(chosen.database), autocommit=True) as connection,
            connection.cursor() as cursor,
            cursor.copy(f"COPY {chosen.name} FROM STDIN") as copy,
        ):
            for number in range(rows):
                copy.write_row((number, "y" * 900))

    @rule(table=st.integers(0, 9), step=st.integers(1, 60), commit=st.booleans())
    def update(self, table: int, step: int, commit: bool) -> None:
        end = "COMMIT" if commit else "ROLLBACK"
        self._on(table, f"BEGIN; UPDATE {{t}} SET id = -id WHERE id % {step} = 0; {end}")

    @rule(table=st.integers(0, 9), step=st.integers(1, 30))
    def delete(self, table: int, step: int) -> None:
        self._on(table, f"DELETE FROM {{t}} WHERE id % {step} = 0")

    @rule(table=st.integers(0, 9), share=st.integers(0, 100), refill=st.booleans())
    def cut_off(self, table: int, share: int, refill: bool) -> None:
        """Rows at the end go, and VACUUM gives their pages back; the next rows may take them again."""
        self._on(
            table,
            "DELETE FROM {t} WHERE (ctid::text::point)[0] >="
            f" pg_relation_size('{{t}}') / current_setting('block_size')::int * {share} / 100",
        )
        self._on(table, "VACUUM {t}")
        if refill:
            self.copy_in(table, 150)

    @rule(table=st.integers(0, 9), how=st.sampled_from(["", "(FREEZE)", "(FULL)"]))
    def vacuum(self, table: int, how: str) -> None:
        self._on(table, f"VACUUM {how} {{t}}")

    @rule(table=st.integers(0, 9), refill=st.booleans())
    def truncate(self, table: int, refill: bool) -> None:
        self._on(table, "TRUNCATE {t}")
        if refill:
            self.insert(table, 300)

    @rule(table=st.integers(0, 9), kind=st.sampled_from(sorted(_INDEXES)))
    def create_index(self, table: int, kind: str) -> None:
        chosen = self.tables[table % len(self.tables)]
        name = f"i{next(self.numbers)}"
        self._sql(f"CREATE INDEX {name} ON {chosen.name} USING {_INDEXES[kind]}", chosen.database)
        chosen.indexes.append(name)

    @rule(table=st.integers(0, 9), how=st.sampled_from(["DROP INDEX", "REINDEX INDEX"]))
    def drop_or_rebuild_index(self, table: int, how: str) -> None:
        chosen = self.tables[table % len(self.tables)]
        if chosen.indexes:
            self._sql(f"{how} {chosen.indexes[-1]}", chosen.database)
            if how == "DROP INDEX":
                chosen.indexes.pop()

    @rule(table=st.integers(0, 9), how=st.sampled_from(["LOGGED", "UNLOGGED"]))
    def change_persistence(self, table: int, how: str) -> None:
        self._on(table, f"ALTER TABLE {{t}} SET {how}")

    @precondition(lambda self: len(self.tables) > 1)
    @rule(table=st.integers(0, 9))
    def drop_table(self, table: int) -> None:
        chosen = self.tables.pop(table % len(self.tables))
        self._sql(f"DROP TABLE {chosen.name}", chosen.database)

    @precondition(lambda self: len(self.databases) < 3)
    @rule(strategy=st.sampled_from(["wal_log", "file_copy"]), template=st.integers(0, 9))
    def create_database(self, strategy: str, template: int) -> None:
        name, origin = f"d{next(self.numbers)}", self.databases[template % len(self.databases)]
        # nobody may be connected to the template
        self._sql(f"CREATE DATABASE {name} TEMPLATE {origin} STRATEGY {strategy}", "template1")
        self.databases.append(name)
        self.tables += [_Table(table.name, name, [*table.indexes]) for table in self.tables if table.database == origin]

    @precondition(lambda self: len(self.databases) > 1)
    @rule()
    def drop_database(self) -> None:
        name = self.databases.pop()
        self._sql(f"DROP DATABASE {name} WITH (FORCE)")
        self.tables = [table for table in self.tables if table.database != name]
        if not self.tables:
            self.create_table(0, 0, 100)

    @precondition(lambda self: len(self.tablespaces) < 2)
    @rule()
    def create_tablespace(self) -> None:
        name = f"s{next(self.numbers)}"
        self.tablespaces[name] = server_place(self.place / name)
        self._sql(f"CREATE TABLESPACE {name} LOCATION '{self.tablespaces[name]}'")

    @precondition(lambda self: self.tablespaces)
    @rule(tablespace=st.integers(0, 3))
    def drop_tablespace(self, tablespace: int) -> None:
        """What is in it moves away first."""
        name = sorted(self.tablespaces)[tablespace % len(self.tablespaces)]
        for database in self.databases:
            if database != "postgres" and not self._move_database(database, "pg_default"):
                return
            for kind in ("TABLE", "INDEX"):
                self._sql(f"ALTER {kind} ALL IN TABLESPACE {name} SET TABLESPACE pg_default", database)
        self._sql(f"DROP TABLESPACE {name}")
        del self.tablespaces[name]

    @precondition(lambda self: self.tablespaces)
    @rule(number=st.integers(0, 9), tablespace=st.integers(0, 3))
    def move(self, number: int, tablespace: int) -> None:
        """A table, or a whole database."""
        name = ["pg_default", *self.tablespaces][tablespace % (len(self.tablespaces) + 1)]
        if number % 2 and len(self.databases) > 1:
            self._move_database(self.databases[-1], name)
        else:
            self._on(number, f"ALTER TABLE {{t}} SET TABLESPACE {name}")

    def _move_database(self, database: str, tablespace: str) -> bool:
        """Not where a table of it was moved before, by itself: the server refuses that."""
        try:
            self._sql(f"ALTER DATABASE {database} SET TABLESPACE {tablespace}")
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return False
        return True

    @rule()
    def checkpoint(self) -> None:
        self._sql("CHECKPOINT")

    @rule(how=st.sampled_from(["kill", "immediate", "fast"]))
    def restart(self, how: str) -> None:
        if how == "kill":
            self.server.kill()
        else:
            self.server.stop("immediate" if how == "immediate" else "fast")
        self.server.start(self.settings)

    @precondition(lambda self: len(self.taken) < _MOST_BACKUPS)
    @rule(
        mode=st.sampled_from(["stream", "local"]),
        full=st.sampled_from([False] * 5 + [True]),
        deep_check=st.sampled_from([0, 0.5]),
    )
    def back_up(self, mode: str, full: bool, deep_check: float) -> None:
        """Of a server at rest, so that the copy is of the same moment."""
        self._settle()
        manifest = backup(self.server.dsn(), self.repository, mode=mode, full=full, deep_check=deep_check)
        note(f"{manifest.mode} {manifest.kind} {manifest.id}: {manifest.notes}")
        assert manifest.damaged_pages == manifest.unexplained_pages == []
        self.server.stop("fast")
        copy = self.place / f"copy-{manifest.number}-{len(self.taken)}"
        for name in ("base", "global", "pg_tblspc"):
            shutil.copytree(self.server.data_directory / name, copy / name)
        self.taken.append(_Taken(manifest.id, copy, {str(place): name for name, place in self.tablespaces.items()}))
        self.server.start(self.settings)

    @precondition(lambda self: len(self.taken) < _MOST_BACKUPS)
    @rule(mode=st.sampled_from(["stream", "local"]))
    def back_up_changes(self, mode: str) -> None:
        """The usual backup; twice as likely so."""
        self.back_up(mode, full=False, deep_check=0)

    def teardown(self) -> None:
        with self.stack:
            self.server.stop("fast")
            self.chance.shuffle(self.taken)
            for taken in self.taken:
                self._expect_equal(taken)

    def _settle(self) -> None:
        """Catalogs are read once, so that the backup's own questions change no hint and prune no page behind the copy's back."""
        catalogs = (
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace"
        )
        for (name,) in self._sql(catalogs):
            self._sql(f"SELECT count(*) FROM {name}")
        self._sql("CHECKPOINT")

    def _expect_equal(self, taken: _Taken) -> None:
        target = self.place / f"restored-{taken.id}"
        tablespaces = {old: str(self.place / f"{name}-{taken.id}") for old, name in taken.tablespaces.items()}
        restore(self.repository, target, backup=taken.id, tablespaces=tablespaces)
        with Server(target, self.binaries) as copy:
            copy.start(self.settings)
            wait_until_recovered(copy)
            copy.stop("fast")
            assert differences(target, taken.copy) == []
            run_program(copy, "pg_checksums", "--check", "-D", target)
            copy.start(self.settings)
            expect_sound(copy)
            for (database,) in sql(copy.dsn(), "SELECT datname FROM pg_database WHERE datallowconn"):
                _expect_true_visibility(copy.dsn(database))
        for place in (target, *map(Path, tablespaces.values())):
            shutil.rmtree(place)


def _expect_true_visibility(dsn: str) -> None:
    """No page is marked as visible to all, or as frozen, with a row in it that is not."""
    sql(dsn, "CREATE EXTENSION IF NOT EXISTS pg_visibility")
    relations = "SELECT oid FROM pg_class WHERE relkind IN ('r', 't', 'm') AND relpersistence = 'p'"
    for check in ("pg_check_visible", "pg_check_frozen"):
        assert sql(dsn, f"SELECT c.oid::regclass, f FROM ({relations}) AS c, {check}(c.oid) AS f") == []


@pytest.mark.timeout(300 * (_HISTORIES + 1))
def test_every_backup_of_any_history_is_the_cluster_at_its_moment(
    postgres_major: int, binaries_of: Callable[[int], ServerBinaries], work_root: Path
) -> None:
    """Backed up over the wire and beside the data, fully and incrementally, restored in random order."""
    History.binaries, History.root = binaries_of(postgres_major), work_root
    run_state_machine_as_test(
        History,
        settings=settings(
            # the first one is the simplest that there is
            max_examples=_HISTORIES + 1,
            stateful_step_count=30,
            deadline=None,
            database=None,
            # a history takes some seconds: the one that failed tells enough
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
