"""Whose WAL is asked for: the cluster of the data directory, or the only one that a repository knows."""

from __future__ import annotations

import time
from pathlib import Path

from pgkeep.errors import DamageError, NotFoundError, TargetError
from pgkeep.postgres.control_file import CONTROL_FILE, ControlFile, parse_control_file
from pgkeep.postgres.wal import WalFileKind, classify, read_segment_header
from pgkeep.repository import Repository
from pgkeep.repository.wal_objects import WalArchive, split_piece

__all__ = ["control_file_of", "data_directory_of", "only_cluster"]

_READS = 10


def data_directory_of(path: Path) -> Path | None:
    """The data directory that a file is fetched for: the one whose ``pg_wal`` it goes into, else the working directory."""
    candidates = [Path.cwd()]
    parent = path.absolute().parent
    if parent.name == "pg_wal":
        candidates.insert(0, parent.parent)
    return next((candidate for candidate in candidates if (candidate / CONTROL_FILE).exists()), None)


def control_file_of(data_directory: Path) -> ControlFile:
    """What a data directory says of itself. Raises DamageError where that stays unreadable, TargetError for no access."""
    for _ in range(_READS - 1):
        try:
            return _read(data_directory)
        except DamageError:
            # a server that recovers writes it now and then, in place
            time.sleep(0.02)
    return _read(data_directory)


def only_cluster(repository: Repository) -> tuple[int, int]:
    """System identifier and segment size of the one cluster of a repository. Raises NotFoundError for none or several."""
    clusters = repository.clusters()
    if len(clusters) != 1:
        raise NotFoundError(
            f"{repository.store.url} holds {len(clusters)} clusters, and this is no data directory that says which is meant",
            hint="run it in the server's data directory, as restore_command does",
        )
    return clusters[0], _segment_size(repository.wal(clusters[0]), repository.store.url)


def _read(data_directory: Path) -> ControlFile:
    path = data_directory / CONTROL_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TargetError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None
    return parse_control_file(data)


def _segment_size(archive: WalArchive, url: str) -> int:
    for timeline in archive.timelines():
        for name, _ in archive.names(timeline):
            segment, first, _ = split_piece(name)
            if classify(segment) is WalFileKind.SEGMENT and first == 0:
                return read_segment_header(next(archive.stream(name))).segment_size
    raise NotFoundError(f"{url} holds no WAL")
