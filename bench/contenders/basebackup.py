"""pg_basebackup in tar format, and the tar and zstd or gzip programs for its restore."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.contenders.base import Contender
from bench.machine import CORES
from bench.measure import Measurement

# tar does not fsync what it writes; the others do.
RESTORE = """
set -euo pipefail
{decompress} < "$1"/base.tar.{suffix} | tar -x -C "$2"
if [ -e "$1"/pg_wal.tar.{suffix} ]; then {decompress} < "$1"/pg_wal.tar.{suffix}; else cat "$1"/pg_wal.tar; fi |
    tar -x -C "$2"/pg_wal
sync --file-system "$2"
"""


class _BaseBackup(Contender):
    compression: ClassVar[str]
    decompress: ClassVar[str]
    suffix: ClassVar[str]

    @property
    def repository(self) -> Path:
        return self.directory / "backup"

    def facts(self) -> str:
        self.run(self.decompress.split()[0], "--version")
        self.server.binaries.path("pg_basebackup")
        version = self.server.binaries.version_text
        return f"{version}, --format=tar --compress={self.compression}, restored with tar and {self.decompress}"

    def prepare(self) -> None:
        self.make_directory(self.directory)

    def backup(self) -> Measurement:
        return self.measure(
            [
                self.server.binaries.path("pg_basebackup"),
                f"--dbname={self.server.dsn()}",
                f"--pgdata={self.repository}",
                "--format=tar",
                f"--compress={self.compression}",
                "--wal-method=stream",
                "--checkpoint=fast",
            ]
        )

    def restore(self, target: Path) -> Measurement:
        self.make_directory(target)
        script = RESTORE.format(decompress=self.decompress, suffix=self.suffix)
        return self.measure(["bash", "-c", script, "restore", self.repository, target])


class BaseBackupZstd(_BaseBackup):
    name = "pg_basebackup zstd"
    # On the server, with a worker for each core: the fastest of its ways.
    compression = f"server-zstd:level=1,workers={CORES}"
    decompress = "zstd -dc"
    suffix = "zst"


class BaseBackupGzip(_BaseBackup):
    name = "pg_basebackup gzip"
    compression = "server-gzip:1"
    decompress = "gzip -dc"
    suffix = "gz"
