"""What keeps a drill's server to itself, beyond the private socket and ``pg_hba.conf`` that every recovery has.

It listens nowhere, archives nothing, has no slots (a backup holds none) and starts no logical replication. Here: no workers of extensions
that act by themselves, no event triggers at a login, no foreign-data wrapper that could reach another server.
"""

from __future__ import annotations

from pathlib import Path

from psycopg import sql

from pgkeep.drill.session import Copy
from pgkeep.postgres.binaries import ServerBinaries
from pgkeep.postgres.recovery_settings import rewrite_settings

__all__ = ["copy_settings", "cut_off", "silence_libraries"]

_ACTING = frozenset(
    {"pg_cron", "pg_net", "pglogical", "bdr", "repmgr", "pg_partman_bgw", "pg_squeeze", "pg_auto_failover"}
)
"""Libraries whose background workers do things by themselves: run jobs, call other hosts, replicate."""

_LOGIN_TRIGGERS = 17
"""The version that brought event triggers at a login, and the setting that turns them off."""

_PRELOAD = "shared_preload_libraries"
_WRAPPERS = "SELECT fdwname FROM pg_foreign_data_wrapper WHERE fdwhandler <> 0 ORDER BY fdwname"


def copy_settings(port: int, major: int, given: dict[str, str]) -> dict[str, str]:
    """Settings of the copy. ``given`` are the operator's, and do not override what keeps it apart."""
    apart = {
        "port": str(port),
        # what is found must be what came back
        "autovacuum": "off",
        "restart_after_crash": "off",
    }
    if major >= _LOGIN_TRIGGERS:
        apart["event_triggers"] = "off"
    return {**given, **apart}


def silence_libraries(data_directory: Path, binaries: ServerBinaries) -> list[str]:
    """Take libraries out of ``shared_preload_libraries`` that act by themselves; returns a note where there were any."""
    words: list[str | Path] = ["-D", data_directory, f"--data_directory={data_directory}", "-C", _PRELOAD]
    answer = binaries.run("postgres", *words)
    # where that fails, the server will not start either, and say why
    libraries = [name.strip().strip('"') for name in answer.stdout.split(",") if name.strip()]
    acting = [name for name in libraries if Path(name).name.removesuffix(".so") in _ACTING]
    if not acting:
        return []
    kept = ", ".join(f'"{name}"' for name in libraries if name not in acting)
    auto = data_directory / "postgresql.auto.conf"
    text = auto.read_text("utf-8", errors="surrogateescape")
    rewritten = rewrite_settings(text, remove=(), add={_PRELOAD: kept}, comment="written by pgkeep drill")
    # in place, so that it stays the server's
    auto.write_text(rewritten, "utf-8", errors="surrogateescape")
    return [f"not loaded in the copy, since they act by themselves: {', '.join(acting)}"]


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
