"""pgkeep itself: the real program, encrypting with a key file."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.contenders.base import Contender
from bench.dataset import DATABASE
from bench.measure import Measurement

PROGRAM = Path(sys.executable).with_name("pgkeep")


class Pgkeep(Contender):
    name = "pgkeep"

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    @property
    def _command(self) -> list[str]:
        return [str(PROGRAM), f"--config={self.directory / 'pgkeep.toml'}"]

    def facts(self) -> str:
        version = self.run(PROGRAM, "--version").split()[-1]
        return f"{version}, as it comes: zstd, encrypted (AES-256-GCM)"

    def prepare(self) -> None:
        self.make_directory(self.directory)
        self.run(
            *self._command,
            "init",
            self.server.dsn(DATABASE),
            f"--repository=file://{self.repository}",
            f"--key-file={self.directory / 'bench.key'}",
            "--yes",
        )

    def backup(self) -> Measurement:
        return self.measure([*self._command, "backup"])

    def restore(self, target: Path) -> Measurement:
        return self.measure([*self._command, "restore", "latest", f"--target-dir={target}"])
