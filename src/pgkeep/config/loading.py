"""One TOML file, with overrides from the environment, into typed settings; every mistake is reported, all at once."""

from __future__ import annotations

import os
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from pgkeep.config.repository_settings import RepositorySettings, RetentionSettings
from pgkeep.config.settings import Cluster
from pgkeep.config.values import Settings
from pgkeep.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic_core import ErrorDetails

__all__ = [
    "NAME_PATTERN",
    "SYSTEM_CONFIG",
    "Config",
    "find_config",
    "load_config",
    "parse_config",
    "search_paths",
    "user_config_path",
]

SYSTEM_CONFIG = Path("/etc/pgkeep/pgkeep.toml")
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*"

_ENVIRONMENT_KEYS = {"CLUSTER": ("dsn",), "REPOSITORY": ("url", "key")}
_ENVIRONMENT_NAME = re.compile(r"PGKEEP_(CLUSTER|REPOSITORY)_(.+)_([A-Z]+)")


class Config(BaseModel):
    """All settings. ``path`` is the file they come from, or None when all come from the environment."""

    model_config = ConfigDict(frozen=True)

    path: Path | None
    repositories: dict[str, RepositorySettings]
    clusters: dict[str, Cluster]

    def cluster(self, name: str | None = None) -> Cluster:
        """The cluster of that name, or the only one. Raises NotFoundError, or ConfigError where a name is needed."""
        return _choose(self.clusters, name, "cluster", self._place())

    def repository(self, name: str | None = None) -> RepositorySettings:
        """The repository of that name, or the only one. Raises as ``cluster`` does."""
        return _choose(self.repositories, name, "repository", self._place())

    def repositories_of(self, cluster: Cluster) -> list[RepositorySettings]:
        """The cluster's repositories, in its order."""
        return [self.repositories[name] for name in cluster.repositories]

    def _place(self) -> str:
        return "the environment" if self.path is None else str(self.path)


T = TypeVar("T")


def _choose(settings: Mapping[str, T], name: str | None, kind: str, place: str) -> T:
    if name is not None:
        if name in settings:
            return settings[name]
        known = ", ".join(settings) or "none"
        raise NotFoundError(f"there is no {kind} named {name!r} in {place}", hint=f"it knows: {known}")
    if len(settings) == 1:
        return next(iter(settings.values()))
    if not settings:
        raise ConfigError(f"{place} names no {kind}", hint="pgkeep init DSN adds one")
    raise ConfigError(f"{place} names several {kind}s", hint=f"choose one with --{kind}: {', '.join(settings)}")


def user_config_path(environment: Mapping[str, str] | None = None) -> Path:
    """The user's own file, ``~/.config/pgkeep/pgkeep.toml`` or under ``$XDG_CONFIG_HOME``."""
    environment = os.environ if environment is None else environment
    base = environment.get("XDG_CONFIG_HOME", "")
    directory = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return directory / "pgkeep" / "pgkeep.toml"


def search_paths(environment: Mapping[str, str] | None = None) -> list[Path]:
    """Where the file is looked for, in order, when nobody names it."""
    return [Path.cwd() / "pgkeep.toml", user_config_path(environment), SYSTEM_CONFIG]


def find_config(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Path | None:
    """The file to read, made absolute: ``path`` (``--config``), ``$PGKEEP_CONFIG``, or the first found; None if there is none."""
    environment = os.environ if environment is None else environment
    named = path or (Path(text) if (text := environment.get("PGKEEP_CONFIG")) else None)
    if named is not None:
        return named.absolute()
    return next((candidate for candidate in search_paths(environment) if candidate.is_file()), None)


def load_config(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the settings. Raises one ConfigError that names the file and everything wrong in it."""
    environment = os.environ if environment is None else environment
    found = find_config(path, environment)
    tables: dict[str, Any] = {} if found is None else _read(found)
    mistakes: list[str] = []
    overridden = _override(tables, environment, mistakes)
    if found is None and not overridden and not mistakes:
        looked = ", ".join(str(candidate) for candidate in search_paths(environment))
        raise ConfigError(
            f"there is no configuration file (looked for {looked})",
            hint="pgkeep init DSN writes one; or name one with --config or PGKEEP_CONFIG",
        )
    return _build(tables, found, mistakes)


def parse_config(text: str, path: Path) -> Config:
    """The settings in a file's text, without the environment. Raises ConfigError as ``load_config`` does."""
    return _build(_parse(text, path), path, [])


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {path}", hint=f"pgkeep init DSN --config {path} writes one"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", hint="TOML files are UTF-8: save it so") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None
    return _parse(text, path)


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", hint="docs/reference/configuration.md shows the form"
        ) from None


def _override(tables: dict[str, Any], environment: Mapping[str, str], mistakes: list[str]) -> bool:
    """Put the environment's settings into the tables; returns whether there were any."""
    changed = False
    for variable in sorted(environment):
        match = _ENVIRONMENT_NAME.fullmatch(variable)
        if match is None or not environment[variable]:
            continue
        kind, upper_name, key = match[1].lower(), match[2], match[3].lower()
        if key not in _ENVIRONMENT_KEYS[match[1]]:
            mistakes.append(f"the environment: {variable} is not a setting{_nearest_variable(match)}")
            continue
        section = tables.setdefault(kind, {})
        if not isinstance(section, dict):
            continue
        name = next((known for known in section if _as_variable(known) == upper_name), upper_name.lower())
        settings = section.setdefault(name, {})
        if isinstance(settings, dict):
            settings[key] = environment[variable]
            changed = True
    return changed


def _as_variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def _nearest_variable(match: re.Match[str]) -> str:
    known = [f"PGKEEP_{match[1]}_{match[2]}_{key.upper()}" for key in _ENVIRONMENT_KEYS[match[1]]]
    return f" (nearest: {get_close_matches(match[0], known, n=1, cutoff=0)[0]})"


def _build(tables: dict[str, Any], path: Path | None, mistakes: list[str]) -> Config:
    known = ("repository", "cluster", "retention")
    mistakes.extend(f"{key!r} is not a setting{_nearest(key, known)}" for key in tables if key not in known)
    context = {"directory": Path.cwd() if path is None else path.parent}
    default = _default_retention(tables, mistakes)
    repositories: dict[str, RepositorySettings] = {}
    for name, own in _named_tables(tables, "repository", mistakes):
        table = own if default is None else {"retention": default, **own}
        _validate(RepositorySettings, "repository", name, table, context, mistakes, repositories)
    clusters: dict[str, Cluster] = {}
    names = [name for name, _table in _named_tables(tables, "repository", [])]
    for name, table in _named_tables(tables, "cluster", mistakes):
        filled = dict(table)
        listed = filled.get("repositories", names if len(names) == 1 else None)
        if isinstance(listed, list):
            filled["repositories"] = tuple(listed)
            mistakes.extend(
                f"[cluster.{name}] repositories names {wanted!r}, which is not there{_nearest(str(wanted), names)}"
                for wanted in listed
                if wanted not in names
            )
            if not listed:
                mistakes.append(f"[cluster.{name}] repositories is empty")
        if isinstance(hooks := filled.get("after_restore"), list):
            filled["after_restore"] = tuple(hooks)
        _validate(Cluster, "cluster", name, filled, context, mistakes, clusters)
    if mistakes:
        place = "the environment" if path is None else str(path)
        text = f" {mistakes[0]}" if len(mistakes) == 1 else "".join(f"\n  {mistake}" for mistake in mistakes)
        raise ConfigError(f"{place}:{text}", hint="docs/reference/configuration.md lists every setting")
    return Config(path=path, repositories=repositories, clusters=clusters)


def _default_retention(tables: Mapping[str, Any], mistakes: list[str]) -> RetentionSettings | None:
    """The rules of the repositories that have none of their own."""
    table = tables.get("retention")
    if table is None:
        return None
    if not isinstance(table, dict):
        mistakes.append("retention is not a table: write [retention]")
        return None
    try:
        return RetentionSettings.model_validate(table)
    except ValidationError as errors:
        mistakes.extend(
            _sentence("[retention]", RetentionSettings, error) for error in errors.errors(include_url=False)
        )
        return None


def _named_tables(tables: Mapping[str, Any], kind: str, mistakes: list[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    section = tables.get(kind, {})
    if not isinstance(section, dict):
        mistakes.append(f"{kind} is not a table: write [{kind}.NAME]")
        return
    for name, table in section.items():
        if not isinstance(table, dict):
            mistakes.append(f"[{kind}] {name} is not a table: write [{kind}.NAME] above it")
        elif re.fullmatch(NAME_PATTERN, name) is None:
            mistakes.append(f"[{kind}.{name!r}] is not a name: use letters, digits, - and _")
        else:
            yield name, table


S = TypeVar("S", bound=Settings)


def _validate(
    model: type[S],
    kind: str,
    name: str,
    table: Mapping[str, Any],
    context: dict[str, Path],
    mistakes: list[str],
    into: dict[str, S],
) -> None:
    if "name" in table:
        mistakes.append(f"[{kind}.{name}] name is not a setting: the name stands in the heading")
    try:
        into[name] = model.model_validate({**table, "name": name}, context=context)
    except ValidationError as errors:
        mistakes.extend(_sentence(f"[{kind}.{name}]", model, error) for error in errors.errors(include_url=False))


def _sentence(heading: str, model: type[BaseModel], error: ErrorDetails) -> str:
    location = [str(part) for part in error["loc"]]
    where = f"{heading} {'.'.join(location)}".rstrip()
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        return f"{where} is not a setting{_nearest(location[-1], fields)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if message.startswith("is "):
        return f"{where} {message}"
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The settings of the table at ``path`` within a model; the numbers of a list's items are passed over."""
    for step in path:
        # numbers of a list's items, and names that the user chooses
        if step.isdigit() or step not in (by_key := _by_key(model)):
            continue
        model = next(_settings_in(model.model_fields[by_key[step]].annotation))
    return [key for key, field in _by_key(model).items() if path or field != "name"]


def _by_key(model: type[BaseModel]) -> dict[str, str]:
    """The keys of a table as people write them, and the fields that they are."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _settings_in(annotation: object) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from _settings_in(inner)


def _nearest(key: str, known: Iterable[str]) -> str:
    candidates = list(known)
    if not candidates:
        return ""
    return f" (nearest: {get_close_matches(key, candidates, n=1, cutoff=0)[0]}; known: {', '.join(candidates)})"
