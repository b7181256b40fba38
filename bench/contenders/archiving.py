"""Setting ``archive_command`` for the contender whose turn it is."""

from __future__ import annotations

import psycopg


def set_archive_command(dsn: str, command: str | None) -> None:
    """Set it, or with None put back what the configuration says."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if command is None:
            connection.execute("ALTER SYSTEM RESET archive_command")
        else:
            connection.execute(
                psycopg.sql.SQL("ALTER SYSTEM SET archive_command = {}").format(psycopg.sql.Literal(command))
            )
        connection.execute("SELECT pg_reload_conf()")
