"""What a push must know of the configuration, and a stamp of it, so that a push need not read the whole.

Reading and checking a configuration takes longer than storing a segment. The stamp beside the markers of pushed files holds what a
push needs (no secret: keys are named, not held) and which file it came from; a file that was touched since is read again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["PushRepository", "PushSettings", "file_stamp", "push_state", "settings_of_program"]

_STAMP = "settings.json"


@dataclass(frozen=True, slots=True)
class PushRepository:
    """A repository: its address, the kind of its key, and the key's file or name."""

    name: str
    url: str
    key_kind: str
    key_path: str | None


@dataclass(frozen=True, slots=True)
class PushSettings:
    """A cluster's settings for pushing; see `pgkeep.config.WalSettings`. ``source`` is the `file_stamp` of where they stand."""

    source: str
    cluster: str
    repositories: tuple[PushRepository, ...]
    policy: str
    push_ahead: int


def push_state(spool: Path) -> Path:
    """Where pushes keep what they know, beside the spool: PostgreSQL's account pushes, and may not enter the spool."""
    return spool.with_name(spool.name + ".push")


def settings_of_program(config_path: Path, cluster: str, state: Path) -> PushSettings:
    """The settings by the stamp in ``state``, or from the configuration where it is none of this file. Raises ConfigError."""
    try:
        fields = json.loads((state / _STAMP).read_bytes())
        if (fields["path"], fields["source"], fields["cluster"]) == (
            str(config_path),
            file_stamp(config_path),
            cluster,
        ):
            del fields["path"]
            repositories = tuple(PushRepository(**repository) for repository in fields.pop("repositories"))
            return PushSettings(**fields, repositories=repositories)
    except (OSError, ValueError, KeyError, TypeError):
        # none yet, or not one of ours: the configuration itself says what is wrong with it
        pass
    settings = _load(config_path, cluster)
    _write_stamp(config_path, settings, state)
    return settings


def file_stamp(path: Path) -> str:
    """What tells whether a file is the one that it was: inode, time and size, as `pgkeep.wal.thin_push` writes them, too.

    Raises OSError.
    """
    status = path.stat()
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"


def _load(config_path: Path, name: str) -> PushSettings:
    from pgkeep.config import load_config

    # before it is read: what changes meanwhile is read again next time
    source = file_stamp(config_path) if config_path.exists() else ""
    config = load_config(config_path, {})
    cluster = config.cluster(name)
    repositories = tuple(
        PushRepository(
            settings.name,
            settings.url,
            settings.key.kind,
            settings.key.value,
        )
        for settings in config.repositories_of(cluster)
    )
    return PushSettings(source, cluster.name, repositories, cluster.wal.policy, cluster.wal.push_ahead)


def _write_stamp(config_path: Path, settings: PushSettings, state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = state / f"{_STAMP}.{os.getpid()}"
        temporary.write_text(json.dumps({"path": str(config_path), **asdict(settings)}))
        temporary.replace(state / _STAMP)
    except OSError:
        # pushing works without, only slower
        return
