"""What tests of incremental backups ask: quiet servers, copies that must be equal, and maps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pgkeep.backup.overlay import Extents
from pgkeep.backup.parent import ParentBackup
from support.jobs import restore, running_copy
from support.servers import dump_all, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pgkeep.postgres.server import Server, ThrowawayServer
    from pgkeep.repository import Repository
    from pgkeep.repository.manifests import Manifest
    from support.servers import MakeServer

__all__ = [
    "expect_equal_copy",
    "expect_sound",
    "extents_of",
    "quiet_server",
    "quiet_settings",
    "relation_path",
    "restart",
]

_QUIET: dict[str, str | int | bool] = {"autovacuum": False, "fsync": False, "max_wal_size": "2GB"}


def quiet_settings(major: int) -> dict[str, str | int | bool]:
    """Settings of a server that changes nothing by itself, and summarizes its WAL where it can."""
    return {**_QUIET, "summarize_wal": True} if major >= 17 else dict(_QUIET)


def quiet_server(make_server: MakeServer, major: int) -> ThrowawayServer:
    """A server with `quiet_settings`."""
    return make_server(major, settings=quiet_settings(major))


def restart(server: Server, **settings: str | int | bool) -> None:
    """Start a stopped quiet server again."""
    server.start({**quiet_settings(server.binaries.major), **settings})


def relation_path(server: Server, name: str, database: str = "postgres") -> str:
    """The path of a relation's first segment from the data directory."""
    (path,) = sql(server.dsn(database), f"SELECT pg_relation_filepath('{name}')")[0]
    return str(path)


def expect_sound(server: Server) -> None:
    """No flaw that pg_amcheck finds in any relation of any database."""
    run_program(
        server, "pg_amcheck", f"--maintenance-db={server.dsn()}", "--all", "--install-missing", "--heapallindexed"
    )


def expect_equal_copy(
    server: Server, repository: Repository, work_dir: Path, tablespaces: Mapping[str, str] | None = None
) -> None:
    """The newest backup's restored copy has every row that the server has, sound indexes, and right checksums."""
    target = work_dir / "restored"
    restore(repository, target, tablespaces=dict(tablespaces or {}))
    with running_copy(target, server.binaries) as copy:
        wanted = dump_all(server)
        for old, new in (tablespaces or {}).items():
            wanted = wanted.replace(old, new)
        assert dump_all(copy) == wanted
        expect_sound(copy)
    run_program(server, "pg_checksums", "--check", "-D", target)


def extents_of(repository: Repository, manifest: Manifest, path: str) -> Extents:
    """The page map of a file of a backup."""
    parent = ParentBackup(manifest, repository)
    entry = parent.entry(os.fsencode(path))
    assert entry is not None
    return parent.extents(entry)
