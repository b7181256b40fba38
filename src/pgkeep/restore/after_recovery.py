"""What is done on a recovered server while only we can reach it: later rows carried in, the receiver's slot, hooks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pgkeep.config import Cluster
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.postgres.lsn import LSN
from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.restore.carry import CarriedTable, carry_table, parse_table_name
from pgkeep.restore.hooks import HookContext, HookResult, run_hooks
from pgkeep.restore.in_place_plan import InPlaceRequest, plan_carry
from pgkeep.restore.job import RestoreOutcome, write_backup
from pgkeep.restore.journal import Journal
from pgkeep.restore.plan import RestorePlan
from pgkeep.restore.private_server import stop_leftover, superuser_dsn
from pgkeep.restore.recover import recovered_server

__all__ = ["AfterRecovery", "clear_carry"]


class AfterRecovery:
    """All that comes between recovery and the operator's server; each step that is done is in the journal, and not done again.

    ``step`` is what was under way when `run` raised. Rows come before hooks, so that hooks see all that will be there.
    """

    def __init__(
        self,
        request: InPlaceRequest,
        cluster: Cluster,
        repositories: Sequence[Repository],
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._request = request
        self._cluster = cluster
        self._repositories = repositories
        self._journal = journal
        self._progress = progress
        self._data_directory = Path(journal.data_directory)
        self.log_file = self._data_directory.with_name(self._data_directory.name + ".pgkeep-hooks.log")
        self.step = "connecting to it"
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.carried: list[CarriedTable] = []
        self.hooks: list[HookResult] = []

    def run(self, dsn: str, carry: RestorePlan | None) -> None:
        """Do it on the server behind ``dsn``; ``carry`` is the plan of the second recovery, None: made here where it is needed.

        Raises RecoveryError (HookError), NotFoundError, UsageError, and what a restore raises.
        """
        dsn = superuser_dsn(dsn, self._data_directory)
        if [name for name in self._request.carry if name not in self._journal.carried]:
            with self._timed("carry", "carrying rows"):
                self._carry(dsn, carry or self._plan_carry())
        self.step = "the slot"
        self._make_slot(dsn)
        if self._cluster.after_restore:
            with self._timed("hooks", "hooks"):
                self._run_hooks(dsn)

    def _plan_carry(self) -> RestorePlan:
        journal, repository = self._journal, self._repositories[0]
        end = (journal.path_timeline, LSN.parse(journal.lsn))
        return plan_carry(self._request, self._cluster, repository, self._data_directory, journal.tablespaces, *end)

    def _carry(self, dsn: str, plan: RestorePlan) -> None:
        journal = self._journal
        journal.carry_directory = str(plan.target.parent)
        journal.save()
        database = endpoint_of(self._cluster.dsn).database
        try:
            write_backup(plan, self._repositories[0], self._progress, RestoreOutcome(plan))
            with recovered_server(plan, self._repositories, self._progress) as later:
                later_dsn = superuser_dsn(later.dsn, plan.target)
                for text in self._request.carry:
                    if text not in journal.carried:
                        name = parse_table_name(text)
                        self.carried.append(carry_table(later_dsn, dsn, name, database, self._progress))
                        journal.carried.append(text)
                        journal.save()
        finally:
            clear_carry(journal)

    def _make_slot(self, dsn: str) -> None:
        """A backup holds no slots: without its own, the receiver could miss WAL between this start and its return."""
        journal, slot = self._journal, self._cluster.slot
        old = Path(journal.moves[0].aside, "pg_replslot") if journal.moves else None
        names = sorted(entry.name for entry in old.iterdir() if entry.is_dir()) if old and old.is_dir() else []
        if slot in names:
            with connect_sql(dsn) as connection:
                connection.execute(
                    "SELECT pg_create_physical_replication_slot(%s, true)"
                    " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)",
                    (slot, slot),
                )
        others = [name for name in names if name != slot]
        if others:
            self.notes.append(f"replication slots of the old server that are gone: {', '.join(others)}")

    def _run_hooks(self, dsn: str) -> None:
        journal = self._journal
        facts = {
            "cluster": self._cluster.name,
            "backup": journal.backup or "",
            "lsn": journal.lsn,
            "timeline": str(journal.timeline),
            "data_directory": journal.data_directory,
        }

        def finished(result: HookResult) -> None:
            self.hooks.append(result)
            journal.hooks_done.append(result.name)
            journal.save()

        context = HookContext(dsn, self.log_file, facts)
        run_hooks(self._cluster.after_restore, context, self._progress, done=journal.hooks_done, finished=finished)

    @contextmanager
    def _timed(self, name: str, step: str) -> Iterator[None]:
        self.step, begun = step, time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun


def clear_carry(journal: Journal) -> None:
    """Remove the second recovery that a journal names, and stop a server of it that outlived its pgkeep."""
    if journal.carry_directory is None:
        return
    stop_leftover(Path(journal.carry_directory, "data"))
    shutil.rmtree(journal.carry_directory, ignore_errors=True)
    journal.carry_directory = None
    journal.save()
