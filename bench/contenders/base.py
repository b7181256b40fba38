"""What every contender can do, and what it needs for that."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench.measure import Argv, Measurement, measure
from pgkeep.errors import PgkeepError
from pgkeep.postgres.account import give_to, run_as
from pgkeep.postgres.server import Server


class Contender(ABC):
    """One program with one set of options, working in a directory of its own, as the server's account.

    The runner calls ``prepare`` (an empty repository), ``backup``, ``restore`` into a directory that is not there yet, and
    ``clean``, in this order, as often as it needs. Only ``backup`` and ``restore`` are measured.
    """

    name: ClassVar[str]
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.directory = directory / type(self).__name__.lower()

    @abstractmethod
    def facts(self) -> str:
        """Version and options, for the report. Raises PgkeepError where the program is missing or cannot do the work."""

    @abstractmethod
    def prepare(self) -> None:
        """Make an empty repository."""

    @abstractmethod
    def backup(self) -> Measurement:
        """Take a full backup."""

    @abstractmethod
    def restore(self, target: Path) -> Measurement:
        """Bring the newest backup back into ``target``, durably."""

    @property
    @abstractmethod
    def repository(self) -> Path:
        """Where the stored bytes lie."""

    def repository_bytes(self) -> int:
        """The apparent size of all files in the repository."""
        return tree_bytes(self.repository)

    def clean(self) -> None:
        """Remove everything that ``prepare`` and ``backup`` left."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def make_directory(self, path: Path) -> None:
        """A new, private directory of the server's account."""
        path.mkdir(mode=0o700, parents=True)
        give_to(self.server.account, path)

    def run(self, *argv: str | os.PathLike[str]) -> str:
        """Run a program outside the measurement; its output. Raises PgkeepError where it fails or is missing."""
        try:
            answer = run_as(self.server.account, argv, environment=self.environment)
        except OSError as error:
            raise PgkeepError(f"{os.fspath(argv[0])} cannot be run: {error.strerror}") from error
        if answer.returncode != 0:
            raise PgkeepError(f"{os.fspath(argv[0])} failed: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout

    def measure(self, argv: Argv) -> Measurement:
        return measure(
            argv,
            account=self.server.account,
            server=self.server.process_id,
            environment=self.environment,
            log=self.directory / "log",
        )


class IncrementalContender(Contender):
    """A contender that can take backups which rest on earlier ones, in the repository that `prepare` made."""

    can_restore_delta: ClassVar[bool] = False

    @abstractmethod
    def backup_changes(self) -> Measurement:
        """Take an incremental backup, which rests on the newest one. Raises PgkeepError."""

    @abstractmethod
    def newest(self) -> str:
        """The name of the newest backup."""

    @abstractmethod
    def restore_backup(self, backup: str, target: Path) -> Measurement:
        """Bring a backup back by name into ``target``, which is not there yet, durably."""

    def restore_delta(self, backup: str, target: Path) -> Measurement:
        """Bring a backup back over what is in ``target``, writing what differs. Only where `can_restore_delta`."""
        raise PgkeepError(f"{self.name} cannot restore {backup} over {target}")

    @abstractmethod
    def backup_bytes(self) -> int:
        """The size of all backups without the WAL that was archived beside them."""

    def between(self) -> None:
        """The server works for others now."""


def tree_bytes(directory: Path, *without: str) -> int:
    """The apparent size of all files below a directory, each once, but for those below directories of these names."""
    total = 0
    linked = set()
    for place, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name not in without]
        for name in files:
            status = os.lstat(os.path.join(place, name))
            if status.st_nlink > 1:
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            total += status.st_size
    return total
