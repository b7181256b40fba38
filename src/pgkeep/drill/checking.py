"""All checks of a drill, in order, timed; and what the first failure means."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import psycopg

from pgkeep.config import Cluster
from pgkeep.drill.checks.amcheck import check_amcheck
from pgkeep.drill.checks.assertions import check_assertion
from pgkeep.drill.checks.checksums import check_checksums
from pgkeep.drill.checks.extensions import check_extensions
from pgkeep.drill.checks.sequences import check_sequences
from pgkeep.drill.checks.tables import check_tables
from pgkeep.drill.checks.visibility import check_visibility
from pgkeep.drill.record import Check, CheckKind
from pgkeep.drill.request import DrillRequest
from pgkeep.drill.session import Copy, reason_of
from pgkeep.errors import ConfigError, DamageError, PgkeepError, ProofError, RecoveryError, ServerError
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.progress import Progress

__all__ = ["asked_of", "checked_nothing", "failure_of", "refuse_nothing", "stopped_check", "timed"]

_OF_SERVER: dict[CheckKind, Callable[[Copy], Check]] = {
    "tables": check_tables,
    "extensions": check_extensions,
    "sequences": check_sequences,
    "visibility map": check_visibility,
    "amcheck": check_amcheck,
}
_OF_BYTES = frozenset({"server checksums", "amcheck", "visibility map", "tables", "comparison"})
_CLUSTERS_OWN = frozenset({"reached", "extensions"})
"""Checks that look at no data."""


def refuse_nothing(cluster: Cluster, request: DrillRequest) -> None:
    """Raises ConfigError where a drill would look at nothing that came back."""
    looks = [check for check in cluster.drill.checks if check not in _CLUSTERS_OWN]
    if not looks and not cluster.drill.assertions and not (request.compare or cluster.drill.compare):
        raise ConfigError(
            f"a drill of cluster {cluster.name} would check nothing that came back: drill.checks names"
            f" {', '.join(cluster.drill.checks) or 'no check'}, and there is no assertion",
            hint='take drill.checks out, or name some: checks = ["tables", "amcheck"]',
        )


def asked_of(copy: Copy, cluster: Cluster, progress: Progress) -> list[Check]:
    """What is asked of the running server. One that dies of a question fails that check, and the rest."""
    checks = []
    for kind, look in _OF_SERVER.items():
        if kind in cluster.drill.checks:
            progress.phase(f"checking {kind}")
            checks.append(timed(kind, lambda look=look: look(copy)))  # type: ignore[misc]
    database = endpoint_of(cluster.dsn).database
    default = database if database in copy.databases else "postgres"
    for assertion in cluster.drill.assertions:
        progress.phase(f"asserting {assertion.name}")
        checks.append(check_assertion(copy, assertion, default))
    return checks


def stopped_check(copy: Copy, cluster: Cluster, progress: Progress) -> list[Check]:
    """What is looked at once the server has been stopped in good order."""
    if "server checksums" not in cluster.drill.checks:
        return []
    progress.phase("checking server checksums")
    return [
        timed(
            "server checksums",
            lambda: check_checksums(copy.data_directory, budget=copy.budget, seed=copy.seed, jobs=copy.jobs),
        )
    ]


def timed(kind: CheckKind, look: Callable[[], Check]) -> Check:
    """A check with the seconds that it took; one that cannot be ended is a failed one."""
    began = time.monotonic()
    try:
        check = look()
    except (psycopg.Error, ServerError, OSError) as error:
        check = Check(
            name=kind,
            kind=kind,
            outcome="failed",
            detail=f"the check of {kind} broke off: {reason_of(error)}",
            remedy=getattr(error, "hint", None) or "see the server's log: pgkeep drill --keep leaves it",
        )
    return msgspec.structs.replace(check, seconds=time.monotonic() - began)


def checked_nothing(checks: Sequence[Check]) -> PgkeepError | None:
    """The failure of a drill that came to its end without having looked at anything."""
    if any(check.counted and check.outcome != "skipped" and check.kind not in _CLUSTERS_OWN for check in checks):
        return None
    skipped = [f"{check.name} ({check.detail})" for check in checks if check.outcome == "skipped"]
    why = f": skipped were {', '.join(skipped)}" if skipped else ""
    return ProofError(
        f"the drill checked nothing that came back, which proves nothing{why}",
        hint="see drill.checks in the configuration; an assertion of your own always counts: [[cluster.NAME.drill.assert]]",
    )


def failure_of(checks: Sequence[Check]) -> PgkeepError | None:
    """The first check that failed, as an error with its exit code; None where none did."""
    check = next((check for check in checks if check.outcome == "failed"), None)
    if check is None:
        return None
    if check.kind == "reached":
        return RecoveryError(check.detail, hint=check.remedy)
    kind = DamageError if check.kind in _OF_BYTES else ProofError
    said = f"assertion {check.name!r} failed: {check.detail}" if check.kind == "assertion" else check.detail
    return kind(said, hint=check.remedy)
