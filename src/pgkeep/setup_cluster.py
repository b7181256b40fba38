"""The job behind ``pgkeep init``: from a DSN to a repository with its key, and a configuration that knows the cluster.

First a plan, which touches nothing; then the work. Running it again finds what is there and adds what is missing: an
existing repository is opened instead of made, an existing key file is used, an existing configuration gets the cluster
appended. Nothing that exists is overwritten.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.checks import check_repository
from pgkeep.config import (
    NAME_PATTERN,
    SYSTEM_CONFIG,
    Config,
    KeyReference,
    RepositorySettings,
    find_config,
    load_config,
    parse_config,
    user_config_path,
)
from pgkeep.config_writer import CONFIG_HEADING, format_cluster, format_repository
from pgkeep.errors import ConfigError, UsageError
from pgkeep.opening import create_repository, open_repository
from pgkeep.postgres.dsn import parse_dsn, redact_dsn, with_password_file
from pgkeep.repository import KeyFile, exists, open_store
from pgkeep.repository.object_store_address import ObjectAddress, is_object_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgkeep.checks import Finding
    from pgkeep.postgres.facts import ServerFacts

__all__ = ["Plan", "PlannedRepository", "SetupResult", "carry_out", "plan_setup"]

DEFAULT_NAME = "main"
SYSTEM_REPOSITORIES = Path("/var/lib/pgkeep")


@dataclass(frozen=True, slots=True)
class PlannedRepository:
    """A repository of the plan. ``is_configured``: its table is in the configuration already."""

    settings: RepositorySettings
    is_configured: bool
    exists: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``carry_out`` will do.

    ``dsn`` holds no password; where the given one did, ``password_line`` goes to ``password_file``. ``is_configured``: the
    cluster is in the configuration already, with this DSN and these repositories. ``sealed``: new repositories are in sealed mode.
    """

    cluster: str
    dsn: str
    config_path: Path
    repositories: tuple[PlannedRepository, ...]
    new_key_file: Path | None
    password_file: Path | None
    password_line: str | None
    is_configured: bool
    sealed: bool = False

    def describe(self) -> list[str]:
        """What will be made, a line each; empty where everything is there."""
        lines = [
            f"{'use' if repository.exists else 'create'} the repository {repository.settings.url}"
            f"{self._sealing(repository)}"
            for repository in self.repositories
        ]
        if self.new_key_file is not None:
            lines.append(f"create the key file {self.new_key_file}")
        if self.password_file is not None:
            lines.append(f"move the DSN's password to {self.password_file} (command lines are visible to others)")
        if not self.is_configured:
            verb = "add the cluster to" if self.config_path.exists() else "write"
            lines.append(f"{verb} {self.config_path}")
        return lines

    def _sealing(self, repository: PlannedRepository) -> str:
        if repository.settings.key.kind == "none":
            return ", not encrypted"
        return ", which only its recovery key will read" if self.sealed and not repository.exists else ""


@dataclass(frozen=True, slots=True)
class SetupResult:
    """What is there now. ``recovery_keys``: repository name -> printed key, of those made just now, seen this once."""

    plan: Plan
    created: tuple[str, ...]
    recovery_keys: dict[str, str]
    findings: tuple[Finding, ...]


def plan_setup(
    dsn: str,
    *,
    config_path: Path | None = None,
    name: str | None = None,
    urls: Sequence[str] = (),
    key: KeyReference | None = None,
    sealed: bool = False,
) -> Plan:
    """Decide names and places; ``key`` None means a key file beside the configuration. Creates nothing.

    ``sealed``: see `Plan`. Raises ConfigError where the configuration has another cluster of that name, or another key for a
    repository; UsageError where a repository cannot be sealed.
    """
    if name is not None and re.fullmatch(NAME_PATTERN, name) is None:
        raise UsageError(f"{name!r} is not a name for a cluster", hint="use letters, digits, - and _")
    path = find_config(config_path) or _default_config_path()
    config = load_config(path, {}) if path.exists() else Config(path=path, repositories={}, clusters={})
    try:
        password_file = path.with_name(f"{name or DEFAULT_NAME}.pgpass")
        clean_dsn, password_line = with_password_file(dsn, password_file)
        if password_line is not None and password_line in _lines(password_file):
            password_line = None
    except ValueError as error:
        raise ConfigError(f"the DSN {error}", hint="write it like 'host=db.example user=replication_user'") from None
    cluster = name or _name_of(config, clean_dsn)
    chosen_urls = list(urls) or _default_urls(config, cluster)
    repositories = _plan_repositories(config, path, cluster, chosen_urls, key)
    plain = next((planned.settings.url for planned in repositories if planned.settings.key.kind == "none"), None)
    if sealed and plain is not None:
        raise UsageError(f"{plain} is not encrypted, so nothing can be sealed in it", hint="leave --sealed out")
    names = tuple(repository.settings.name for repository in repositories)
    key_files = [r.settings.key.path for r in repositories if r.settings.key.kind == "file" and not r.exists]
    new_key_file = next((file for file in key_files if file is not None and not file.exists()), None)
    return Plan(
        cluster=cluster,
        dsn=clean_dsn,
        config_path=path,
        repositories=tuple(repositories),
        new_key_file=new_key_file,
        password_file=password_file if password_line is not None else None,
        password_line=password_line,
        is_configured=_is_configured(config, cluster, clean_dsn, names),
        sealed=sealed,
    )


def _default_config_path() -> Path:
    return SYSTEM_CONFIG if os.geteuid() == 0 else user_config_path()


def _name_of(config: Config, dsn: str) -> str:
    """The name that the DSN's cluster has in the configuration already, or the default one."""
    wanted = parse_dsn(dsn)
    return next((name for name, cluster in config.clusters.items() if parse_dsn(cluster.dsn) == wanted), DEFAULT_NAME)


def _is_configured(config: Config, name: str, dsn: str, repositories: tuple[str, ...]) -> bool:
    if name not in config.clusters:
        return False
    there = config.clusters[name]
    if parse_dsn(there.dsn) == parse_dsn(dsn) and there.repositories == repositories:
        return True
    raise ConfigError(
        f"{config.path} has a cluster {name!r} already, with the DSN {redact_dsn(there.dsn)} "
        f"and repositories {', '.join(there.repositories)}",
        hint="give this one another name with --name, or edit the file",
    )


def _default_urls(config: Config, cluster: str) -> list[str]:
    """The cluster's own repositories, else the only one there is, else a directory of the cluster's name."""
    if cluster in config.clusters:
        return [config.repositories[name].url for name in config.clusters[cluster].repositories]
    if len(config.repositories) == 1:
        return [repository.url for repository in config.repositories.values()]
    parent = SYSTEM_REPOSITORIES.parent if not SYSTEM_REPOSITORIES.exists() else SYSTEM_REPOSITORIES
    if os.access(parent, os.W_OK):
        return [str(SYSTEM_REPOSITORIES / cluster)]
    return [str(Path.home() / ".local" / "share" / "pgkeep" / cluster)]


def _plan_repositories(
    config: Config, path: Path, cluster: str, urls: list[str], key: KeyReference | None
) -> list[PlannedRepository]:
    planned: list[PlannedRepository] = []
    taken = set(config.repositories)
    for url in urls:
        absolute = _absolute(url)
        store = open_store(absolute)
        known = next((r for r in config.repositories.values() if r.url == absolute), None)
        if known is not None:
            if key is not None and key != known.key:
                raise ConfigError(
                    f"{path} names the key {known.key} for {known.url}, not {key}", hint="leave the key option out"
                )
            planned.append(PlannedRepository(known, is_configured=True, exists=exists(store)))
            continue
        name = next(n for n in (cluster, *(f"{cluster}-{i}" for i in range(2, 1000))) if n not in taken)
        taken.add(name)
        reference = key or KeyReference(kind="file", path=path.with_name("pgkeep.key"))
        settings = RepositorySettings(name=name, url=absolute, key=reference)
        planned.append(PlannedRepository(settings, is_configured=False, exists=exists(store)))
    return planned


def _absolute(url: str) -> str:
    """As a configuration has it once it is read."""
    if is_object_address(url):
        return str(ObjectAddress.parse(url))
    return url if "://" in url else Path(os.path.normpath(Path(url).expanduser().absolute())).as_uri()


def carry_out(plan: Plan, facts: ServerFacts | None) -> SetupResult:
    """Do what the plan says, the configuration last, so that it never names what is not there.

    Raises RepositoryError where a repository's place holds something else, KeyFailure where the key does not open one that
    exists, StoreError, ConfigError. Run it again after a failure: it goes on.
    """
    created: list[str] = []
    recovery_keys: dict[str, str] = {}
    store_findings: list[Finding] = []
    _make_parent(plan.config_path)
    if plan.new_key_file is not None:
        _make_parent(plan.new_key_file)
        KeyFile.generate(plan.new_key_file)
        created.append(str(plan.new_key_file))
    for planned in plan.repositories:
        settings = planned.settings
        if planned.exists:
            _open_existing(settings, sealed=plan.sealed)
            continue
        # the key that reads never touches this machine's disk
        reader = KeyFile.new() if plan.sealed else None
        repository, found = create_repository(settings, reader=reader)
        store_findings += found
        created.append(settings.url)
        if reader is not None:
            recovery_keys[settings.name] = reader.text()
        elif repository.encrypted:
            recovery_keys[settings.name] = repository.add_recovery_key()
    if plan.password_file is not None and plan.password_line is not None:
        _write_password_file(plan.password_file, plan.password_line)
        created.append(str(plan.password_file))
    if not plan.is_configured:
        _write_config(plan)
        created.append(str(plan.config_path))
    findings = [finding for r in plan.repositories for finding in check_repository(r.settings, facts)]
    return SetupResult(plan, tuple(created), recovery_keys, (*store_findings, *findings))


def _open_existing(settings: RepositorySettings, *, sealed: bool) -> None:
    repository = open_repository(settings)
    if sealed and not repository.keys.boxes:
        raise UsageError(
            f"the repository {settings.url} is there already and not in sealed mode",
            hint="sealed mode is chosen when a repository is made: name another place with --repository",
        )


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create {path.parent}: {error.strerror}", hint="name another place with --config FILE"
        ) from None


def _write_password_file(path: Path, line: str) -> None:
    # libpq takes the first line that fits, so a new password goes before an old one.
    _replace(path, "".join(f"{each}\n" for each in (line, *_lines(path))))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _write_config(plan: Plan) -> None:
    path = plan.config_path
    text = path.read_text(encoding="utf-8") if path.exists() else CONFIG_HEADING
    if not text.endswith("\n"):
        text += "\n"
    for planned in plan.repositories:
        if not planned.is_configured:
            text += format_repository(planned.settings.name, planned.settings.url, str(planned.settings.key))
    text += format_cluster(plan.cluster, plan.dsn, [planned.settings.name for planned in plan.repositories])
    parse_config(text, path)
    _replace(path, text)


def _replace(path: Path, text: str) -> None:
    """Write a file of our own whole or not at all, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                if path.exists():
                    os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint=f"ls -ld {path.parent}") from None
