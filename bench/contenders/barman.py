"""Barman, on the database host: rsync, with hard links to the files of the last backup that have not changed."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.contenders.archiving import set_archive_command
from bench.contenders.base import IncrementalContender, tree_bytes
from bench.machine import CORES
from bench.measure import Measurement
from pgkeep.errors import PgkeepError

PROGRAM = "barman"
STANZA = "bench"

CONFIGURATION = """
[barman]
barman_user = {account}
barman_home = {directory}/home
barman_lock_directory = {directory}
log_file = {directory}/barman.log

[bench]
description = bench
conninfo = {dsn}
backup_method = local-rsync
reuse_backup = link
parallel_jobs = {processes}
archiver = on
"""
# rsync does not fsync what it restores; the others do.
RESTORE = 'set -eu; "$1" --config="$2" recover bench "$3" "$4"; sync --file-system "$4"'


class Barman(IncrementalContender):
    name = "Barman"
    _log: ClassVar[str] = "barman.log"

    @property
    def repository(self) -> Path:
        return self.directory / "home"

    @property
    def _configuration(self) -> Path:
        return self.directory / "barman.conf"

    def facts(self) -> str:
        version = self.run(PROGRAM, "--version").split()[0]
        return f"{version}, backup_method=local-rsync, reuse_backup=link, parallel_jobs={CORES}, not compressed"

    def prepare(self) -> None:
        self.make_directory(self.directory)
        self.make_directory(self.repository)
        self._configuration.write_text(
            CONFIGURATION.format(
                account=self.server.account.name if self.server.account else Path.home().owner(),
                directory=self.directory,
                dsn=self.server.dsn(),
                processes=CORES,
            )
        )
        # its first run makes its directories, and complains
        self._run_whatever_comes("check", STANZA)
        self._archive()
        self._run("switch-wal", "--force", "--archive", "--archive-timeout=60", STANZA)
        self._run("check", STANZA)

    def backup(self) -> Measurement:
        return self._backup("--reuse-backup=off")

    def backup_changes(self) -> Measurement:
        return self._backup("--reuse-backup=link")

    def newest(self) -> str:
        return self._run("list-backups", "--minimal", STANZA).split()[0]

    def restore(self, target: Path) -> Measurement:
        return self.restore_backup(self.newest(), target)

    def restore_backup(self, backup: str, target: Path) -> Measurement:
        self._run("archive-wal", STANZA)
        return self.measure(["bash", "-c", RESTORE, "restore", PROGRAM, self._configuration, backup, target])

    def backup_bytes(self) -> int:
        return tree_bytes(self.repository, "wals", "incoming", "streaming")

    def between(self) -> None:
        set_archive_command(self.server.dsn(), None)
        # each may be as large as the cluster: only the first and the newest are restored
        for backup in self._run("list-backups", "--minimal", STANZA).split()[1:-1]:
            self._run("delete", STANZA, backup)

    def clean(self) -> None:
        set_archive_command(self.server.dsn(), None)
        super().clean()

    def _backup(self, option: str) -> Measurement:
        self._archive()
        return self.measure([*self._command, "backup", option, STANZA])

    def _archive(self) -> None:
        set_archive_command(self.server.dsn(), f"cp %p {self.repository / STANZA / 'incoming'}/%f")

    @property
    def _command(self) -> list[str]:
        return [PROGRAM, f"--config={self._configuration}"]

    def _run(self, *words: str) -> str:
        return self.run(*self._command, *words)

    def _run_whatever_comes(self, *words: str) -> None:
        try:
            self._run(*words)
        except PgkeepError as error:
            if not self._configuration.with_name(self._log).exists():
                raise PgkeepError(f"{PROGRAM} does not begin: {error}") from error
