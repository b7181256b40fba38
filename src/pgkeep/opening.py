"""From settings to an open repository: the one place where keys are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.errors import UsageError
from pgkeep.repository import Repository, Secret, open_store
from pgkeep.repository.keys import secret_of

if TYPE_CHECKING:
    from pgkeep.config import KeyReference, RepositorySettings
    from pgkeep.findings import Finding

__all__ = ["create_repository", "open_repository", "read_secret"]


def read_secret(key: KeyReference) -> Secret | None:
    """The secret that a key reference names; None for "none". Raises KeyFailure."""
    return secret_of(key.kind, key.value or "")


def open_repository(settings: RepositorySettings) -> Repository:
    """Open a configured repository. Raises RepositoryError, KeyFailure, StoreError, DamageError."""
    return Repository.open(open_store(settings.url), read_secret(settings.key))


def create_repository(
    settings: RepositorySettings, *, share_keys_of: Repository | None = None, reader: Secret | None = None
) -> tuple[Repository, list[Finding]]:
    """Create a configured repository, once it is known what its store can do, which is written down in it.

    ``share_keys_of``: with the keys of another one, so that objects can be copied between the two as they are. ``reader``: in sealed
    mode, where only this one reads data and WAL back, and the configured key adds. Returns what a person should know of the store, too.
    Raises RepositoryError where the place is not empty, KeyFailure, StoreError.
    """
    from pgkeep.repository.store_probe import describe, probe

    store, secret = open_store(settings.url), read_secret(settings.key)
    if share_keys_of is not None and share_keys_of.encrypted != (secret is not None):
        raise UsageError(
            f"{share_keys_of.store.url} is {'' if secret is None else 'not '}encrypted, and {settings.name} is to be the other",
            hint='repositories that share keys are both encrypted or neither: see key = "…"',
        )
    capabilities = probe(store)
    parameters = None if share_keys_of is None else share_keys_of.parameters
    keys = None if share_keys_of is None else share_keys_of.keys
    repository = Repository.create(store, secret, parameters, capabilities, keys_of=keys, reader=reader)
    return repository, [] if capabilities is None else describe(f"store of {settings.name}", capabilities)
