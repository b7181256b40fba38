"""pgBackRest: the one on PATH, and a newer one that PGKEEP_BENCH_PGBACKREST names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bench.contenders.archiving import set_archive_command
from bench.contenders.base import IncrementalContender, tree_bytes
from bench.machine import CORES
from bench.measure import Measurement
from pgkeep.errors import PgkeepError

PROGRAM = "pgbackrest"
NEWER_VARIABLE = "PGKEEP_BENCH_PGBACKREST"
FIRST_WITH_BUNDLES = (2, 39)
FIRST_WITH_BLOCKS = (2, 46)

CONFIGURATION = """
[global]
{options}
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


class PgBackRest(IncrementalContender):
    name = "pgBackRest"
    can_restore_delta = True

    @property
    def program(self) -> str:
        return PROGRAM

    @property
    def repository(self) -> Path:
        return self.directory / "repo"

    @property
    def _configuration(self) -> Path:
        return self.directory / "pgbackrest.conf"

    def facts(self) -> str:
        options = "".join(f", {option}" for option in self._options)
        return f"{self._version}, process-max={CORES}, compress-type=zst, compress-level=1{options}, not encrypted"

    def prepare(self) -> None:
        for path in self._directories:
            self.make_directory(path)
        self._configuration.write_text(
            CONFIGURATION.format(
                directory=self.directory,
                options="\n".join(f"repo1-{option.removeprefix('repo-')}" for option in (*self._options, *self._place)),
                processes=CORES,
                data=self.server.data_directory,
                sockets=self.server.socket_directory,
                port=self.server.port,
            )
        )
        self.run(*self._command, "stanza-create")
        self._archive()
        self.run(*self._command, "check")

    def backup(self) -> Measurement:
        self._archive()
        return self.measure([*self._command, "--type=full", "backup"])

    def backup_changes(self) -> Measurement:
        self._archive()
        return self.measure([*self._command, "--type=incr", "backup"])

    def newest(self) -> str:
        stanzas = json.loads(self.run(*self._command, "--output=json", "info"))
        return str(stanzas[0]["backup"][-1]["label"])

    def restore(self, target: Path) -> Measurement:
        self.make_directory(target)
        return self._restore(target)

    def restore_backup(self, backup: str, target: Path) -> Measurement:
        self.make_directory(target)
        return self._restore(target, f"--set={backup}", "--type=immediate")

    def restore_delta(self, backup: str, target: Path) -> Measurement:
        return self._restore(target, f"--set={backup}", "--type=immediate", "--delta")

    def backup_bytes(self) -> int:
        return tree_bytes(self.repository, "archive")

    def between(self) -> None:
        set_archive_command(self.server.dsn(), None)

    def clean(self) -> None:
        self.between()
        super().clean()

    def _restore(self, target: Path, *options: str) -> Measurement:
        return self.measure([*self._command, f"--pg1-path={target}", "--archive-mode=off", *options, "restore"])

    def _archive(self) -> None:
        set_archive_command(self.server.dsn(), f"{' '.join(self._command)} archive-push %p")

    @property
    def _directories(self) -> list[Path]:
        return [self.directory, self.repository, self.directory / "lock", self.directory / "spool"]

    @property
    def _place(self) -> list[str]:
        """The options that say where the repository is."""
        return [f"path={self.repository}"]

    @property
    def _command(self) -> list[str]:
        return [self.program, f"--config={self._configuration}", "--stanza=bench"]

    @property
    def _version(self) -> str:
        return self.run(self.program, "version").split()[-1]

    @property
    def _options(self) -> list[str]:
        version = tuple(int(part) for part in self._version.split(".")[:2])
        bundle = ["repo-bundle=y"] if version >= FIRST_WITH_BUNDLES else []
        return bundle + (["repo-block=y"] if version >= FIRST_WITH_BLOCKS else [])


class PgBackRestNewer(PgBackRest):
    name = "pgBackRest newer"

    @property
    def program(self) -> str:
        try:
            return os.environ[NEWER_VARIABLE]
        except KeyError:
            raise PgkeepError(f"{NEWER_VARIABLE} names no program") from None
