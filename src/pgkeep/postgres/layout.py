"""Where things lie in a data directory, and what a base backup leaves out of it.

Paths are bytes, relative to the data directory, with ``/``; tablespaces appear below ``pg_tblspc``, as in a backup.
Sources: src/common/relpath.c, src/backend/storage/file/reinit.c, src/backend/backup/basebackup.c; PostgreSQL docs,
73.1 "Database File Layout" and 54.4 "Streaming Replication Protocol" (BASE_BACKUP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = [
    "DEFAULT_TABLESPACE_OID",
    "EMPTY_DIRECTORIES",
    "EXCLUDED_FILES",
    "EXCLUDED_PREFIXES",
    "GLOBAL_TABLESPACE_OID",
    "Fork",
    "RelationFile",
    "is_checksummed",
    "is_excluded",
    "must_be_empty",
    "parse_relation_path",
]

DEFAULT_TABLESPACE_OID: Final = 1663
"""pg_default: ``base``."""
GLOBAL_TABLESPACE_OID: Final = 1664
"""pg_global: ``global``, of no database (database OID 0)."""

EMPTY_DIRECTORIES: Final = frozenset(
    {b"pg_dynshmem", b"pg_notify", b"pg_replslot", b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans"}
)
"""Names of directories, wherever they are, that a base backup holds without their contents."""

EXCLUDED_FILES: Final = frozenset(
    {
        b".DS_Store",
        b"backup_label",
        b"backup_manifest",
        b"current_logfiles.tmp",
        b"postgresql.auto.conf.tmp",
        b"postmaster.opts",
        b"postmaster.pid",
        b"tablespace_map",
    }
)
"""Names of files and directories, wherever they are, that a base backup leaves out of what it finds."""

EXCLUDED_PREFIXES: Final = (b"pg_internal.init", b"pgsql_tmp")
"""The same, for whatever a name goes on with."""

_MAX_OID = (1 << 32) - 1
_DIRECTORY = rb"(?:global|base/([1-9]\d{0,9})|pg_tblspc/([1-9]\d{0,9})/PG_\d+_\d+/([1-9]\d{0,9}))"
_RELATION = re.compile(_DIRECTORY + rb"/([1-9]\d{0,9})(?:_(fsm|vm|init))?(?:\.([1-9]\d{0,9}))?", re.ASCII)
_TEMPORARY_RELATION = re.compile(_DIRECTORY + rb"/t\d+_\d+(?:_(?:fsm|vm|init))?(?:\.\d+)?", re.ASCII)


class Fork(StrEnum):
    """The parts of a relation; each has files of its own."""

    MAIN = "main"
    FSM = "fsm"
    VM = "vm"
    INIT = "init"


@dataclass(frozen=True, slots=True)
class RelationFile:
    """One file of a relation: ``segment`` counts from 0, ``relfilenode`` is the number in its name."""

    tablespace: int
    database: int
    relfilenode: int
    fork: Fork
    segment: int


def parse_relation_path(path: bytes) -> RelationFile | None:
    """What relation a file is part of, or None where it is none. Temporary relations are none: no backup holds them."""
    match = _RELATION.fullmatch(path)
    if match is None:
        return None
    base, tablespace, in_tablespace, relfilenode, fork, segment = match.groups()
    file = RelationFile(
        tablespace=int(tablespace or (DEFAULT_TABLESPACE_OID if base else GLOBAL_TABLESPACE_OID)),
        database=int(base or in_tablespace or 0),
        relfilenode=int(relfilenode),
        fork=Fork(fork.decode()) if fork else Fork.MAIN,
        segment=int(segment or 0),
    )
    if max(file.tablespace, file.database, file.relfilenode, file.segment) > _MAX_OID:
        return None
    return file


def is_checksummed(path: bytes) -> bool:
    """Whether a file's pages carry checksums in a cluster that has them: relation files do, all forks, and nothing else.

    That is the server's rule since 17. Older ones take every file in these directories but a few that they name
    (``pg_control``, ``pg_filenode.map``, ``PG_VERSION``, ...), and fail on files that an administrator left there.
    """
    return parse_relation_path(path) is not None


def must_be_empty(directory: bytes) -> bool:
    """Whether a base backup holds this directory without the files in it."""
    name = directory.rpartition(b"/")[2]
    return name in EMPTY_DIRECTORIES or directory in {b"pg_wal", b"pg_wal/archive_status", b"pg_wal/summaries"}


def is_excluded(path: bytes) -> bool:
    """Whether a base backup leaves this file out: by its name, as a temporary relation, or for its directory.

    Files of unlogged relations are left out too, which a path alone does not tell: all forks but ``init`` of a relation
    that has an ``init`` fork.
    """
    *directories, name = path.split(b"/")
    for index, part in enumerate((*directories, name)):
        if part in EXCLUDED_FILES or part.startswith(EXCLUDED_PREFIXES):
            return True
        if index < len(directories) and must_be_empty(b"/".join(directories[: index + 1])):
            return True
    return _TEMPORARY_RELATION.fullmatch(path) is not None
