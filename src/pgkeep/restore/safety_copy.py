"""The old data, moved aside by renames and back again. Every step may be done twice: a journal says only that it was begun.

A safety copy can be started on its own: the links to its tablespaces follow them. Otherwise a server that somebody starts on it
would write into the tablespaces of the restored one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgkeep.errors import TargetError
from pgkeep.postgres.running import postmasters
from pgkeep.restore.journal import Journal, Move, TablespaceLink, sync_directory
from pgkeep.restore.plan import INCOMPLETE_MARKER

__all__ = [
    "attempt_places",
    "delete_incomplete",
    "free_name",
    "move_aside",
    "point_links",
    "put_back",
    "refuse_immovable",
    "set_aside",
    "tablespace_links",
]


def tablespace_links(data_directory: Path) -> list[TablespaceLink]:
    """The tablespaces of a data directory that lie elsewhere."""
    folder = data_directory / "pg_tblspc"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        TablespaceLink(int(entry.name), str(entry.readlink()))
        for entry in entries
        if entry.is_symlink() and entry.name.isdigit()
    ]


def refuse_immovable(place: Path, major: int, *, tablespace: bool) -> None:
    """Raise TargetError for a directory that cannot be renamed, or must not be: another cluster's files are in it too."""
    if os.path.ismount(place):
        raise TargetError(
            f"{place} is a mount point, which cannot be moved aside",
            hint="keep the data directory in a folder below the mount point; or restore with --target-dir and move by hand",
        )
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise TargetError(
            f"{place} cannot be moved aside: {place.parent} cannot be written by this user",
            hint=f"run as root, or as the owner of {place.parent}",
        )
    if tablespace:
        # a tablespace's place may be shared by clusters of several versions: GetTablespacePath, src/common/relpath.c
        others = [entry.name for entry in place.iterdir() if not entry.name.startswith(f"PG_{major}_")]
        if others:
            raise TargetError(
                f"tablespace {place} holds something else than this cluster's files: {', '.join(sorted(others)[:3])}",
                hint="move that away first: the whole directory is moved aside",
            )


def move_aside(journal: Journal) -> None:
    """Rename all that the journal names; what is done already is passed over. Raises TargetError."""
    if not journal.moves:
        return
    _refuse_running(journal.moves)
    for move in journal.moves:
        _rename(Path(move.place), Path(move.aside))
    point_links(Path(journal.moves[0].aside), {move.place: move.aside for move in journal.moves[1:]})


def put_back(journal: Journal) -> None:
    """The reverse of `move_aside`; the places must be free. Raises TargetError."""
    _refuse_running(journal.moves)
    # the data directory comes last: as long as it is not there, nobody can start it
    if journal.moves and not Path(journal.moves[0].place).exists():
        folder = Path(journal.moves[0].aside, "pg_tblspc")
        for link in journal.links:
            _set_link(folder / str(link.oid), link.place)
        if journal.links:
            sync_directory(folder)
    for move in reversed(journal.moves):
        _rename(Path(move.aside), Path(move.place))


def attempt_places(data_directory: Path, journal: Journal) -> list[Path]:
    """Where a restored cluster lies now: its data directory, then its tablespaces; empty where the old data is in its place.

    A place is the old data's as long as nothing lies where that is to be moved to.
    """
    gone = [Path(move.place) for move in journal.moves if os.path.lexists(move.aside)]
    own = not journal.moves or data_directory in gone
    places = [data_directory, *(Path(link.place) for link in tablespace_links(data_directory))] if own else []
    return [place for place in dict.fromkeys([*places, *gone]) if place.exists()]


def set_aside(places: Sequence[Path], word: str, stamp: str) -> list[Move]:
    """Move a restored cluster out of the way, as ``<place>.<word>-<stamp>``: its data directory, first of ``places``, at last.

    Raises TargetError. Returns the renames, in the order of ``places``.
    """
    done: list[Move] = []
    for place in reversed(places):
        aside = free_name(place, word, stamp)
        if place == places[0]:
            # or whoever starts it would write into the tablespaces that come back to where its own were
            point_links(place, {move.place: move.aside for move in done})
        _rename(place, aside)
        done.append(Move(str(place), str(aside)))
    return done[::-1]


def delete_incomplete(moves: Sequence[Move]) -> list[Move]:
    """Of a restored cluster that was set aside, delete what nobody could start; returns what is kept."""
    places = [Path(move.aside) for move in moves]
    if any((place / INCOMPLETE_MARKER).exists() for place in places) or (places and not any(places[0].iterdir())):
        for place in places:
            shutil.rmtree(place)
        return []
    return list(moves)


def free_name(place: Path, word: str, stamp: str) -> Path:
    """A name beside a directory that nothing has: rename(2) would silently replace an empty directory."""
    name = f"{place.name}.{word}-{stamp}"
    candidates = (place.with_name(name + suffix) for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(path for path in candidates if not os.path.lexists(path))


def _refuse_running(moves: Sequence[Move]) -> None:
    """Somebody may have started the old server, or one on the safety copy to look at it."""
    for place in (moves[0].place, moves[0].aside) if moves else ():
        if postmasters(Path(place)):
            raise TargetError(f"a server runs on {place}", hint=f"stop it first: pg_ctl -D {place} stop")


def _rename(place: Path, aside: Path) -> None:
    if not os.path.lexists(place) and os.path.lexists(aside):
        return
    if os.path.lexists(aside):
        raise TargetError(
            f"{place} cannot be moved to {aside}: both are there", hint="look at both, and move one of them away"
        )
    try:
        place.rename(aside)
        sync_directory(place.parent)
    except OSError as error:
        raise TargetError(
            f"{place} cannot be moved to {aside}: {error.strerror}", hint=f"see the rights there: ls -ld {place.parent}"
        ) from error


def point_links(data_directory: Path, moved: Mapping[str, str]) -> None:
    """Let the links to tablespaces that lead to a key of ``moved`` lead to its value; others stay. Raises TargetError."""
    changed = False
    for link in tablespace_links(data_directory):
        wanted = moved.get(link.place) or moved.get(str(Path(link.place).resolve()))
        if wanted is not None and wanted != link.place:
            _set_link(data_directory / "pg_tblspc" / str(link.oid), wanted)
            changed = True
    if changed:
        sync_directory(data_directory / "pg_tblspc")


def _set_link(link: Path, place: str) -> None:
    if not os.path.lexists(link) or os.readlink(link) == place:
        return
    new = link.with_name(f"{link.name}.pgkeep-new")
    new.unlink(missing_ok=True)
    new.symlink_to(place)
    status = link.lstat()
    if os.geteuid() == 0:
        os.lchown(new, status.st_uid, status.st_gid)
    new.rename(link)
