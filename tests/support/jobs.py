"""Jobs as tests call them: a repository of their own, a backup, a restore."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.server import Server
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.restore import RestoreOutcome, RestoreRequest, run_restore
from support.servers import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository.manifests import Manifest

__all__ = [
    "KEY",
    "SMALL",
    "backup",
    "new_repository",
    "restore",
    "running_copy",
    "server_place",
    "wait_until_recovered",
]

KEY = KeyFile(bytes(range(32)))
SMALL = Parameters(cell_size=256 << 10, pack_size=2 << 20)
"""Many objects of every kind from a small cluster."""


def new_repository(place: Path, parameters: Parameters | None = None, *, encrypted: bool = True) -> Repository:
    """A fresh repository in a directory that is not there yet."""
    return Repository.create(open_store(str(place)), KEY if encrypted else None, parameters)


def backup(dsn: str, repository: Repository, **options: object) -> Manifest:
    """A backup of the server behind the DSN, over the wire where ``options`` do not say otherwise."""
    request = BackupRequest(**{"cluster": "test", "dsn": dsn, "mode": "stream", **options})  # type: ignore[arg-type]
    return run_backup(request, repository)


def restore(repository: Repository, target: Path, **options: object) -> RestoreOutcome:
    """A restore, of the newest backup as it is where ``options`` name neither another one nor a target."""
    if not options.keys() & {"backup", "recovery"}:
        options["backup"] = "latest"
    request = RestoreRequest(target=str(target), **options)  # type: ignore[arg-type]
    return run_restore(request, repository)


@contextmanager
def running_copy(target: Path, binaries: ServerBinaries) -> Iterator[Server]:
    """Start a server on a restored directory, wait until it accepts writes, stop it at the end."""
    server = Server(target, binaries)
    try:
        server.start({"fsync": False})
        wait_until_recovered(server)
        yield server
    finally:
        server.stop()


def wait_until_recovered(server: Server) -> None:
    """Wait until a server accepts writes."""
    deadline = time.monotonic() + 60
    while sql(server.dsn(), "SELECT pg_is_in_recovery()") == [(True,)]:
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.02)


def server_place(directory: Path) -> Path:
    """Make a directory that belongs to the server's account."""
    directory.mkdir(parents=True)
    give_to(server_account(), directory)
    return directory
