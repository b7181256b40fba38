"""What an operator kept in the old data directory that a backup does not bring back the same."""

from __future__ import annotations

import os
from pathlib import Path

from pgkeep.postgres.recovery_settings import RECOVERY_DEFAULTS, parse_settings

__all__ = ["differences"]

_SERVERS_OWN = frozenset({"PG_VERSION", "backup_manifest", "current_logfiles", "postmaster.opts", "postmaster.pid"})
_SERVERS_ENDINGS = (".signal", ".old", ".log", ".new", ".tmp")
_AUTO = "postgresql.auto.conf"
_LARGEST = 4 << 20


def differences(old: Path, new: Path) -> list[str]:
    """Notes on files of the operator that differ from the backup's or are not in it, and on links that are gone.

    The restored server has the settings of the backup: they fit its data. Nothing is copied from the old directory, which may be
    what was wrong.
    """
    notes = []
    for path in sorted([*_files(old), *_files(old / "conf.d")]):
        name = path.relative_to(old)
        there = new / name
        if not there.exists():
            notes.append(f"{name} is not in the backup; the old one: {path}")
        elif str(name) == _AUTO:
            if _settings(path) != _settings(there):
                notes.append(f"settings of ALTER SYSTEM differ from the old ones: diff {path} {there}")
        elif _read(path) != _read(there):
            notes.append(f"{name} is the backup's and differs from the old one: diff {path} {there}")
    if (old / "pg_wal").is_symlink():
        notes.append(
            f"pg_wal was a link to {os.readlink(old / 'pg_wal')}; it is a directory now, and the old WAL is still there"
        )
    return notes


def _files(directory: Path) -> list[Path]:
    try:
        entries = list(directory.iterdir())
    except OSError:
        return []
    return [
        entry
        for entry in entries
        if entry.is_file()
        and entry.name not in _SERVERS_OWN
        and not entry.name.endswith(_SERVERS_ENDINGS)
        and not entry.name.startswith(("backup_label", "tablespace_map", "pgkeep."))
    ]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def _settings(path: Path) -> dict[str, str]:
    text = path.read_text("utf-8", errors="surrogateescape")
    own = {*RECOVERY_DEFAULTS, "recovery_init_sync_method"}
    return {line.name: line.value for line in parse_settings(text) if line.name not in own}
