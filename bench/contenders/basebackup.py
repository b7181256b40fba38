"""pg_basebackup: in tar format, restored by tar with zstd or gzip; and incremental, restored by pg_combinebackup."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.contenders.base import Contender, IncrementalContender, tree_bytes
from bench.machine import CORES
from bench.measure import Measurement
from pgkeep.errors import PgkeepError

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

    def facts(self) -> str:
        if "--with-zstd" not in self.run(self.server.binaries.path("pg_config"), "--configure"):
            raise PgkeepError(f"PostgreSQL {self.server.binaries.version_text} is here without zstd")
        return super().facts()

    # On the server, with a worker for each core: the fastest of its ways.
    compression = f"server-zstd:level=1,workers={CORES}"
    decompress = "zstd -dc"
    suffix = "zst"


class BaseBackupGzip(_BaseBackup):
    name = "pg_basebackup gzip"
    compression = "server-gzip:1"
    decompress = "gzip -dc"
    suffix = "gz"


class BaseBackupIncremental(IncrementalContender):
    """Plain format, since pg_combinebackup reads no other: nothing is compressed."""

    name = "pg_basebackup --incremental"
    count = 0

    @property
    def repository(self) -> Path:
        return self.directory / "backups"

    def facts(self) -> str:
        self.server.binaries.path("pg_combinebackup")
        version = self.server.binaries.version_text
        return f"{version}, --format=plain, restored with pg_combinebackup --sync-method=syncfs, not compressed"

    def prepare(self) -> None:
        self.make_directory(self.directory)
        self.make_directory(self.repository)
        self.count = 0

    def backup(self) -> Measurement:
        return self._backup()

    def backup_changes(self) -> Measurement:
        return self._backup(f"--incremental={self.repository / self.newest() / 'backup_manifest'}")

    def newest(self) -> str:
        return f"{self.count:04}"

    def restore(self, target: Path) -> Measurement:
        return self.restore_backup(self.newest(), target)

    def restore_backup(self, backup: str, target: Path) -> Measurement:
        chain = [self.repository / f"{number:04}" for number in range(1, int(backup) + 1)]
        program = self.server.binaries.path("pg_combinebackup")
        return self.measure([program, "--sync-method=syncfs", f"--output={target}", *chain])

    def backup_bytes(self) -> int:
        return tree_bytes(self.repository, "pg_wal")

    def _backup(self, *options: str) -> Measurement:
        measurement = self.measure(
            [
                self.server.binaries.path("pg_basebackup"),
                f"--dbname={self.server.dsn()}",
                f"--pgdata={self.repository / f'{self.count + 1:04}'}",
                "--format=plain",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--sync-method=syncfs",
                *options,
            ]
        )
        self.count += 1
        return measurement
