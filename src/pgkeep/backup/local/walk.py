"""What a base backup holds of a data directory, found by walking it as the server does.

The rules are those of sendDir and sendTablespace in src/backend/backup/basebackup.c: names that are left out, directories that
stay empty, only the ``init`` fork of unlogged relations, tablespaces by their links below ``pg_tblspc`` and of them only what is
this version's.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pgkeep.errors import ServerSettingError
from pgkeep.postgres.control_file import CONTROL_FILE, ControlFile
from pgkeep.postgres.layout import is_excluded, must_be_empty, parse_relation_path
from pgkeep.receiver.frames import FileFacts

__all__ = ["DataDirectory", "FoundDirectory", "LinkedTablespace", "facts_of", "unreadable"]

_TABLESPACES = b"pg_tblspc"
_WAL = b"pg_wal"
_FIRST_WITH_SUMMARIES = 17
_DATABASE = re.compile(rb"global|base/\d+|pg_tblspc/\d+/PG_\d+_\d+/\d+", re.ASCII)
_INIT_FORK = re.compile(rb"(\d+)_init", re.ASCII)
_RELATION_NUMBER = re.compile(rb"\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class FoundDirectory:
    """A directory of the backup, by its path from the data directory."""

    path: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class LinkedTablespace:
    """A tablespace outside the data directory."""

    oid: int
    location: bytes


class DataDirectory:
    """A server's data directory, as a base backup sees it."""

    def __init__(self, place: bytes, major: int, control: ControlFile) -> None:
        self.place = place
        self._major = major
        self._version_directory = f"PG_{major}_{control.catalog_version}".encode()
        self.tablespaces = list(self._find_tablespaces())
        """Those that are linked, by OID."""
        self._oids = {tablespace.oid for tablespace in self.tablespaces}
        self._elsewhere = set(self._identities())

    def absolute(self, path: bytes) -> bytes:
        """Where a path of the backup lies on this machine."""
        return os.path.join(self.place, path)

    def tablespace_of(self, path: bytes) -> int | None:
        """The OID of the tablespace that a path of the backup is in; None for the data directory."""
        parts = path.split(b"/", 2)
        oid = int(parts[1]) if parts[0] == _TABLESPACES and len(parts) > 1 and parts[1].isdigit() else None
        return oid if oid in self._oids else None

    def walk(self) -> Iterator[FoundDirectory | FileFacts]:
        """Everything but the control file, a directory before what is in it, files as they are when they are passed.

        What vanishes meanwhile is left out. Raises ServerSettingError where something may not be read.
        """
        yield from self._walk(b"")
        for tablespace in self.tablespaces:
            path = os.path.join(_TABLESPACES, b"%d" % tablespace.oid, self._version_directory)
            with suppress(FileNotFoundError):
                yield FoundDirectory(path, _permissions(os.stat(self.absolute(path))))
                yield from self._walk(path)

    def _walk(self, directory: bytes) -> Iterator[FoundDirectory | FileFacts]:
        names = self._names(directory)
        unlogged = _unlogged(names) if _DATABASE.fullmatch(directory) else set[bytes]()
        for name in names:
            path = os.path.join(directory, name)
            if is_excluded(path) or path == CONTROL_FILE.encode() or _is_unlogged(path, name, unlogged):
                continue
            try:
                facts = os.lstat(self.absolute(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unreadable(self.absolute(path), error) from None
            if stat.S_ISREG(facts.st_mode):
                yield facts_of(path, facts)
            elif must_be_empty(path):
                # its link, where it is one, becomes a directory
                yield FoundDirectory(path, _permissions(facts) if stat.S_ISDIR(facts.st_mode) else 0o700)
                if path == _WAL:
                    yield from self._below_wal(facts)
            elif stat.S_ISDIR(facts.st_mode):
                yield FoundDirectory(path, _permissions(facts))
                if (facts.st_dev, facts.st_ino) not in self._elsewhere:
                    yield from self._walk(path)

    def _names(self, directory: bytes) -> list[bytes]:
        try:
            return sorted(os.listdir(self.absolute(directory)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self.absolute(directory), error) from None

    def _below_wal(self, facts: os.stat_result) -> Iterator[FoundDirectory]:
        mode = _permissions(facts) if stat.S_ISDIR(facts.st_mode) else 0o700
        yield FoundDirectory(b"pg_wal/archive_status", mode)
        if self._major >= _FIRST_WITH_SUMMARIES:
            yield FoundDirectory(b"pg_wal/summaries", mode)

    def _find_tablespaces(self) -> Iterator[LinkedTablespace]:
        """A directory in the place of a link is a tablespace too, and walked like any other (in-place tablespaces, for tests)."""
        for name in self._names(_TABLESPACES):
            place = self.absolute(os.path.join(_TABLESPACES, name))
            if name.isdigit() and os.path.islink(place):
                location = os.readlink(place)
                try:
                    os.listdir(os.path.join(place, self._version_directory))
                except OSError as error:
                    raise unreadable(location, error) from None
                yield LinkedTablespace(int(name), location)

    def _identities(self) -> Iterator[tuple[int, int]]:
        """Of the tablespaces' own directories: one may lie in the data directory."""
        for tablespace in self.tablespaces:
            facts = os.stat(self.absolute(os.path.join(_TABLESPACES, b"%d" % tablespace.oid)))
            yield facts.st_dev, facts.st_ino


def facts_of(path: bytes, facts: os.stat_result) -> FileFacts:
    """What a backup keeps of a file beside its bytes."""
    return FileFacts(path, facts.st_size, stat.S_IMODE(facts.st_mode), int(facts.st_mtime))


def unreadable(place: bytes, error: OSError) -> ServerSettingError:
    """The error for a file or directory of the server that cannot be read."""
    shown = place.decode("utf-8", "backslashreplace")
    return ServerSettingError(
        f"{shown} cannot be read: {error.strerror}",
        hint="run pgkeep as the account that owns the data directory, or take the backup over the network: --mode stream",
    )


def _permissions(facts: os.stat_result) -> int:
    return stat.S_IMODE(facts.st_mode)


def _unlogged(names: list[bytes]) -> set[bytes]:
    """The numbers of the relations of a directory that have an ``init`` fork."""
    return {match[1] for name in names if (match := _INIT_FORK.fullmatch(name))}


def _is_unlogged(path: bytes, name: bytes, unlogged: set[bytes]) -> bool:
    """Whether a file is a fork of an unlogged relation that the server makes anew when it starts."""
    if not unlogged or name.endswith(b"_init") or parse_relation_path(path) is None:
        return False
    number = _RELATION_NUMBER.match(name)
    return number is not None and number[0] in unlogged
