"""pgkeep itself: the real program, encrypting with a key file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench.contenders.base import IncrementalContender, tree_bytes
from bench.dataset import DATABASE
from bench.measure import Measurement

PROGRAM = Path(sys.executable).with_name("pgkeep")


class Pgkeep(IncrementalContender):
    name = "pgkeep"
    options: Sequence[str] = ()
    how: ClassVar[str] = "as it comes (here: mode local)"
    can_restore_delta = True
    # Words before the program: to bind it to some of the cores.
    prefix: Sequence[str] = ()

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    @property
    def _url(self) -> str:
        return f"file://{self.repository}"

    @property
    def _command(self) -> list[str]:
        return [*self.prefix, str(PROGRAM), f"--config={self.directory / 'pgkeep.toml'}"]

    def facts(self) -> str:
        version = self.run(PROGRAM, "--version").split()[-1]
        return f"{version}, {self.how}: zstd, encrypted (AES-256-GCM)"

    def prepare(self) -> None:
        self.make_directory(self.directory)
        self.run(
            *self._command,
            "init",
            self.server.dsn(DATABASE),
            f"--repository={self._url}",
            f"--key-file={self.directory / 'bench.key'}",
            "--yes",
        )

    def backup(self) -> Measurement:
        return self.measure([*self._command, "backup", "--full", *self.options])

    def backup_changes(self) -> Measurement:
        return self.measure([*self._command, "backup", *self.options])

    def newest(self) -> str:
        document = json.loads(self.run(*self._command, "show", "latest", "--json"))
        return str(document["id"])

    def restore(self, target: Path) -> Measurement:
        return self.restore_backup("latest", target)

    def restore_backup(self, backup: str, target: Path) -> Measurement:
        return self.measure([*self._command, "restore", backup, f"--target-dir={target}"])

    def restore_at_pace(self, backup: str, target: Path, rate: int) -> Measurement:
        """Bring a backup back, writing no more than ``rate`` bytes a second."""
        return self.measure([*self._command, "restore", backup, f"--target-dir={target}", f"--rate={rate}"])

    def restore_delta(self, backup: str, target: Path) -> Measurement:
        return self.measure([*self._command, "restore", backup, f"--target-dir={target}", "--delta"])

    def backup_bytes(self) -> int:
        return tree_bytes(self.repository, "wal")


class PgkeepStream(Pgkeep):
    name = "pgkeep stream"
    options = ("--mode=stream",)
    how = "--mode=stream, which needs nothing on the database host"
