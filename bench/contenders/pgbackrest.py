"""pgBackRest: the one on PATH, or the program that PGKEEP_BENCH_PGBACKREST names."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from bench.contenders.base import Contender
from bench.machine import CORES
from bench.measure import Measurement

PROGRAM = os.environ.get("PGKEEP_BENCH_PGBACKREST", "pgbackrest")
FIRST_WITH_BUNDLES = (2, 39)

CONFIGURATION = """
[global]
repo1-path={directory}/repo
{bundle}
process-max={processes}
compress-type=zst
compress-level=1
start-fast=y
archive-async=n
lock-path={directory}/lock
spool-path={directory}/spool
log-level-file=off
log-level-console=warn

[bench]
pg1-path={data}
pg1-socket-path={sockets}
pg1-port={port}
pg1-user=postgres
"""


class PgBackRest(Contender):
    name = "pgBackRest"

    @property
    def repository(self) -> Path:
        return self.directory / "repo"

    @property
    def _configuration(self) -> Path:
        return self.directory / "pgbackrest.conf"

    def facts(self) -> str:
        bundle = ", repo-bundle=y" if self._bundles else ""
        return f"{self._version}, process-max={CORES}, compress-type=zst, compress-level=1{bundle}, not encrypted"

    def prepare(self) -> None:
        for path in (self.directory, self.repository, self.directory / "lock", self.directory / "spool"):
            self.make_directory(path)
        self._configuration.write_text(
            CONFIGURATION.format(
                directory=self.directory,
                bundle="repo1-bundle=y" if self._bundles else "",
                processes=CORES,
                data=self.server.data_directory,
                sockets=self.server.socket_directory,
                port=self.server.port,
            )
        )
        self.run(*self._command, "stanza-create")
        self._set_archive_command(f"{' '.join(self._command)} archive-push %p")
        self.run(*self._command, "check")

    def backup(self) -> Measurement:
        return self.measure([*self._command, "--type=full", "backup"])

    def restore(self, target: Path) -> Measurement:
        self.make_directory(target)
        return self.measure([*self._command, f"--pg1-path={target}", "--archive-mode=off", "restore"])

    def clean(self) -> None:
        self._set_archive_command(None)
        super().clean()

    @property
    def _command(self) -> list[str]:
        return [PROGRAM, f"--config={self._configuration}", "--stanza=bench"]

    @property
    def _version(self) -> str:
        return self.run(PROGRAM, "version").split()[-1]

    @property
    def _bundles(self) -> bool:
        return tuple(int(part) for part in self._version.split(".")[:2]) >= FIRST_WITH_BUNDLES

    def _set_archive_command(self, command: str | None) -> None:
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            if command is None:
                connection.execute("ALTER SYSTEM RESET archive_command")
            else:
                connection.execute(
                    psycopg.sql.SQL("ALTER SYSTEM SET archive_command = {}").format(psycopg.sql.Literal(command))
                )
            connection.execute("SELECT pg_reload_conf()")
