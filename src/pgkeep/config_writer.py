"""The text of ``pgkeep.toml``: what ``pgkeep init`` writes, or adds to a file that is there."""

from __future__ import annotations

__all__ = ["CONFIG_HEADING", "format_cluster", "format_repository"]

CONFIG_HEADING = "# pgkeep's settings. All of them: docs/reference/configuration.md\n"


def format_repository(name: str, url: str, key: str) -> str:
    """A ``[repository.NAME]`` table, to be written or appended."""
    return (
        f"\n[repository.{name}]\n"
        f"url = {_quote(url)}\n"
        "# Where its secret is. Without it, and without the recovery key, the backups cannot be read by anyone.\n"
        f"key = {_quote(key)}\n"
    )


def format_cluster(name: str, dsn: str, repositories: list[str]) -> str:
    """A ``[cluster.NAME]`` table, to be written or appended."""
    listed = ", ".join(_quote(repository) for repository in repositories)
    return (
        f"\n[cluster.{name}]\n"
        "# How to reach it. Passwords belong in ~/.pgpass, a passfile or PGPASSWORD.\n"
        f"dsn = {_quote(dsn)}\n"
        f"repositories = [{listed}]\n"
        '# backup = { jobs = 2, rate = "50MB" }\n'
    )


def _quote(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
