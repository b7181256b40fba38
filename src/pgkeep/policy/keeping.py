"""What the rules will still keep at a later moment, of the backups that are there now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from pgkeep.policy.expire import ExpireRequest, plan_expiry
from pgkeep.policy.retention import Rules, State
from pgkeep.repository import Repository

__all__ = ["keeping"]


def keeping(
    repository: Repository, rules: Rules, states: Mapping[str, State] | None = None
) -> Callable[[datetime], set[str]]:
    """For a moment the ids of the backups that are kept then, as if no new ones came; with those that cannot be read.

    The function raises PgkeepError, StoreError.
    """

    def kept_at(moment: datetime) -> set[str]:
        plans = plan_expiry(ExpireRequest(rules, states=states or {}, now=moment), repository)
        return {name for plan in plans for name in plan.ids.difference(plan.going)}

    return kept_at
