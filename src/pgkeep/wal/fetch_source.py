"""One repository as `restore_command` sees it: opened when needed, given up when it hangs, and confirmed to be there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from pgkeep.errors import StoreError
from pgkeep.repository import Repository
from pgkeep.repository.repository import ROOT_NAME
from pgkeep.repository.store import ObjectMissing
from pgkeep.repository.wal_objects import WalArchive

__all__ = ["WalSource", "limited"]

T = TypeVar("T")


class WalSource:
    """One repository's WAL of one cluster; opened when first needed, and tried again where that failed. Safe for threads."""

    def __init__(self, name: str, opener: Callable[[], tuple[WalArchive, Callable[[], bool]]]) -> None:
        """``opener`` gives the archive, and what `confirm` calls."""
        self.name = name
        self._opener = opener
        self._opened: tuple[WalArchive, Callable[[], bool]] | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, name: str, repository: Repository | Callable[[], Repository], system_identifier: int) -> WalSource:
        """A cluster's WAL in a repository, or in the one that the call opens."""

        def opener() -> tuple[WalArchive, Callable[[], bool]]:
            opened = repository if isinstance(repository, Repository) else repository()
            return opened.wal(system_identifier), lambda: _confirm_root(opened, system_identifier)

        return cls(name, opener)

    @classmethod
    def of_archive(cls, name: str, archive: WalArchive) -> WalSource:
        """An archive alone: that it holds any WAL at all is what confirms it."""
        return cls(name, lambda: (archive, lambda: _confirm_any(name, archive)))

    @property
    def archive(self) -> WalArchive:
        """The archive. Raises RepositoryError, KeyFailure, StoreError, DamageError where it cannot be opened."""
        return self._open()[0]

    def confirm(self) -> bool:
        """Whether the repository holds anything of the cluster.

        Raises StoreError where the repository is not there: an empty mount point holds nothing, and proves nothing.
        """
        return self._open()[1]()

    def _open(self) -> tuple[WalArchive, Callable[[], bool]]:
        with self._lock:
            if self._opened is None:
                self._opened = self._opener()
            return self._opened


def _confirm_root(repository: Repository, system_identifier: int) -> bool:
    try:
        repository.store.info(ROOT_NAME)
    except ObjectMissing:
        raise StoreError(
            f"{repository.store.url} is no repository any more", hint="is its file system still mounted?"
        ) from None
    return system_identifier in repository.clusters()


def _confirm_any(name: str, archive: WalArchive) -> bool:
    if not archive.timelines():
        raise StoreError(f"{name} holds no WAL of this cluster at all", hint="is its file system still mounted?")
    return True


def limited(call: Callable[[], T], seconds: float, who: str, discard: Callable[[T], None] = lambda _: None) -> T:
    """What a call gives, made in a thread of its own.

    After ``seconds`` it is left to itself and StoreError is raised: nothing else ends a call to a file system that hangs.
    What it gives later goes to ``discard``.
    """
    outcome: Future[T] = Future()
    lock = threading.Lock()
    given_up = False

    def run() -> None:
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001  (raised again by who waits)
            outcome.set_exception(error)
            return
        with lock:
            if not given_up:
                outcome.set_result(value)
                return
        discard(value)

    threading.Thread(target=run, name="wal-fetch", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        with lock:
            if outcome.done():
                return outcome.result()
            given_up = True
        raise StoreError(
            f"{who} did not answer in {seconds:g} s", hint="look after that store; --time-limit gives it longer"
        ) from None
