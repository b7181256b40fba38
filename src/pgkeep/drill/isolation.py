"""What keeps a drill's server to itself, beyond the private socket and ``pg_hba.conf`` that every recovery has.

It listens nowhere, archives nothing, has no slots (a backup holds none) and starts no logical replication. Here: no workers of extensions
that act by themselves, no event triggers at a login, no foreign-data wrapper that could reach another server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from psycopg import sql

from pgkeep.drill.session import Copy
from pgkeep.postgres.recovery_settings import parse_settings, rewrite_settings

__all__ = ["copy_settings", "cut_off", "silence_libraries"]

_ACTING = frozenset(
    {"pg_cron", "pg_net", "pglogical", "bdr", "repmgr", "pg_partman_bgw", "pg_squeeze", "pg_auto_failover"}
)
"""Libraries whose background workers do things by themselves: run jobs, call other hosts, replicate."""

_WRAPPERS = "SELECT fdwname FROM pg_foreign_data_wrapper WHERE fdwhandler <> 0 ORDER BY fdwname"


def copy_settings(port: int, given: dict[str, str]) -> dict[str, str]:
    """Settings of the copy. ``given`` are the operator's, and do not override what keeps it apart."""
    return {
        **given,
        "port": str(port),
        # what is found must be what came back
        "autovacuum": "off",
        "restart_after_crash": "off",
    }


def silence_libraries(data_directory: Path) -> list[str]:
    """Take libraries out of ``shared_preload_libraries`` that act by themselves; returns a note where there were any."""
    auto = data_directory / "postgresql.auto.conf"
    value = ""
    for path in (data_directory / "postgresql.conf", auto):
        text = path.read_text("utf-8", errors="surrogateescape")
        value = next((line.value for line in reversed(list(parse_settings(text))) if line.name == _PRELOAD), value)
    libraries = [name.strip().strip('"') for name in value.split(",") if name.strip()]
    acting = [name for name in libraries if Path(name).name.removesuffix(".so") in _ACTING]
    if not acting:
        return []
    kept = ", ".join(_quoted(name for name in libraries if name not in acting))
    text = auto.read_text("utf-8", errors="surrogateescape")
    rewritten = rewrite_settings(text, remove=(), add={_PRELOAD: kept}, comment="written by pgkeep drill")
    owner = auto.stat()
    auto.write_text(rewritten, "utf-8", errors="surrogateescape")
    if os.geteuid() == 0:
        os.chown(auto, owner.st_uid, owner.st_gid)
    return [f"not loaded in the copy, since they act by themselves: {', '.join(acting)}"]


_PRELOAD = "shared_preload_libraries"


def _quoted(names: Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def cut_off(copy: Copy) -> list[str]:
    """Leave foreign-data wrappers without the handler that would reach other servers; returns a note where there were any."""
    found = []
    for database in copy.databases:
        with copy.connect(database) as connection:
            for (name,) in connection.execute(_WRAPPERS).fetchall():
                connection.execute(sql.SQL("ALTER FOREIGN DATA WRAPPER {} NO HANDLER").format(sql.Identifier(name)))
                found.append(f"{database}.{name}")
    return (
        [f"foreign tables cannot be read in the copy, so that it reaches no other server: {', '.join(found)}"]
        if found
        else []
    )
