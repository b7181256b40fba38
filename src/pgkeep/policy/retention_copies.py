"""What a repository with rules takes of another one's WAL: what has expired in it is not copied back."""

from __future__ import annotations

from collections.abc import Callable

from pgkeep.policy.expiry_plan import plan_cluster
from pgkeep.policy.retention import Rules
from pgkeep.policy.retention_wal import NeededWal
from pgkeep.postgres.wal import parse_segment_name
from pgkeep.repository import Repository
from pgkeep.units import utc_now

__all__ = ["wanted_wal"]


def wanted_wal(repository: Repository, rules: Rules) -> Callable[[int, str], bool]:
    """Says of a cluster and the name of a WAL object whether an expiry by the rules would let it stay.

    Looks at the repository when it is first asked about a cluster, so that backups that are copied before count. Of timelines that the
    repository does not have yet it wants everything. What it returns raises StoreError, and PgkeepError where this machine's clock must be wrong.
    """
    known: dict[int, tuple[NeededWal | None, set[int]]] = {}

    def wants(system_identifier: int, name: str) -> bool:
        if system_identifier not in known:
            plan = plan_cluster(repository, system_identifier, rules, utc_now(), {})
            timelines = set(repository.wal(system_identifier).timelines())
            known[system_identifier] = (plan.needed, timelines - plan.spared)
        needed, timelines = known[system_identifier]
        if needed is None:
            return True
        try:
            timeline, start = parse_segment_name(name[:24], needed.segment_size)
        except ValueError:
            return True
        return timeline not in timelines or needed.touches(timeline, start, start + needed.segment_size)

    return wants
