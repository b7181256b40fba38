"""Making a restored data directory safe to start: recovery set up, nothing that reaches for the origin's neighbours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pgkeep.postgres.recovery_settings import (
    ARCHIVE_PARAMETERS,
    RECOVERY_DEFAULTS,
    parse_settings,
    rewrite_settings,
)
from pgkeep.units import format_time, utc_now

__all__ = ["clear_recovery_settings", "write_settings"]

_COMMENT = "written by pgkeep restore"
# A server refuses a second target even where it is set to nothing (xlogrecovery.c, error_multiple_recovery_targets).
_TARGETS = frozenset(
    {"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"}
)

_MINIMAL_HBA = "# written by pgkeep restore: the backup holds no pg_hba.conf\nlocal all all peer\n"


def write_settings(
    data_directory: Path,
    *,
    recovery: Mapping[str, str],
    signal_file: str,
    settings: Mapping[str, str],
    keep_archiving: bool,
    backup_id: str,
) -> list[str]:
    """Set recovery up; returns notes for the operator.

    ``recovery`` are the settings that steer it, ``signal_file`` is ``recovery.signal`` or ``standby.signal``. Archiving and
    standby settings of the origin are turned off unless they are to be kept.
    """
    notes = []
    steering = {
        **{name: value for name, value in RECOVERY_DEFAULTS.items() if name not in _TARGETS},
        # the files are synced already, all at once
        "recovery_init_sync_method": "syncfs",
        **recovery,
    }
    safe: Mapping[str, str] = {} if keep_archiving else ARCHIVE_PARAMETERS
    auto_conf = data_directory / "postgresql.auto.conf"
    text = _read(auto_conf)
    comment = f"{_COMMENT} of {backup_id} at {format_time(utc_now())}"
    _write(auto_conf, rewrite_settings(text, remove=_TARGETS, add={**steering, **safe, **settings}, comment=comment))
    if safe:
        notes.append("archiving and synchronous replication are off in this copy (--keep-archiving leaves them on)")
    main_conf = data_directory / "postgresql.conf"
    if not main_conf.exists():
        _write(main_conf, f"# {_COMMENT}: the backup holds no postgresql.conf; see its origin's config_file\n")
        notes.append("the origin keeps postgresql.conf outside its data directory: bring it, or go on with defaults")
    elif any(line.name in _TARGETS for line in parse_settings(_read(main_conf))):
        _write(main_conf, rewrite_settings(_read(main_conf), remove=_TARGETS, add={}, comment=""))
        notes.append("postgresql.conf named a recovery target of its own; it is taken out")
    notes += [
        f"postgresql.conf line {line.number} includes {line.value}, which is not here"
        for line in parse_settings(_read(main_conf))
        if line.is_include and not (data_directory / line.value).exists() and line.name != "include_if_exists"
    ]
    hba = data_directory / "pg_hba.conf"
    if not hba.exists():
        _write(hba, _MINIMAL_HBA)
        notes.append("the backup holds no pg_hba.conf: only local connections by peer are allowed")
    _write(data_directory / signal_file, "")
    return notes


def clear_recovery_settings(data_directory: Path) -> None:
    """After recovery: take its settings out again, so that they do not steer a later one."""
    auto_conf = data_directory / "postgresql.auto.conf"
    remove = [*RECOVERY_DEFAULTS, "recovery_init_sync_method"]
    _write(auto_conf, rewrite_settings(_read(auto_conf), remove=remove, add={}, comment=""))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write with the owner and the group of the directory: as root, the server's account must be able to read it."""
    path.write_text(text, "utf-8", errors="surrogateescape")
    path.chmod(0o600)
    if os.geteuid() == 0:
        status = path.parent.stat()
        os.chown(path, status.st_uid, status.st_gid)
