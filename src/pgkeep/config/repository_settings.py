"""The settings of a repository: where it is, what it keeps, and what goes to cold storage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pgkeep.config.values import AbsolutePath, Duration, Key, Limit, Seconds, Settings, Url, Zone, as_tuple

__all__ = [
    "ColdRuleSettings",
    "ColdSettings",
    "CollectionSettings",
    "RepositorySettings",
    "RetentionSettings",
    "TierSettings",
]

_LONGEST_WINDOW = 100 * 366 * 86400.0
"""Seconds: what a date can still be taken back by."""


Count = Annotated[int, Field(ge=0, le=10_000)]


class RetentionSettings(Settings):
    """``[retention]``, or ``[repository.NAME.retention]`` for one repository: what `pgkeep expire` keeps; see `pgkeep.policy.retention.Rules`.

    ``window`` and ``grace`` are seconds. The counts are of calendar periods in ``time_zone``, the current one included.
    """

    window: Seconds | None = None
    daily: Count = 0
    weekly: Count = 0
    monthly: Count = 0
    yearly: Annotated[int, Field(ge=0, le=1000)] = 0
    minimum: Annotated[int, Field(ge=1, le=10_000)] = 1
    time_zone: Zone = "UTC"
    grace: Duration = 86400.0

    @model_validator(mode="after")
    def _some_rule(self) -> RetentionSettings:
        if not self.model_fields_set & {"window", "daily", "weekly", "monthly", "yearly", "minimum"}:
            raise ValueError(
                'names no rule: say what to keep, like window = "14d" and monthly = 12, or leave the table out to keep everything'
            )
        if self.window is not None and self.window > _LONGEST_WINDOW:
            raise ValueError("window is longer than a hundred years: leave the table out to keep everything")
        return self


class TierSettings(Settings):
    """``[repository.NAME.cold.tiers.CLASS.TIER]``: what the user knows better of a tier than the table; prices in US dollars."""

    hours: Annotated[float, Field(ge=0)] | None = None
    per_gib: Annotated[float, Field(ge=0)] | None = None
    per_1000: Annotated[float, Field(ge=0)] | None = None


class ColdRuleSettings(Settings):
    """``rules = [{ after = "30d", class = "GLACIER_IR" }]``: what is older than ``after`` (seconds) goes to a storage class."""

    after: Seconds
    storage_class: Annotated[str, Field(alias="class", min_length=1)]


class ColdSettings(Settings):
    """``[repository.NAME.cold]``: either ``after`` and ``class``, or several ``rules``."""

    after: Seconds | None = None
    storage_class: Annotated[str | None, Field(alias="class", min_length=1)] = None
    rules: Annotated[tuple[ColdRuleSettings, ...], BeforeValidator(as_tuple)] = ()
    tiers: dict[str, dict[str, TierSettings]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_two(self) -> ColdSettings:
        single = (self.after is not None, self.storage_class is not None)
        if any(single) != all(single):
            raise ValueError("needs after and class together")
        if any(single) == bool(self.rules):
            raise ValueError("needs either after and class, or rules")
        ages = [rule.after for rule in self.rules]
        if len(set(ages)) < len(ages):
            raise ValueError("has two rules for the same age")
        return self

    @property
    def all_rules(self) -> tuple[tuple[float, str], ...]:
        """Ages in seconds and classes."""
        if self.after is not None and self.storage_class is not None:
            return ((self.after, self.storage_class),)
        return tuple((rule.after, rule.storage_class) for rule in self.rules)


class CollectionSettings(Settings):
    """``[repository.NAME.collection]``: when `pgkeep collect` deletes. ``grace`` is seconds, ``live_share`` a share of a pack's bytes."""

    grace: Duration = 86400.0
    live_share: Annotated[float, Field(ge=0, le=1)] = 0.5


def _parse_retention(value: object) -> object:
    if isinstance(value, str):
        if value != "none":
            raise ValueError('is a table of rules, or "none" to keep everything')
        return None
    return value


class RepositorySettings(Settings):
    """``[repository.NAME]``: ``url`` is ``file:///absolute/path``, or ``s3://``, ``gs://``, ``az://bucket/prefix``.

    The keys between are for object stores (see `pgkeep.repository.object_store_address.OPTIONS`); ``url`` has them in it then, so
    that it alone is an address. ``append_only``: these credentials should be able to add, and neither to delete nor to replace.
    """

    name: str
    # before url, whose validator reads them
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    ca_file: AbsolutePath | None = None
    profile: str | None = None
    credentials_file: AbsolutePath | None = None
    account: str | None = None
    storage_class: str | None = None
    allow_http: bool | None = None
    retry_for: Limit | None = None
    lock: Literal["compliance", "governance"] | None = None
    lock_for: Limit | None = None
    url: Url
    key: Key
    retention: Annotated[RetentionSettings | None, BeforeValidator(_parse_retention)] = None
    cold: ColdSettings | None = None
    append_only: bool = False
    collection: CollectionSettings = CollectionSettings()
