"""The settings that a configuration file holds, as typed models; `pgkeep.config.loading` reads them."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from pgkeep.errors import ConfigError
from pgkeep.units import parse_duration, parse_size

__all__ = [
    "BackupSettings",
    "Cluster",
    "ColdSettings",
    "DrillAssertion",
    "DrillPlan",
    "DrillScenario",
    "DrillSettings",
    "KeyReference",
    "Objectives",
    "RepositorySettings",
    "RestoreHook",
    "RetentionSettings",
    "ServerControl",
    "Settings",
    "WalSettings",
    "state_directory",
]

# MAX_RATE of BASE_BACKUP: 32 kB/s to 1 GB/s (PostgreSQL: basebackup.h, MAX_RATE_LOWER and MAX_RATE_UPPER).
MIN_RATE, MAX_RATE = 32 << 10, 1 << 30


_LONGEST_WINDOW = 100 * 366 * 86400.0
"""Seconds: what a date can still be taken back by."""

_OBJECT_STORES = ("s3://", "gs://", "az://")


def state_directory() -> Path:
    """Where this user's WAL waits (for root as in the Filesystem Hierarchy Standard, else XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        return Path("/var/spool/pgkeep")
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "pgkeep"


class KeyReference(BaseModel):
    """Where a repository's secret is kept: ``kind``, and the absolute path of a file or whose key it is; neither for "none".

    ``name`` is an OpenPGP recipient as gpg takes it, or the id, ARN or alias of a key of AWS KMS.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["file", "passphrase-file", "gpg", "aws-kms", "none"]
    path: Path | None = None
    name: str | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value}"

    @property
    def value(self) -> str | None:
        """The path or the name."""
        return str(self.path) if self.path is not None else self.name

    @classmethod
    def parse(cls, text: str, directory: Path | None = None) -> KeyReference:
        """From a setting's text; a relative path is relative to ``directory``, or to the current one. Raises ValueError."""
        if text == "none":
            return cls(kind="none")
        kind, _, value = text.partition(":")
        if value and kind in {"file", "passphrase-file"}:
            path = Path(os.path.normpath((directory or Path.cwd()) / Path(value).expanduser()))
            return cls(kind=cast("Literal['file', 'passphrase-file']", kind), path=path)
        # a dash would be taken for an option by the program that is given it
        if value.strip() and not value.startswith("-") and kind in {"gpg", "aws-kms"}:
            return cls(kind=cast("Literal['gpg', 'aws-kms']", kind), name=value.strip())
        raise ValueError(
            f'{text!r} is none of "file:/path", "passphrase-file:/path", "gpg:RECIPIENT", "aws-kms:KEY_ID" and "none"'
        )


def _parse_key(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    return KeyReference.parse(value, (info.context or {}).get("directory"))


def _parse_url(value: str, info: ValidationInfo) -> str:
    options = _store_options(info)
    if value.startswith(_OBJECT_STORES):
        # late: it brings a whole room with it, which the reader of a configuration may not need
        from pgkeep.repository.object_store_address import ObjectAddress

        try:
            return str(ObjectAddress.parse(value, options))
        except ConfigError as error:
            raise ValueError(f"{error}{f' ({error.hint})' if error.hint else ''}") from None
    if options:
        raise ValueError(f"{value!r} is no object store, and takes no {next(iter(options))}")
    if value.startswith("file://"):
        path = value.removeprefix("file://")
        if not path.startswith("/"):
            raise ValueError(f"{value!r} needs an absolute path: file:///path")
        return value
    if re.match(r"[a-z][a-z0-9+.-]*:", value):
        raise ValueError(
            f"{value!r} is of a kind that this version does not know (it knows file:///path, s3://, gs:// and az://)"
        )
    return _absolute(value, info).as_uri()


def _store_options(info: ValidationInfo) -> dict[str, str]:
    """The keys that stand beside ``url``, as options of the address."""
    found = {name: value for name, value in info.data.items() if name not in {"name", "key"} and value is not None}
    return {name: ("false", "true")[value] if isinstance(value, bool) else str(value) for name, value in found.items()}


def _parse_limit(value: object) -> object:
    if isinstance(value, str):
        parse_duration(value)
    return value


def _absolute(path: str, info: ValidationInfo) -> Path:
    """Relative paths are relative to the configuration file, so that it means the same from everywhere."""
    directory = (info.context or {}).get("directory", Path.cwd())
    return Path(os.path.normpath(directory / Path(path).expanduser()))


def _parse_size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _parse_duration(value: object) -> object:
    return parse_duration(value).total_seconds() if isinstance(value, str) else value


def _parse_slot_cap(value: object) -> object:
    return None if value == "none" else _parse_size(value)


def _parse_share(value: object) -> object:
    """``"1/30"``, or a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'{value!r} is no share (write it like "1/30"; 0 for none)') from None


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _parse_path(value: object, info: ValidationInfo) -> object:
    return _absolute(value, info) if isinstance(value, str) else value


def _parse_zone(value: object) -> object:
    if isinstance(value, str):
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{value!r} is not a time zone of this machine (like Asia/Seoul)") from None
    return value


Size = Annotated[int, Field(gt=0), BeforeValidator(_parse_size)]
Seconds = Annotated[float, Field(gt=0), BeforeValidator(_parse_duration)]
AbsolutePath = Annotated[Path, BeforeValidator(_parse_path)]


def _check_dsn(value: str) -> str:
    from pgkeep.postgres.dsn import parse_dsn

    parse_dsn(value)
    return value


class Settings(BaseModel):
    """A table of the file: a key that is not among the fields is a mistake."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, serialize_by_alias=True
    )


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
    time_zone: Annotated[str, BeforeValidator(_parse_zone)] = "UTC"
    grace: Annotated[float, Field(ge=0), BeforeValidator(_parse_duration)] = 86400.0

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
    rules: Annotated[tuple[ColdRuleSettings, ...], BeforeValidator(_as_tuple)] = ()
    tiers: dict[str, dict[str, TierSettings]] = {}

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

    grace: Annotated[float, Field(ge=0), BeforeValidator(_parse_duration)] = 86400.0
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
    retry_for: Annotated[str, BeforeValidator(_parse_limit)] | None = None
    lock: Literal["compliance", "governance"] | None = None
    lock_for: Annotated[str, BeforeValidator(_parse_limit)] | None = None
    url: Annotated[str, Field(min_length=1), AfterValidator(_parse_url)]
    key: Annotated[KeyReference, BeforeValidator(_parse_key)]
    retention: Annotated[RetentionSettings | None, BeforeValidator(_parse_retention)] = None
    cold: ColdSettings | None = None
    append_only: bool = False
    collection: CollectionSettings = CollectionSettings()


class BackupSettings(Settings):
    """``backup = { … }`` of a cluster. ``rate`` is bytes a second; None means no limit, or our own choice.

    ``deep_check`` is the share of files that an incremental reads whole. ``policy`` says when a backup has succeeded: stored in all
    repositories, or in the first that takes it, the others catching up.
    """

    mode: Literal["auto", "stream", "local"] = "auto"
    deep_check: Annotated[float, Field(ge=0, le=1), BeforeValidator(_parse_share)] = 1 / 30
    policy: Literal["all", "first"] = "all"
    label: str | None = None
    jobs: Annotated[int, Field(ge=1, le=256)] | None = None
    rate: Annotated[int, Field(ge=MIN_RATE, le=MAX_RATE), BeforeValidator(_parse_size)] | None = None


class WalSettings(Settings):
    """``wal = { … }`` of a cluster: how its WAL reaches the repositories.

    ``ship_every`` is seconds between pieces of the open segment. ``slot`` None: ``pgkeep_`` and the cluster's name.
    ``slot_cap`` is the most WAL in bytes that the slot may hold back on the server, None for no limit. ``spool`` None: see
    `Cluster.spool`; ``spool_limit`` is the most that waits there for a repository. ``policy`` says when a pushed segment is
    safe: in all repositories, or in the first one that takes it, the others catching up.
    """

    stream: bool = True
    ship_every: Seconds = 10.0
    synchronous: bool = False
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] | None = None
    slot_cap: Annotated[int | None, BeforeValidator(_parse_slot_cap)] = 32 << 30
    spool: AbsolutePath | None = None
    spool_limit: Size = 8 << 30
    policy: Literal["all", "first"] = "all"
    push_ahead: Annotated[int, Field(ge=0, le=64)] = 4
    prefetch: Annotated[int, Field(ge=0, le=256)] = 16


class Objectives(Settings):
    """``objectives = { … }``: the most that may be lost, and the longest that a recovery may take, in seconds.

    ``rto_span``: to every moment of the last so many seconds; None: to the newest backup and what follows.
    ``heartbeat`` is how often a receiver commits a heartbeat, None for never.
    """

    rpo: Seconds = 300.0
    rto: Seconds = 900.0
    rto_span: Seconds | None = None
    heartbeat: Seconds | None = None


class ServerControl(Settings):
    """``server = { … }``: where the server lives on this machine, and how it is stopped and started there.

    Either ``unit`` (of systemd), or ``start`` and ``stop`` (commands for the shell); with neither, ``pg_ctl`` does it.
    """

    data_directory: AbsolutePath | None = None
    unit: str | None = None
    start: str | None = None
    stop: str | None = None


class RestoreHook(Settings):
    """``[[cluster.NAME.after_restore]]``: ``sql`` in ``database``, or ``command`` for the shell; run once recovery has ended."""

    name: str
    sql: str | None = None
    database: str = "postgres"
    command: str | None = None
    timeout: Seconds = 600.0

    @model_validator(mode="after")
    def _one_of_two(self) -> RestoreHook:
        if (self.sql is None) == (self.command is None):
            raise ValueError("needs either sql or command")
        return self


class DrillAssertion(Settings):
    """``[[cluster.NAME.drill.assert]]``: what ``query`` must return in ``database``; None: the one that the DSN names.

    ``expect`` is the first value of the first row, or a comparison with it, see `pgkeep.drill.expectation`.
    """

    name: Annotated[str, Field(min_length=1)]
    query: Annotated[str, Field(min_length=1)]
    expect: bool | int | float | str = True
    database: str | None = None
    timeout: Seconds = 300.0


DrillCheck = Literal["server checksums", "amcheck", "visibility map", "tables", "extensions", "sequences"]
DRILL_CHECKS: tuple[DrillCheck, ...] = (
    "tables", "extensions", "sequences", "visibility map", "amcheck", "server checksums",
)  # fmt: skip


DrillScenario = Literal[
    "table-dropped", "bad-migration", "server-lost", "region-lost", "key-from-paper", "newest-damaged"
]


class DrillPlan(Settings):
    """``[[cluster.NAME.drill.plan]]``: a drill that is to pass at least once in ``every`` seconds; its options are those of the command."""

    name: Annotated[str, Field(min_length=1)]
    every: Seconds
    scenario: DrillScenario | None = None
    random: bool = False
    compare: bool = False
    full: bool = False


class DrillSettings(Settings):
    """``drill = { … }``: where drills restore to, and what they check.

    ``port`` only names the socket. ``sample_for`` is how long each check may take that can be done in part, in seconds. ``settings`` are
    the server's, for the copy. ``wal_wait`` is how long a drill waits for WAL of a moment that it has made itself. ``offsite`` is the
    repository that is left when a region is lost; None: the last one of the cluster. ``every``: at least once in so many seconds any
    drill must have passed, None for whenever; ``plans`` are drills with a rhythm of their own.
    """

    directory: AbsolutePath | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 54329
    checks: Annotated[tuple[DrillCheck, ...], BeforeValidator(_as_tuple)] = DRILL_CHECKS
    sample_for: Seconds = 120.0
    jobs: Annotated[int, Field(ge=1, le=256)] | None = None
    settings: dict[str, str] = {}
    wal_wait: Seconds = 120.0
    compare: bool = False
    offsite: str | None = None
    every: Seconds | None = None
    plans: Annotated[tuple[DrillPlan, ...], BeforeValidator(_as_tuple), Field(alias="plan")] = ()
    assertions: Annotated[tuple[DrillAssertion, ...], BeforeValidator(_as_tuple), Field(alias="assert")] = ()


class Cluster(Settings):
    """``[cluster.NAME]``: ``repositories`` are names of repositories, the first being the one that is read from.

    ``time_zone`` is that of times without one; None means this machine's. ``lang`` is the language of reports.
    """

    name: str
    dsn: Annotated[str, Field(min_length=1), AfterValidator(_check_dsn)]
    repositories: tuple[str, ...]
    backup: BackupSettings = BackupSettings()
    wal: WalSettings = WalSettings()
    objectives: Objectives = Objectives()
    server: ServerControl = ServerControl()
    after_restore: tuple[RestoreHook, ...] = ()
    drill: DrillSettings = DrillSettings()
    time_zone: Annotated[str, BeforeValidator(_parse_zone)] | None = None
    lang: Literal["en", "ko"] = "en"

    @property
    def slot(self) -> str:
        """The name of the replication slot."""
        return self.wal.slot or "pgkeep_" + re.sub(r"[^a-z0-9_]", "_", self.name.lower())

    @property
    def spool(self) -> Path:
        """Where WAL waits on this machine: ``/var/spool/pgkeep/<name>`` as root, else below the user's state directory."""
        return self.wal.spool or state_directory() / self.name

    @property
    def drill_directory(self) -> Path:
        """Where drills restore to: ``/var/lib/pgkeep/drills`` as root, else below the user's state directory."""
        if self.drill.directory is not None:
            return self.drill.directory
        return Path("/var/lib/pgkeep/drills") if os.geteuid() == 0 else state_directory() / "drills"

    @property
    def push_socket(self) -> Path:
        """Where a running receiver takes files from ``archive_command``: beside the spool, which is closed to others."""
        return self.spool.with_name(self.spool.name + ".sock")
