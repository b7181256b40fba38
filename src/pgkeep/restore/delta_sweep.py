"""What lies in a data directory and does not belong to a backup: told before a delta restore, and removed by it."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from pgkeep.repository.tree import BackupTree
from pgkeep.restore.places import INCOMPLETE_MARKER

__all__ = ["OLD_CONTROL_FILE", "Extras", "extras_of", "remove_entry", "size_of"]

OLD_CONTROL_FILE = "global/pg_control.pgkeep-delta"
"""What ``pg_control`` is called while a delta restore is at work: no server starts without one."""

_KEPT = {
    b"": frozenset({os.fsencode(INCOMPLETE_MARKER), b"lost+found"}),
    b"global": frozenset({os.path.basename(os.fsencode(OLD_CONTROL_FILE))}),
}
_KEPT_IN_TABLESPACE = _KEPT[b""]
_TABLESPACES, _WAL = b"pg_tblspc", b"pg_wal"
_EXAMPLES = 3


@dataclass
class Extras:
    """Files that do not belong, whole directories of them counted by what is in them; ``size`` in bytes. ``names`` are some."""

    files: int = 0
    size: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, path: bytes, files: int, size: int) -> None:
        """Count what lies at a path."""
        self.files += files
        self.size += size
        if len(self.names) < _EXAMPLES:
            self.names.append(os.fsdecode(path))


def extras_of(
    tree: BackupTree,
    locate: Callable[[bytes], bytes],
    *,
    tablespaces: Collection[int],
    left_out: Collection[bytes],
) -> Iterator[tuple[bytes, bytes]]:
    """Paths, and the places of what lies there, that a restored backup does not have; each may be removed before the next is asked for.

    Also what is of another kind than it should be, such as a link where the backup has a directory; ``pg_wal`` may be a link to
    one, as initdb makes it. ``tablespaces`` are OIDs of those that are restored. ``left_out`` are files that the backup has and a restore
    leaves out. Memory holds the names of one directory. Raises DamageError, OSError.
    """
    children: dict[bytes, set[bytes]] = defaultdict(set)
    roots = [b"pg_tblspc/%d" % oid for oid in tablespaces]
    known = {directory.path: directory for directory in tree.directories()}
    for path in {*known, *roots}:
        while path:
            path, _, name = path.rpartition(b"/")
            children[path].add(name)
    for path in sorted({b"", *children, *known}):
        directory = known.get(path)
        files = {file.path.rpartition(b"/")[2] for file in tree.files_of(directory)} if directory is not None else set()
        prefix = path + b"/" if path else b""
        files -= {left[len(prefix) :] for left in left_out if left.startswith(prefix)}
        kept = _KEPT_IN_TABLESPACE if path in roots else _KEPT.get(path, frozenset())
        place = locate(path)
        try:
            entries = list(os.scandir(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name
            if name in kept or (name in files and entry.is_file(follow_symlinks=False)):
                continue
            if name in children[path] and _is_as_it_should(path, entry):
                continue
            yield prefix + name, entry.path


def _is_as_it_should(parent: bytes, entry: os.DirEntry[bytes]) -> bool:
    """Whether an entry can stand for a directory of the backup."""
    if parent == _TABLESPACES:
        return entry.is_symlink()
    if not parent and entry.name == _WAL:
        return entry.is_dir()
    return entry.is_dir(follow_symlinks=False)


def size_of(place: bytes) -> tuple[int, int]:
    """Number of files and their bytes, at a place or below it; links are not followed."""
    status = os.lstat(place)
    if not stat.S_ISDIR(status.st_mode):
        return 1, status.st_size if stat.S_ISREG(status.st_mode) else 0
    files = size = 0
    for where, _, names in os.walk(place):
        for name in names:
            more = os.lstat(os.path.join(where, name))
            files += 1
            size += more.st_size if stat.S_ISREG(more.st_mode) else 0
    return files, size


def remove_entry(place: bytes) -> None:
    """Remove a file, a link (not what it leads to) or a directory with all that is in it. Raises OSError."""
    if os.path.islink(place) or not os.path.isdir(place):
        os.unlink(place)
        return
    for where, directories, names in os.walk(place, topdown=False):
        for name in names:
            os.unlink(os.path.join(where, name))
        for name in directories:
            path = os.path.join(where, name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                os.rmdir(path)
    os.rmdir(place)
