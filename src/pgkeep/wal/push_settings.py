"""What a push must know of the configuration, and a stamp of it, so that a push need not read the whole.

Reading and checking a configuration takes longer than storing a segment. The stamp beside the markers of pushed files holds what a
push needs (no secret: keys are named, not held) and which file it came from; a file that was touched since is read again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["PushRepository", "PushSettings", "push_state", "settings_of_program"]

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
    """A cluster's settings for pushing; see `pgkeep.config.WalSettings`."""

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
        source = _source(config_path)
        stamp = json.loads((state / _STAMP).read_bytes())
        if stamp["source"] == source and stamp["settings"]["cluster"] == cluster:
            fields = stamp["settings"]
            repositories = tuple(PushRepository(**repository) for repository in fields.pop("repositories"))
            return PushSettings(**fields, repositories=repositories)
    except (OSError, ValueError, KeyError, TypeError):
        # none yet, or not one of ours: the configuration itself says what is wrong with it
        pass
    settings = _load(config_path, cluster)
    _write_stamp(config_path, settings, state)
    return settings


def _load(config_path: Path, name: str) -> PushSettings:
    from pgkeep.config import load_config

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
    return PushSettings(cluster.name, repositories, cluster.wal.policy, cluster.wal.push_ahead)


def _write_stamp(config_path: Path, settings: PushSettings, state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = state / f"{_STAMP}.{os.getpid()}"
        temporary.write_text(json.dumps({"source": _source(config_path), "settings": asdict(settings)}))
        temporary.replace(state / _STAMP)
    except OSError:
        # pushing works without, only slower
        return


def _source(path: Path) -> list[object]:
    status = path.stat()
    return [str(path), status.st_ino, status.st_mtime_ns, status.st_size]
