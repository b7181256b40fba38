"""A standby that goes from one restore point to the next: a recovered cluster for each of many moments, without a backup for each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pgkeep.postgres.account import give_to
from pgkeep.postgres.server import Server
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SteppingStandby"]


class SteppingStandby:
    """A physical copy of a server, taken when it is made; a context manager that stops it."""

    def __init__(self, source: Server, directory: Path) -> None:
        self._source = source
        directory.mkdir(0o700)
        give_to(source.account, directory)
        sql(source.dsn(), "SELECT pg_create_physical_replication_slot('stepping', true)")
        run_program(
            source,
            "pg_basebackup",
            f"--dbname={source.dsn()}",
            f"--pgdata={directory}",
            "--checkpoint=fast",
            "--slot=stepping",
        )
        (directory / "standby.signal").touch()
        self.server = Server(directory, source.binaries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop("immediate")

    def go_to(self, *, name: str | None = None, lsn: str | None = None) -> str:
        """Recover up to a restore point, or to an LSN exclusively, and wait there; the DSN to look at it."""
        self.server.stop("fast")
        target: dict[str, str | int | bool] = (
            {"recovery_target_name": name}
            if name
            else {"recovery_target_lsn": lsn or "", "recovery_target_inclusive": False}
        )
        self.server.start(
            {
                **TEST_SETTINGS,
                **target,
                "recovery_target_action": "pause",
                "primary_conninfo": self._source.dsn(),
                "primary_slot_name": "stepping",
                "wal_retrieve_retry_interval": "50ms",
            }
        )
        deadline = time.monotonic() + 60
        while sql(self.server.dsn(), "SELECT pg_get_wal_replay_pause_state()") != [("paused",)]:
            assert time.monotonic() < deadline, "the standby did not reach its target"
            time.sleep(0.02)
        return self.server.dsn()

    def promote(self) -> str:
        """Let it be a primary; the DSN."""
        sql(self.server.dsn(), "SELECT pg_promote()")
        return self.server.dsn()
