"""The account that a PostgreSQL server runs as: our own, or, since a server refuses to run as root, an unprivileged one.

The server calls pgkeep too (``restore_command``, ``archive_command``), so the account must be able to execute the
interpreter; ``can_run`` tests that by running it.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pgkeep.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ProcessIdentity",
    "ServerAccount",
    "can_run",
    "give_to",
    "process_identity",
    "run_as",
    "run_to_end",
    "server_account",
]

ACCOUNT_VARIABLE = "PGKEEP_SERVER_ACCOUNT"
_CANDIDATES = ("postgres", "nobody")


@dataclass(frozen=True)
class ServerAccount:
    """An unprivileged account of this machine."""

    name: str
    uid: int
    gid: int
    home: Path


class ProcessIdentity(TypedDict, total=False):
    """Keyword arguments of ``subprocess.Popen`` and ``subprocess.run`` that decide who runs the program, and where."""

    user: int
    group: int
    extra_groups: list[int]
    env: dict[str, str]
    cwd: str


def server_account() -> ServerAccount | None:
    """The account for servers that this process starts: None (our own) for an ordinary user.

    For root it is the one that PGKEEP_SERVER_ACCOUNT names, else ``postgres``, else ``nobody``.
    Raises ConfigError where that variable names root or nobody at all, or where there is no such account.
    """
    if os.geteuid() != 0:
        return None
    wanted = os.environ.get(ACCOUNT_VARIABLE)
    hint = f"set {ACCOUNT_VARIABLE} to an unprivileged account, or create one: useradd --system postgres"
    for name in (wanted,) if wanted else _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise ConfigError(f"the account {name} is root, and PostgreSQL refuses to run as root", hint=hint)
        return ServerAccount(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    raise ConfigError(f"this machine has no account {wanted or ' or '.join(_CANDIDATES)}", hint=hint)


def process_identity(account: ServerAccount | None, environment: Mapping[str, str] | None = None) -> ProcessIdentity:
    """How to start a program as the account (None: as ourselves), with ``environment`` on top of our own.

    libpq's and the server's variables (``PGDATA``, ``PGHOST``, ...) are left out: they mean the operator's servers, not ours.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name.startswith("PGKEEP_")}
    if account is None:
        return {"env": {**own, **(environment or {})}}
    personal = {"HOME": str(account.home), "USER": account.name, "LOGNAME": account.name}
    return {
        "user": account.uid,
        "group": account.gid,
        "extra_groups": os.getgrouplist(account.name, account.gid),
        "env": {**own, **personal, **(environment or {})},
        # PostgreSQL's programs fail in a working directory that the account may not read, such as /root.
        "cwd": "/",
    }


def run_as(
    account: ServerAccount | None,
    argv: Sequence[str | os.PathLike[str]],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as the account (None: as ourselves); its output is captured as text.

    The exit code is the caller's to judge. Raises OSError where it cannot be executed, and
    ``subprocess.TimeoutExpired`` after ``timeout`` seconds.
    """
    return run_to_end(argv, process_identity(account, environment), timeout=timeout)


def run_to_end(
    argv: Sequence[str | os.PathLike[str]], identity: ProcessIdentity, *, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run_as`, for an identity that is known."""
    return subprocess.run(
        [os.fspath(word) for word in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        **identity,
    )


def can_run(account: ServerAccount | None, argv: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether the account can execute this command line, and it succeeds: ``[sys.executable, "-c", ""]``."""
    try:
        return run_as(account, argv, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def give_to(account: ServerAccount | None, *paths: Path) -> None:
    """Make the account the owner of these files or directories (not of what is in them); nothing to do for None."""
    if account is not None:
        for path in paths:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
