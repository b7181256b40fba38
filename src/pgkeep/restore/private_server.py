"""A recovered server that nobody but us can reach: for what is left to do on it before its operator's server starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from pgkeep.errors import RecoveryError, TargetError
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.roles import login_superusers
from pgkeep.postgres.running import server_status
from pgkeep.postgres.server import Server
from pgkeep.postgres.timeline import history_name

__all__ = ["hand_to_archiver", "private_place", "private_server", "stop_leftover", "superuser_dsn"]

_PREFIX = "pgkeep-recovery-"
"""Of the directory that a private server's socket is in; it tells such a server from an operator's."""

_DATABASES = ("postgres", "template1")
_SETTINGS: dict[str, str | int | bool] = {
    "archive_mode": False,
    "ssl": False,
    "max_logical_replication_workers": 0,
    "synchronous_standby_names": "",
}
_HBA = "local all all trust\n"
_START_LIMIT = 3600.0
"""Seconds: after a kill it recovers from its own WAL first."""


def private_place(parent: Path | None = None) -> tuple[Path, dict[str, str | int | bool]]:
    """A fresh directory for a socket that only the server's account can enter, and the settings that shut all else out.

    It is made in ``parent``, the system's temporary directory where that is None. The caller removes it.
    """
    private = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    hba, ident = private / "pg_hba.conf", private / "pg_ident.conf"
    hba.write_text(_HBA)
    ident.write_text("")
    give_to(server_account(), private, hba, ident)
    return private, {**_SETTINGS, "hba_file": str(hba), "ident_file": str(ident)}


@contextmanager
def private_server(data_directory: Path, major: int, port: int) -> Iterator[Server]:
    """Start the server of a data directory that has recovered, on a socket of our own; it is stopped in good order at the end."""
    private, settings = private_place()
    server = Server(data_directory, find_binaries(major), socket_directory=private, port=port)
    try:
        server.start(settings, timeout=_START_LIMIT)
        yield server
    except BaseException:
        server.stop("immediate")
        raise
    else:
        server.stop("fast", _START_LIMIT)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def stop_leftover(data_directory: Path) -> None:
    """Stop a private server that outlived the pgkeep which started it. Raises TargetError where an operator's server runs."""
    status = server_status(data_directory)
    if status.pid is None:
        return
    sockets = Path(status.socket_directory or "")
    if not sockets.name.startswith(_PREFIX):
        raise TargetError(
            f"a server runs on {data_directory}, and it is not one that was left behind by pgkeep",
            hint="stop it first, and find out who started it",
        )
    server = Server(data_directory, find_binaries())
    with contextlib.suppress(ProcessLookupError):
        server.stop("immediate")
    shutil.rmtree(sockets, ignore_errors=True)


def superuser_dsn(dsn: str, data_directory: Path) -> str:
    """The DSN of a private server, as a superuser that it lets in. Raises RecoveryError."""
    reason = "it has no superuser that may log in"
    for user in login_superusers(data_directory):
        for database in _DATABASES:
            candidate = make_conninfo(dsn, user=user, dbname=database)
            try:
                psycopg.connect(candidate, connect_timeout=10).close()
            except psycopg.OperationalError as error:
                reason = " ".join(str(error).split())
            else:
                return candidate
    raise RecoveryError(f"nobody can connect to the recovered server: {reason}", hint="see its log")


def hand_to_archiver(data_directory: Path, timeline: int) -> None:
    """Mark what the server wrote of a new timeline while it did not archive, so that it does so from its start on.

    The server itself marks a file as ready when it is finished, and looks for segments without a mark later; it never looks for
    history files again (src/backend/access/transam/xlogarchive.c, XLogArchiveCheckDone).
    """
    wal = data_directory / "pg_wal"
    status = wal / "archive_status"
    status.mkdir(0o700, exist_ok=True)
    give_to(server_account(), status)
    history = history_name(timeline)
    if not (wal / history).exists() or (status / f"{history}.done").exists():
        return
    ready = status / f"{history}.ready"
    ready.touch(0o600)
    give_to(server_account(), ready)
    descriptor = os.open(status, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
