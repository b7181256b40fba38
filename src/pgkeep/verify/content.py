"""Content: every file of a backup as a restore would read it, its pages, and the WAL it needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import google_crc32c

from pgkeep.errors import DamageError
from pgkeep.postgres.layout import is_checksummed, parse_relation_path
from pgkeep.postgres.pages import PAGE_SIZE, verify_pages
from pgkeep.postgres.wal import check_segment_header, parse_segment_name, read_segment_header
from pgkeep.progress import Progress
from pgkeep.repository import Repository
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.store import ObjectMissing
from pgkeep.repository.tree import BackupFile, BackupTree
from pgkeep.repository.wal_objects import WalArchive, split_piece
from pgkeep.verify.report import Damage, VerifyReport
from pgkeep.workers import Workers

__all__ = ["verify_content"]


def verify_content(
    repository: Repository, manifest: Manifest, report: VerifyReport, progress: Progress, *, jobs: int | None
) -> bool:
    """Decrypt, decompress and check all that a restore of this backup would read; whether it is whole.

    Damage goes into the report, by file and object. Raises StoreError.
    """
    tree = BackupTree(manifest, repository.reader())
    check = _Check(tree, report, progress)
    progress.phase(
        f"verifying {manifest.id}",
        manifest.logical_size + len(manifest.wal.segments) * manifest.wal.segment_size,
    )
    before = len(report.damage)
    archive = repository.wal(manifest.system_identifier)
    with Workers(jobs, "verify") as workers:
        for name in manifest.wal.segments:
            workers.submit(check.wal, archive, name)
        try:
            for file in tree.files():
                workers.submit(check.file, file)
        except DamageError as error:
            check.found(error)
        workers.drain()
    report.backups.append(manifest.id)
    return len(report.damage) == before


class _Check:
    """Checks of one backup; safe for threads."""

    def __init__(self, tree: BackupTree, report: VerifyReport, progress: Progress) -> None:
        self._tree = tree
        self._manifest = tree.manifest
        self._report = report
        self._progress = progress
        self._lock = threading.Lock()
        self._known = {(page.path, page.block) for page in tree.manifest.damaged_pages}

    def found(self, error: DamageError) -> None:
        with self._lock:
            self._report.damage.append(Damage(error.object_name, error.path, str(error)))

    def file(self, file: BackupFile) -> None:
        """Read a file as a restore would."""
        crc, size, pages = 0, 0, 0
        try:
            for piece in self._tree.read(file):
                pages += self._check_pages(file, size, piece)
                crc = google_crc32c.extend(crc, piece)
                size += len(piece)
                self._progress.advance(len(piece))
            if size != file.entry.size or file.entry.crc32c not in {None, crc}:
                raise DamageError(f"{file.shown_path} is not the file that was backed up", path=file.shown_path)
        except DamageError as error:
            self.found(error)
        with self._lock:
            self._report.files += 1
            self._report.file_bytes += size
            self._report.pages += pages

    def _check_pages(self, file: BackupFile, position: int, piece: bytes) -> int:
        manifest = self._manifest
        is_known = manifest.data_checksums and manifest.block_size == PAGE_SIZE and is_checksummed(file.path)
        if not is_known or len(piece) % PAGE_SIZE:
            return 0
        relation = parse_relation_path(file.path)
        segment = relation.segment if relation is not None else 0
        first_block = position // PAGE_SIZE + segment * manifest.segment_blocks
        check = verify_pages(piece, first_block=first_block, start_lsn=manifest.start_lsn)
        bad = [int(block) for block in check.failures if (file.path, int(block)) not in self._known]
        if bad:
            self.found(
                DamageError(
                    f"{file.shown_path} has a wrong page checksum in block {bad[0]}"
                    + (f" and {len(bad) - 1} more" if len(bad) > 1 else ""),
                    path=file.shown_path,
                )
            )
        return len(piece) // PAGE_SIZE

    def wal(self, archive: WalArchive, name: str) -> None:
        """Read a segment, a piece or a history file."""
        try:
            self._read_wal(archive, name)
        except ObjectMissing:
            object_name = archive.object_name(name)
            self.found(DamageError(f"{object_name} is gone", object_name=object_name))
        except DamageError as error:
            self.found(error)

    def _read_wal(self, archive: WalArchive, name: str) -> None:
        segment, _, end = split_piece(name)
        wal = self._manifest.wal
        size = 0
        for piece in self._sized(archive.stream(name)):
            if size == 0 and not segment.endswith(".history"):
                timeline, start = parse_segment_name(segment, wal.segment_size)
                check_segment_header(
                    read_segment_header(piece),
                    system_identifier=self._manifest.system_identifier,
                    timeline=timeline,
                    start=start,
                    segment_size=wal.segment_size,
                )
            size += len(piece)
        if not segment.endswith(".history") and size != (end or wal.segment_size):
            object_name = archive.object_name(name)
            raise DamageError(f"{object_name} holds {size} bytes of WAL", object_name=object_name)

    def _sized(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._progress.advance(len(piece))
            yield piece
