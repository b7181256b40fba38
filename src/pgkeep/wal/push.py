"""Storing WAL files for ``archive_command`` without a receiver: checked, durable in the repositories, and a few ahead.

A push returns only when the file is durable, in all repositories or, with the policy "first", in one; the others are brought up to
date by later pushes, from the repository that has it, since the server recycles its own copy. Segments that the server has finished
beside the one it asks for are stored, too, and remembered by a marker: the push that asks for them finds the work done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pgkeep.errors import DamageError, PgkeepError, RepositoryError, StoreError, UsageError
from pgkeep.postgres.control_file import CONTROL_FILE, ControlFile, parse_control_file
from pgkeep.postgres.wal import WalFileKind, check_segment_header, classify, parse_segment_name, read_segment_header
from pgkeep.repository import Repository, open_store
from pgkeep.repository.keys import secret_of
from pgkeep.repository.wal_objects import DifferentWalError
from pgkeep.wal.claims import ForeignServerError, check_claim, data_directory_claim
from pgkeep.wal.push_settings import PushRepository, PushSettings, file_stamp
from pgkeep.wal.small_files import fsync_directory

__all__ = ["Pusher", "control_file_of", "data_directory_of", "exit_code_of", "push_line"]

_LONGEST_SMALL_FILE = 1 << 20
"""Bytes: more than any history or backup history file."""

_CATCH_UP = 8
"""Files that one push brings to a repository that was down before: the server waits for it."""

_CONTROL_FILE_READS = 10
_LAST_FAILURE = 125
_SEGMENTS = (WalFileKind.SEGMENT, WalFileKind.PARTIAL)


class Pusher:
    """Pushes files of one server; ``state`` keeps markers, and no WAL. Nothing is opened until `push`.

    ``warnings``: what a push has found wrong that does not make it fail: a repository that is behind.
    """

    def __init__(self, settings: PushSettings, state: Path, data_directory: Path) -> None:
        self._settings = settings
        self._state = state
        self._data_directory = data_directory
        self._repositories: dict[str, Repository] = {}
        self.warnings: list[str] = []
        self._control = control_file_of(data_directory)

    def push(self, path: Path) -> None:
        """Return when the file is durable.

        Raises DamageError for a file that is not what its name says or of another cluster, ForeignServerError where another data
        directory archives its timeline, DifferentWalError where a repository holds other bytes under its name, UsageError,
        StoreError, KeyFailure.
        """
        ahead = self._ready(path) if self._settings.push_ahead else []
        if self._is_pushed(path):
            self._catch_up()
            return
        if ahead:
            self._store_with(ahead, path)
        else:
            self._store(path)
        self._catch_up()

    def _store_with(self, ahead: Sequence[Path], path: Path) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(len(ahead) + 1, os.cpu_count() or 1), thread_name_prefix="push") as pool:
            own = pool.submit(self._store, path)
            others = [pool.submit(self._push_ahead, other) for other in ahead]
            own.result()
            for other in others:
                other.result()

    def _push_ahead(self, path: Path) -> None:
        """What fails now is pushed when the server asks for it, and says then what is wrong."""
        with suppress(PgkeepError, OSError):
            if not self._is_pushed(path):
                said = self._mark_of(path)
                self._store(path)
                self._pushed.mkdir(mode=0o700, parents=True, exist_ok=True)
                # without fsync: a mark that is lost costs a push, and what it says is durable already
                new = self._marker(path.name).with_suffix(".new")
                new.write_text(said)
                new.replace(self._marker(path.name))

    def _store(self, path: Path) -> None:
        """Store a file in every repository that takes it, whatever the others do; then judge by the policy."""
        data = self._read(path)
        errors: dict[str, PgkeepError] = {}
        for repository in self._settings.repositories:
            try:
                self._store_in(repository, path.name, data)
            except PgkeepError as error:
                errors[repository.name] = error
        one_is_enough = self._settings.policy == "first" and len(errors) < len(self._settings.repositories)
        for failure in errors.values():
            if not (one_is_enough and _is_away(failure)):
                raise failure
        for name in errors:
            self._remember_missing(name, path.name)

    def _store_in(self, repository: PushRepository, name: str, data: bytes) -> None:
        opened = self._open(repository)
        archive = opened.wal(self._control.system_identifier)
        try:
            # what a promoted standby archives as .partial is the old primary's timeline still, under a name that this one never uses
            if classify(name) is not WalFileKind.PARTIAL:
                mine = data_directory_claim(self._data_directory)
                check_claim(opened, self._control.system_identifier, int(name[:8], 16), mine)
        except ForeignServerError:
            # a standby with archive_mode = always pushes what is there already
            if archive.holds(name, data):
                return
            raise
        archive.put(name, data)

    def _read(self, path: Path) -> bytes:
        kind = classify(path.name)
        if kind is None:
            raise UsageError(f"not the name of a WAL file: {path.name!r}", hint="archive_command hands %p over")
        control = self._control
        try:
            with path.open("rb") as file:
                limit = control.wal_segment_size if kind in _SEGMENTS else _LONGEST_SMALL_FILE
                data = file.read(limit + 1)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", hint="run it in the data directory") from None
        if kind in _SEGMENTS:
            _check_segment(path.name.removesuffix(".partial"), data, control)
        elif kind is WalFileKind.HISTORY:
            from pgkeep.postgres.timeline import parse_history, parse_history_name

            parse_history(parse_history_name(path.name), data)
        return data

    def _open(self, settings: PushRepository) -> Repository:
        opened = self._repositories.get(settings.name)
        if opened is None:
            secret = secret_of(settings.key_kind, settings.key_path or "")
            opened = self._repositories[settings.name] = Repository.open(open_store(settings.url), secret)
        return opened

    @property
    def _pushed(self) -> Path:
        return self._state / "pushed"

    def _marker(self, name: str) -> Path:
        return self._pushed / f"{name}.mark"

    def _is_pushed(self, path: Path) -> bool:
        """Whether an earlier push has stored this very file; its marker has done its work then."""
        try:
            return self._marker(path.name).read_text() == self._mark_of(path)
        except (OSError, ValueError):
            return False

    def _mark_of(self, path: Path) -> str:
        """What a marker says: which file was stored, and by which configuration, so that with another one it is pushed again."""
        return f"{file_stamp(path)} {self._settings.source}\n"

    def _ready(self, path: Path) -> list[Path]:
        """Files that the server has finished and not yet asked for, histories first; markers of those it is done with go."""
        status = path.parent / "archive_status"
        try:
            names = {name.removesuffix(".ready") for name in os.listdir(status) if name.endswith(".ready")}
        except OSError:
            return []
        with suppress(OSError):
            for marker in list(self._pushed.iterdir()):
                if marker.stem not in names:
                    marker.unlink(missing_ok=True)
        names.discard(path.name)
        waiting = [name for name in names if classify(name) is not None and not self._marker(name).exists()]
        waiting.sort(key=lambda name: (not name.endswith(".history"), name))
        return [path.parent / name for name in waiting[: self._settings.push_ahead]]

    def _behind(self, repository: str) -> Path:
        return self._state / "behind" / repository

    def _remember_missing(self, repository: str, name: str) -> None:
        """Durable before the push says that the file is stored."""
        try:
            place = self._behind(repository)
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            (place / name).touch(0o600)
            fsync_directory(place)
        except OSError as error:
            raise StoreError(
                f"cannot note in {self._state} what {repository} misses: {error.strerror}",
                hint='policy "first" needs a directory that PostgreSQL\'s account may write: wal = { spool = … }',
            ) from None

    def _catch_up(self) -> None:
        """Bring repositories that were down what they miss, from those that have it; what fails is tried again next time."""
        for settings in self._settings.repositories:
            for name in self._missing_in(settings.name)[:_CATCH_UP]:
                try:
                    data = self._from_others(settings, name)
                    self._open(settings).wal(self._control.system_identifier).put(name, data)
                    (self._behind(settings.name) / name).unlink()
                except (PgkeepError, OSError) as error:
                    self.warnings.append(f"repository {settings.name} misses {name}: {error}")
                    if isinstance(error, PgkeepError) and _is_away(error):
                        break

    def _missing_in(self, repository: str) -> list[str]:
        try:
            return sorted(os.listdir(self._behind(repository)))
        except OSError:
            return []

    def _from_others(self, wanting: PushRepository, name: str) -> bytes:
        failure: PgkeepError = StoreError(f"no repository has {name}")
        for settings in self._settings.repositories:
            if settings.name != wanting.name:
                try:
                    return self._open(settings).wal(self._control.system_identifier).get(name)
                except PgkeepError as error:
                    failure = error
        raise failure


def _check_segment(name: str, data: bytes, control: ControlFile) -> None:
    if len(data) != control.wal_segment_size:
        raise DamageError(f"WAL segment {name} has not the size of one: {control.wal_segment_size} bytes", path=name)
    timeline, start = parse_segment_name(name, control.wal_segment_size)
    check_segment_header(
        read_segment_header(data),
        system_identifier=control.system_identifier,
        timeline=timeline,
        start=start,
        segment_size=control.wal_segment_size,
    )


def _is_away(error: PgkeepError) -> bool:
    """Whether a repository cannot be used now, and nothing else is wrong: what the policy "first" is for.

    A file system that is not mounted leaves an empty directory, which is no repository.
    """
    return isinstance(error, StoreError | RepositoryError) and not isinstance(error, DifferentWalError)


def control_file_of(data_directory: Path) -> ControlFile:
    """The server's control file, read again where the server is writing it at this moment. Raises UsageError, DamageError."""
    failure: DamageError | None = None
    for _ in range(_CONTROL_FILE_READS):
        try:
            return parse_control_file((data_directory / CONTROL_FILE).read_bytes())
        except DamageError as error:
            failure = error
        except OSError as error:
            raise UsageError(
                f"{data_directory} is no data directory: {error.strerror}: {CONTROL_FILE}",
                hint="archive_command runs in the data directory; by hand: cd there, and name pg_wal/<file>",
            ) from None
    assert failure is not None
    raise failure


def data_directory_of(path: Path) -> Path:
    """The data directory that a WAL file is of: where we are, as with archive_command, or around the file's ``pg_wal``."""
    here = Path.cwd()
    return here if (here / CONTROL_FILE).exists() else path.absolute().parent.parent


def exit_code_of(error: BaseException) -> int:
    """From 1 to 125: above, PostgreSQL's archiver would end (src/backend/postmaster/pgarch.c)."""
    code = error.exit_code if isinstance(error, PgkeepError) else 1
    return code if 1 <= code <= _LAST_FAILURE else 1


def push_line(python: str, thin: Path, socket: Path, cluster: str, config: Path, state: Path) -> str:
    """The value of ``archive_command``: the receiver where it runs, else this program, each without a shell's help."""
    words: Sequence[str] = (python, "-I", "-S", str(thin), str(socket), cluster, "%p")
    fallback = (python, "-P", "-m", "pgkeep.wal.push_program", str(config), cluster, str(state))
    return " ".join(_for_shell(word) for word in (*words, *fallback))


def _for_shell(word: str) -> str:
    """Quoted for the shell, and for PostgreSQL, which takes % for a placeholder; %p itself is quoted for names with spaces."""
    import shlex

    return '"%p"' if word == "%p" else shlex.quote(word).replace("%", "%%")
