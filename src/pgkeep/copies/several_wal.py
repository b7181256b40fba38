"""The WAL of one cluster in several repositories, as one archive to read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pgkeep.errors import DamageError, PgkeepError, StoreError
from pgkeep.repository import Repository
from pgkeep.repository.store import ObjectMissing
from pgkeep.repository.wal_objects import WalArchive

__all__ = ["SeveralWal"]

T = TypeVar("T")

Tell = Callable[[Repository, PgkeepError, Repository], None]


class SeveralWal(WalArchive):
    """What any of the repositories has; the first is asked first. What is written goes to the first.

    One that cannot be listed offers nothing, as long as another one can. ``tell`` hears who failed, why, and who gave the file instead.
    """

    def __init__(self, repositories: Sequence[Repository], system_identifier: int, tell: Tell) -> None:
        super().__init__(repositories[0].store, repositories[0].keys, system_identifier)
        self._sources = [(each, each.wal(system_identifier)) for each in repositories]
        self._tell = tell

    def get(self, name: str) -> bytes:
        """See `WalArchive.get`."""
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[bytes]:
        """See `WalArchive.stream`. Its bytes are checked before the first of them is given, so that one repository gives all of them."""
        failures: list[tuple[Repository, PgkeepError]] = []
        for repository, archive in self._sources:
            chunks = archive.stream(name)
            try:
                first = next(chunks)
            except (DamageError, StoreError) as error:
                failures.append((repository, error))
                continue
            for failed, reason in failures:
                self._tell(failed, reason, repository)
            yield first
            yield from chunks
            return
        # that it is absent is true only where all say so
        raise next((reason for _, reason in failures if not isinstance(reason, ObjectMissing)), failures[0][1])

    def exists(self, name: str) -> bool:
        """See `WalArchive.exists`."""
        return any(self._ask(lambda archive: [archive.exists(name)]))

    def timelines(self) -> list[int]:
        """See `WalArchive.timelines`."""
        return sorted(set(self._ask(lambda archive: archive.timelines())))

    def names(self, timeline: int | None = None, log: int | None = None) -> Iterator[tuple[str, int]]:
        """See `WalArchive.names`."""
        found = dict(self._ask(lambda archive: list(archive.names(timeline, log))))
        yield from sorted(found.items(), key=lambda each: self.object_name(each[0]))

    def _ask(self, question: Callable[[WalArchive], list[T]]) -> list[T]:
        failures, answers, answered = list[PgkeepError](), list[T](), False
        for _, archive in self._sources:
            try:
                answers += question(archive)
                answered = True
            except (DamageError, StoreError) as error:
                failures.append(error)
        if not answered:
            raise failures[0]
        return answers
