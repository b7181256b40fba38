"""Export: the files that ``pg_basebackup -F tar -X stream`` writes, from a backup in a repository.

With a lock each is an OpenPGP message, by the ``gpg`` program and through a pipe: no plain byte of them touches the disk.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pgkeep import gpg
from pgkeep.errors import TargetError, UsageError
from pgkeep.postgres.tar import END_OF_ARCHIVE, MemberType, padding, tar_header
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.maps import Directory
from pgkeep.repository.tree import BackupFile
from pgkeep.repository.wal_objects import split_piece
from pgkeep.restore.backup_manifest import backup_manifest
from pgkeep.restore.plan import refuse_repository
from pgkeep.restore.write import target_errors

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["SUFFIXES", "export_tar"]

SUFFIXES = {"gzip": ".gz", "zstd": ".zst", "none": ""}
_GZIP_LEVEL = 6
"""zlib's default, which pg_basebackup -z uses too."""

_FIRST = (b"backup_label", b"tablespace_map")
_LAST = b"global/pg_control"


def export_tar(
    repository: Repository,
    manifest: Manifest,
    directory: str | Path,
    *,
    compress: str = "gzip",
    lock: gpg.Lock | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the archives and ``backup_manifest`` into an empty or new directory; returns their paths.

    ``compress`` is a key of `SUFFIXES`; ``lock`` encrypts every file, whose names end in ``.gpg`` then. Raises TargetError where the
    directory is not empty or cannot be written, KeyFailure where gpg does not encrypt, DamageError naming file and object.
    Files are fsynced.
    """
    if compress not in SUFFIXES:
        raise UsageError(f"not a compression: {compress}", hint=f"one of {', '.join(SUFFIXES)}")
    repository.keys.require_reading()
    if lock is not None and lock.recipient is not None:
        # says what is wrong before anything is made
        gpg.encrypt(b"", lock.recipient)
    return _Export(repository, manifest, Path(directory), compress, lock, progress or Silent()).run()


class _Export:
    def __init__(
        self,
        repository: Repository,
        manifest: Manifest,
        directory: Path,
        compress: str,
        lock: gpg.Lock | None,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._manifest = manifest
        self._directory = directory
        self._compress = compress
        self._lock = lock
        self._progress = progress
        self._tree = repository.tree(manifest)
        self._written: list[Path] = []
        self._mtime = int(manifest.started.timestamp())

    def run(self) -> list[Path]:
        refuse_repository(self._directory, self._repository)
        with target_errors(os.fsencode(self._directory)):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            occupied = any(self._directory.iterdir())
        if occupied:
            raise TargetError(f"{self._directory} is not empty", hint="name an empty or new directory")
        self._progress.phase("exporting", self._manifest.logical_size)
        for tablespace in self._manifest.tablespaces:
            self._write_archive(str(tablespace.oid), b"pg_tblspc/%d" % tablespace.oid)
        self._write_archive("base", b"")
        with self._archive("pg_wal") as archive:
            self._write_wal(archive)
        with self._file("backup_manifest") as file:
            for piece in backup_manifest(self._tree):
                file.write(piece)
        return self._written

    def _write_archive(self, name: str, root: bytes) -> None:
        """The files below ``root``; the base archive holds all that is in no tablespace's."""
        control: BackupFile | None = None
        with self._archive(name) as archive:
            if not root:
                for path in _FIRST:
                    file = self._top_level(path)
                    if file is not None:
                        self._write_file(archive, path, file)
            for directory in self._manifest.directories:
                relative = _below(directory, root)
                if relative is None:
                    continue
                if relative:
                    archive.write(
                        tar_header(relative, mode=directory.mode, mtime=self._mtime, type=MemberType.DIRECTORY)
                    )
                for file in self._tree.files_of(directory):
                    if file.path == _LAST:
                        control = file
                    elif file.path not in _FIRST:
                        self._write_file(archive, file.path[len(root) + 1 if root else 0 :], file)
            if control is not None:
                self._write_file(archive, control.path, control)
            archive.write(END_OF_ARCHIVE)

    def _top_level(self, path: bytes) -> BackupFile | None:
        for directory in self._manifest.directories:
            if directory.path == b"":
                return next((file for file in self._tree.files_of(directory) if file.path == path), None)
        return None

    def _write_file(self, archive: IO[bytes], name: bytes, file: BackupFile) -> None:
        archive.write(tar_header(name, size=file.entry.size, mode=file.entry.mode, mtime=file.entry.mtime))
        for piece in self._tree.read(file):
            archive.write(piece)
            self._progress.advance(len(piece))
        archive.write(padding(file.entry.size))

    def _write_wal(self, archive: IO[bytes]) -> None:
        """As pg_basebackup does, each segment is marked as archived, so that the copy does not archive it again."""
        wal = self._repository.wal(self._manifest.system_identifier)
        for name in self._manifest.wal.segments:
            segment, _, _ = split_piece(name)
            is_history = segment.endswith(".history")
            chunks = [b"".join(wal.stream(name))] if is_history else wal.stream(name)
            size = len(chunks[0]) if isinstance(chunks, list) else self._manifest.wal.segment_size
            archive.write(tar_header(segment.encode(), size=size, mode=0o600, mtime=self._mtime))
            written = 0
            for chunk in chunks:
                archive.write(chunk)
                written += len(chunk)
            archive.write(bytes(size - written) + padding(size))
            archive.write(tar_header(b"archive_status/%s.done" % segment.encode(), mode=0o600, mtime=self._mtime))
        archive.write(END_OF_ARCHIVE)

    @contextmanager
    def _archive(self, name: str) -> Iterator[IO[bytes]]:
        with self._file(f"{name}.tar{SUFFIXES[self._compress]}") as file:
            if self._compress == "gzip":
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_GZIP_LEVEL) as packed:
                    yield packed  # type: ignore[misc]
            elif self._compress == "zstd":
                with zstd.ZstdFile(file, "wb", level=3) as packed_zstd:
                    yield packed_zstd  # type: ignore[misc]
            else:
                yield file

    @contextmanager
    def _file(self, name: str) -> Iterator[IO[bytes]]:
        path = self._directory / (name if self._lock is None else f"{name}.gpg")
        with target_errors(os.fsencode(path)), path.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            if self._lock is None:
                yield file
                file.flush()
            else:
                with gpg.encrypting(file, self._lock) as plain:
                    yield plain
            os.fsync(file.fileno())
        self._written.append(path)


def _below(directory: Directory, root: bytes) -> bytes | None:
    """The path of a directory in the archive of ``root``; empty for the root itself, None where it is in another."""
    if not root:
        head, _, tail = directory.path.partition(b"/")
        return None if head == b"pg_tblspc" and tail else directory.path
    if directory.path == root:
        return b""
    return directory.path[len(root) + 1 :] if directory.path.startswith(root + b"/") else None
