"""From settings to an open repository: the one place where keys are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.repository import KeyFile, Passphrase, Repository, Secret, open_store

if TYPE_CHECKING:
    from pgkeep.config import KeyReference, RepositorySettings

__all__ = ["open_repository", "read_secret"]


def read_secret(key: KeyReference) -> Secret | None:
    """The secret that a key reference names; None for "none". Raises KeyFailure."""
    if key.path is None:
        return None
    return KeyFile.read(key.path) if key.kind == "file" else Passphrase.read(key.path)


def open_repository(settings: RepositorySettings) -> Repository:
    """Open a configured repository. Raises RepositoryError, KeyFailure, StoreError, DamageError."""
    return Repository.open(open_store(settings.url), read_secret(settings.key))
