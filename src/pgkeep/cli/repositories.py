"""Which repository a command works on: from the configuration, or named on the command line when all else is lost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgkeep.cli.options import Context, cluster_option
from pgkeep.errors import UsageError

if TYPE_CHECKING:
    from pgkeep.config import KeyReference, RepositorySettings, RetentionSettings
    from pgkeep.repository import Repository, Secret, Store

__all__ = ["Chosen", "repository_options"]


class Chosen:
    """The repository and the cluster that a command line means; opened when asked for."""

    def __init__(
        self,
        context: Context,
        cluster: str | None,
        repository: str | None,
        key_file: Path | None,
        passphrase_file: Path | None,
        key: str | None = None,
    ) -> None:
        if sum(given is not None for given in (key_file, passphrase_file, key)) > 1:
            raise UsageError("--key, --key-file and --passphrase-file exclude each other", hint="leave all but one out")
        self._key = _parse_key(key)
        self._context = context
        self._cluster = cluster
        self._repository = repository
        self._key_file = key_file
        self._passphrase_file = passphrase_file

    @property
    def _is_address(self) -> bool:
        return self._repository is not None and "/" in self._repository

    @functools.cached_property
    def cluster(self) -> str | None:
        """The cluster's name; None means any, where a repository is named by its address."""
        if self._is_address:
            return self._cluster
        return self._context.config().cluster(self._cluster).name

    @property
    def is_configured(self) -> bool:
        """Whether it is one of the configuration, opened by what that says."""
        return not self._is_address and self._key_file is None and self._passphrase_file is None and self._key is None

    def key(self) -> KeyReference | None:
        """What opens it: of the command line, else of the configuration; None where an address came without one."""
        from pgkeep.config import KeyReference

        if self._key is not None:
            return self._key
        if self._key_file is not None:
            return KeyReference(kind="file", path=self._key_file.absolute())
        if self._passphrase_file is not None:
            return KeyReference(kind="passphrase-file", path=self._passphrase_file.absolute())
        if self._is_address:
            return None
        key: KeyReference = self._settings().key
        return key

    def retention(self) -> RetentionSettings | None:
        """The rules of what it keeps; None where it has none, or is named by its address."""
        if self._is_address:
            return None
        rules: RetentionSettings | None = self._settings().retention
        return rules

    def configured_key(self) -> KeyReference | None:
        """What the configuration opens it by, whatever the command line says; None for an address."""
        if self._is_address:
            return None
        key: KeyReference = self._settings().key
        return key

    def store(self) -> Store:
        """The repository's store, for what needs no key. Raises ConfigError."""
        from pgkeep.repository import open_store

        if self._is_address:
            assert self._repository is not None
            return open_store(self._repository)
        return open_store(self._settings().url)

    def open(self) -> Repository:
        """The repository, opened. Raises RepositoryError, KeyFailure."""
        from pgkeep.opening import open_repository
        from pgkeep.repository import Repository

        secret = self._secret()
        if self._is_address or secret is not None:
            return Repository.open(self.store(), secret)
        return open_repository(self._settings())

    def open_all(self) -> list[Repository]:
        """Every repository of the cluster in its order, or the one that was named. Raises as `open`."""
        return [open_it() for open_it in self.openers()]

    def openers(self) -> list[Callable[[], Repository]]:
        """How to open every repository of the cluster, in its order, or the one that was named; each raises as `open`."""
        from pgkeep.opening import open_repository

        if self._repository is not None or self._secret() is not None:
            return [self.open]
        config = self._context.config()
        settings = config.repositories_of(config.cluster(self._cluster))
        return [functools.partial(open_repository, each) for each in settings]

    @property
    def name(self) -> str:
        """How the repository is called in the configuration, or its address."""
        if self._is_address:
            assert self._repository is not None
            return self._repository
        name: str = self._settings().name
        return name

    def other_names(self) -> list[str]:
        """The cluster's other repositories, where one of the configuration is meant."""
        if self._is_address:
            return []
        config = self._context.config()
        return [each for each in config.cluster(self._cluster).repositories if each != self.name]

    def arguments(self) -> list[str]:
        """The words of a command line that chooses the same, from any directory, for programs that call us later."""
        from pgkeep.config import find_config

        words = []
        config = find_config(self._context.config_path)
        if config is not None:
            words += ["--config", str(config)]
        if self.cluster is not None:
            words += ["--cluster", self.cluster]
        if self._repository is not None:
            words += ["--repository", self._repository]
        for option, path in (("--key-file", self._key_file), ("--passphrase-file", self._passphrase_file)):
            if path is not None:
                words += [option, str(path.absolute())]
        return words if self._key is None else [*words, "--key", str(self._key)]

    def files(self) -> list[str]:
        """The files that say where the repositories are, and that open them."""
        from pgkeep.config import find_config

        named = None if self._key is None else self._key.path
        given = [path for path in (self._key_file, self._passphrase_file, named) if path is not None]
        config_path = find_config(self._context.config_path)
        if self._is_address or config_path is None:
            return [str(path.absolute()) for path in given]
        config = self._context.config()
        keys = [settings.key.path for settings in config.repositories_of(config.cluster(self._cluster))]
        return [str(path.absolute()) for path in (config_path, *given, *keys) if path is not None]

    def settings(self) -> RepositorySettings | None:
        """What the configuration says of the repository; None where it is named by its address."""
        settings: RepositorySettings | None = None if self._is_address else self._settings()
        return settings

    def _settings(self) -> Any:
        config = self._context.config()
        if self._repository is not None:
            return config.repository(self._repository)
        return config.repositories_of(config.cluster(self._cluster))[0]

    def _secret(self) -> Secret | None:
        from pgkeep.repository import KeyFile, Passphrase

        if self._key is not None:
            from pgkeep.opening import read_secret

            return read_secret(self._key)
        if self._key_file is not None:
            return KeyFile.read(self._key_file)
        return None if self._passphrase_file is None else Passphrase.read(self._passphrase_file)


def repository_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--cluster``, ``--repository`` and the keys; the function gets them as ``chosen: Chosen``."""

    @click.option(
        "--repository",
        metavar="NAME|ADDRESS",
        help="A repository of the configuration, or the address of one: file:///path. Default: the cluster's first.",
    )
    @click.option(
        "--key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The key (or a file with the recovery key), where the configuration does not name it.",
    )
    @click.option(
        "--passphrase-file", type=click.Path(dir_okay=False, path_type=Path), help="The same for a passphrase."
    )
    @click.option(
        "--key",
        "named_key",
        metavar="KEY",
        help="The same for a key of any kind, as the configuration names it: gpg:RECIPIENT, aws-kms:ID.",
    )
    @functools.wraps(function)
    def with_chosen(
        context: Context,
        *arguments: Any,
        cluster: str | None,
        repository: str | None,
        key_file: Path | None,
        passphrase_file: Path | None,
        named_key: str | None,
        **options: Any,
    ) -> Any:
        chosen = Chosen(context, cluster, repository, key_file, passphrase_file, named_key)
        return function(context, *arguments, chosen=chosen, **options)

    return cluster_option(with_chosen)


def _parse_key(text: str | None) -> KeyReference | None:
    if text is None:
        return None
    from pgkeep.config import KeyReference

    try:
        return KeyReference.parse(text)
    except ValueError as error:
        raise UsageError(str(error), hint="name the key as the configuration does") from None
