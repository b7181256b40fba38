"""Several repositories as one to read from: what the first cannot give, object by object, the next one does.

The others have the backup as a copy: with the same id, the same files and the same extents. Where their keys are the first's, a content
has one id everywhere; where not, it is found by its place: the file that needs it, and which of its extents names it. What is read
so is held against the id that was asked for, as everything is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pgkeep.copies.several_wal import SeveralWal
from pgkeep.copies.walk import map_of
from pgkeep.errors import DamageError, KeyFailure, NotFoundError, PgkeepError, RepositoryError, StoreError
from pgkeep.repository import Repository
from pgkeep.repository.manifests import BackupName, Manifest
from pgkeep.repository.maps import Directory, FileEntry, decode_listing
from pgkeep.repository.store import ObjectMissing
from pgkeep.repository.tree import BackupFile, BackupTree

if TYPE_CHECKING:
    from pgkeep.repository.page_map import Extents

__all__ = ["SeveralRepositories", "SeveralTree", "nearest", "several"]

_SHUN_SECONDS = 60.0
"""How long a repository whose store failed is asked after the others: each question may take minutes to fail."""

_LISTINGS, _MAPS = 16, 4
"""What is remembered of a copy while it stands in."""

Warn = Callable[[str], None]
T = TypeVar("T")


class SeveralRepositories(Repository):
    """The first of some repositories, with the others to fall back on when reading. What is written goes to the first.

    ``warn`` is told of every damaged object once, and of who gave what it held; ``warnings`` has all of that.
    """

    def __init__(self, repositories: Sequence[Repository], warn: Warn) -> None:
        first = repositories[0]
        super().__init__(first.store, first.keys, first.id, first.parameters, first.capabilities)
        self._index = first.index
        self.repositories = list(repositories)
        self.warnings: list[str] = []
        self._warn = warn
        self._told: set[str] = set()
        self._shunned: dict[str, float] = {}
        self._lock = threading.Lock()

    def tree(self, manifest: Manifest) -> BackupTree:
        """The files of a backup, from whichever repository has them whole."""
        return SeveralTree(manifest, self)

    def wal(self, system_identifier: int) -> SeveralWal:
        """The WAL of all of them."""
        return SeveralWal(self.repositories, system_identifier, self.tell)

    def tell(self, failed: Repository, error: PgkeepError, instead: Repository) -> None:
        """One could not give something, and another one did."""
        name = error.object_name if isinstance(error, DamageError) and error.object_name else str(error)
        where = "" if failed.store.url in str(error) else f" ({failed.store.url})"
        message = f"{error}{where}; read from {instead.store.url} instead"
        with self._lock:
            if isinstance(error, StoreError) and not isinstance(error, ObjectMissing):
                self._shunned[failed.store.url] = time.monotonic() + _SHUN_SECONDS
                name = f"store {failed.store.url}"
            if name in self._told:
                return
            self._told.add(name)
            self.warnings.append(message)
        self._warn(message)

    def shuns(self, repository: Repository) -> bool:
        """Whether a repository has failed a moment ago."""
        return time.monotonic() < self._shunned.get(repository.store.url, 0.0)


def several(repositories: Sequence[Repository], warn: Warn) -> Repository:
    """The first, falling back on the others where there are any."""
    return SeveralRepositories(repositories, warn) if len(repositories) > 1 else repositories[0]


def nearest(repositories: Sequence[Repository], attempt: Callable[[Repository], T], note: Warn) -> tuple[T, Repository]:
    """What ``attempt`` gives for the first repository, in the given order, that it does not fail for; and that one, with the others to fall back on.

    Failures that are the repository's own are passed over, and noted: it does not answer, is damaged, lacks the backup or cannot reach
    the target. Raises the first of them where none is left.
    """
    failures: list[tuple[Repository, PgkeepError]] = []
    for number, first in enumerate(repositories):
        try:
            repository = several([first, *repositories[:number], *repositories[number + 1 :]], note)
            result = attempt(repository)
        except (NotFoundError, StoreError, DamageError, RepositoryError, KeyFailure) as error:
            failures.append((first, error))
            continue
        for failed, reason in failures:
            note(f"not from {failed.store.url}: {reason}")
        if len(repositories) > 1:
            others = ", ".join(each.store.url for each in repositories if each is not first)
            why = "the first of the configuration" if not failures else "the next one of the configuration"
            note(f"reading from {first.store.url}, {why}; where it fails: {others}")
        return result, repository
    raise failures[0][1]


class _Recent(dict[bytes, T]):
    """The few values that were put in last."""

    def __init__(self, size: int) -> None:
        self._size = size

    def keep(self, key: bytes, value: T) -> T:
        self[key] = value
        while len(self) > self._size:
            del self[next(iter(self))]
        return value


class _Copy:
    """A backup as one repository has it. Methods raise DamageError and StoreError; they are for one thread at a time."""

    def __init__(self, repository: Repository, backup: Manifest, *, is_first: bool) -> None:
        self.repository = repository
        self.reader = repository.reader()
        self._backup = backup
        self._manifest = backup if is_first else None
        self._directories: dict[bytes, Directory] | None = None
        self._listings: _Recent[list[FileEntry]] = _Recent(_LISTINGS)
        self._maps: _Recent[Extents] = _Recent(_MAPS)

    def directory(self, path: bytes) -> Directory | None:
        """A directory, None where this repository does not have the backup."""
        if self._directories is None:
            if self._manifest is None:
                name = BackupName(self._backup.id, self._backup.system_identifier)
                try:
                    self._manifest = self.repository.catalog.read(name)
                except ObjectMissing:
                    self._directories = {}
                    return None
            self._directories = {each.path: each for each in self._manifest.directories}
        return self._directories.get(path)

    def listing(self, path: bytes, number: int) -> bytes | None:
        """The id of a directory's listing."""
        directory = self.directory(path)
        return directory.listings[number] if directory is not None and number < len(directory.listings) else None

    def entry(self, path: bytes) -> FileEntry | None:
        """A file."""
        directory_path, _, name = path.rpartition(b"/")
        directory = self.directory(directory_path)
        if directory is None:
            return None
        low, high = 0, len(directory.listings)
        while low < high:
            # listings are sorted by name, and so are their files
            middle = (low + high) // 2
            files = self._files(directory.listings[middle])
            if not files or name < files[0].name:
                high = middle
            elif name > files[-1].name:
                low = middle + 1
            else:
                return next((entry for entry in files if entry.name == name), None)
        return None

    def extents(self, path: bytes) -> Extents | None:
        """A file's page map."""
        there = self._maps.get(path)
        if there is None:
            entry = self.entry(path)
            if entry is None:
                return None
            there = self._maps.keep(path, map_of(entry, self.reader))
        return there

    def _files(self, listing: bytes) -> list[FileEntry]:
        files = self._listings.get(listing)
        return self._listings.keep(listing, decode_listing(self.reader.get(listing))) if files is None else files


class SeveralTree(BackupTree):
    """A backup's files out of several repositories; safe for threads."""

    def __init__(self, manifest: Manifest, repositories: SeveralRepositories) -> None:
        super().__init__(manifest, repositories.reader())
        self._repositories = repositories
        self._copies = [
            _Copy(each, manifest, is_first=number == 0) for number, each in enumerate(repositories.repositories)
        ]
        self._lock = threading.Lock()

    def content(self, content_id: bytes, path: bytes) -> bytes:
        """A content that the file at ``path`` needs. Raises DamageError, StoreError."""
        plain = self._get(content_id, lambda copy: self._same_place(copy, content_id, path))
        if all(copy.repository.keys.content_id(plain) != content_id for copy in self._copies):
            shown = path.decode("utf-8", "backslashreplace")
            raise DamageError(f"what the repositories have of {shown} in one place differs", path=shown)
        return plain

    def _listing(self, directory: Directory, number: int) -> bytes:
        return self._get(directory.listings[number], lambda copy: copy.listing(directory.path, number))

    def _map(self, file: BackupFile, map_id: bytes) -> bytes:
        def same_file(copy: _Copy) -> bytes | None:
            entry = copy.entry(file.path)
            return None if entry is None else entry.map_id

        return self._get(map_id, same_file)

    def _cell(self, file: BackupFile, content_id: bytes) -> bytes:
        return self.content(content_id, file.path)

    def _get(self, content_id: bytes, elsewhere: Callable[[_Copy], bytes | None]) -> bytes:
        """A content by its id, else by the id that it has in another copy."""
        failures: list[tuple[_Copy, PgkeepError]] = []
        order = sorted(self._copies, key=lambda copy: self._repositories.shuns(copy.repository))
        for copy in order:
            if copy.repository.index.find(content_id) is not None:
                try:
                    plain = copy.reader.get(content_id)
                except (DamageError, StoreError) as error:
                    failures.append((copy, error))
                else:
                    return self._told(failures, copy, plain)
        if not failures:
            try:
                self._reader.locate(content_id)
            except DamageError as error:
                failures.append((self._copies[0], error))
        for copy in order:
            try:
                with self._lock:
                    other_id = elsewhere(copy)
                if other_id is not None and other_id != content_id:
                    return self._told(failures, copy, copy.reader.get(other_id))
            except (DamageError, StoreError):
                # what failed first tells more
                continue
        raise failures[0][1]

    def _told(self, failures: Sequence[tuple[_Copy, PgkeepError]], copy: _Copy, plain: bytes) -> bytes:
        for failed, error in failures:
            if failed is not copy:
                self._repositories.tell(failed.repository, error, copy.repository)
        return plain

    def _same_place(self, wanted: _Copy, content_id: bytes, path: bytes) -> bytes | None:
        """The id of a content in one copy, by its place in another one's page map."""
        theirs = wanted.extents(path)
        if theirs is None:
            return None
        for copy in self._copies:
            try:
                mine = copy.extents(path)
            except (DamageError, StoreError):
                continue
            if mine is None or len(mine) != len(theirs):
                continue
            for number, each in enumerate(mine["id"]):
                if each.tobytes() == content_id and mine["first_page"][number] == theirs["first_page"][number]:
                    other: bytes = theirs["id"][number].tobytes()
                    return other
        return None
