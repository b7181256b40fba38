"""What is known of the backups of a repository, beyond that they were taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgkeep.policy.retention import State
    from pgkeep.repository import Repository

__all__ = ["states_of"]


def states_of(repository: Repository) -> dict[str, State]:
    """By id; those that were only taken are left out. Raises StoreError."""
    from pgkeep.drill.memory import proven_backups
    from pgkeep.policy.retention import State
    from pgkeep.verify import VerifyMemory

    verified = VerifyMemory(repository.store, repository, objects=False).backups
    return {**dict.fromkeys(verified, State.VERIFIED), **dict.fromkeys(proven_backups(repository), State.PROVEN)}
