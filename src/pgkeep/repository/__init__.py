"""All that is known of keeping bytes: stores, sealing, packs, maps, manifests. Knows no PostgreSQL."""

from __future__ import annotations

from pgkeep.repository.keys import KeyFile, Passphrase, Secret
from pgkeep.repository.repository import Repository, exists
from pgkeep.repository.store import Capabilities, Store, open_store

__all__ = [
    "Capabilities",
    "KeyFile",
    "Passphrase",
    "Repository",
    "Secret",
    "Store",
    "exists",
    "open_store",
]
