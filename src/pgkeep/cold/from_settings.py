"""From a configuration to the rules, the classes and the objectives of one repository."""

from __future__ import annotations

from pgkeep.cold.job import ColdRequest, check_rules
from pgkeep.cold.plan import KeptAt
from pgkeep.cold.prices import CLASSES, ClassFacts, TierChange, corrected
from pgkeep.cold.rto import ColdRule, Objective
from pgkeep.config import Config, RepositorySettings
from pgkeep.errors import ConfigError, PgkeepError
from pgkeep.repository import Repository

__all__ = ["class_facts", "cold_errors", "cold_request"]


def class_facts(settings: RepositorySettings) -> dict[str, ClassFacts] | None:
    """The classes of a repository's store, corrected by what the configuration says; None for a directory.

    Raises ConfigError for a class that the store does not have, or a tier that a class does not have.
    """
    scheme = settings.url.partition("://")[0]
    if scheme not in CLASSES:
        return None
    facts = dict(CLASSES[scheme])
    for name, tiers in (settings.cold.tiers if settings.cold is not None else {}).items():
        if name not in facts:
            raise ConfigError(
                f"[repository.{settings.name}.cold.tiers] {name} is no storage class", hint=f"one of {', '.join(facts)}"
            )
        for tier in tiers:
            if facts[name].tier(tier) is None:
                known = ", ".join(each.name for each in facts[name].tiers) or "none: it is read at once"
                raise ConfigError(
                    f"[repository.{settings.name}.cold.tiers] {name} has no tier {tier}", hint=f"it has {known}"
                )
        changes = {tier: TierChange(said.hours, said.per_gib, said.per_1000) for tier, said in tiers.items()}
        facts[name] = corrected(facts[name], changes)
    return facts


def cold_request(config: Config, settings: RepositorySettings, kept_at: KeptAt | None = None) -> ColdRequest | None:
    """What the configuration asks for; None where it has no rules. Raises ConfigError."""
    if settings.cold is None:
        return None
    clusters = [cluster for cluster in config.clusters.values() if settings.name in cluster.repositories]
    objectives = [
        Objective(cluster.name, cluster.objectives.rto, cluster.objectives.rto_span or 0.0) for cluster in clusters
    ]
    rules = [ColdRule(after, storage_class) for after, storage_class in settings.cold.all_rules]
    return ColdRequest(rules, objectives, class_facts(settings), kept_at)


def cold_errors(config: Config, settings: RepositorySettings, repository: Repository | None) -> list[PgkeepError]:
    """What `pgkeep check` says of the rules; empty where they can be carried out."""
    try:
        request = cold_request(config, settings)
    except ConfigError as error:
        return [error]
    if request is None:
        return []
    scheme = settings.url.partition("://")[0]
    found = None if repository is None or repository.capabilities is None else repository.capabilities.storage_classes
    return check_rules(settings.url, scheme if scheme in CLASSES else None, request, found)
