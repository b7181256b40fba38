"""The ``backup_manifest`` of a backup that was restored or exported, so that pg_verifybackup can judge it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime

from pgkeep.postgres.backup_manifest import ManifestFile, ManifestWalRange, crc32c_text, manifest_lines
from pgkeep.postgres.lsn import LSN
from pgkeep.repository.tree import BackupFile, BackupTree

__all__ = ["backup_manifest"]

_FIRST_WITH_SYSTEM_IDENTIFIER = 170000


def backup_manifest(tree: BackupTree, *, leave_out: Collection[bytes] = ()) -> Iterator[bytes]:
    """The file, piece by piece; ``leave_out`` are paths that are not there on purpose. Raises DamageError."""
    manifest = tree.manifest
    files = (_line(file) for file in tree.files() if file.path not in leave_out)
    wal = manifest.wal
    has_identifier = manifest.server_version >= _FIRST_WITH_SYSTEM_IDENTIFIER
    return manifest_lines(
        files,
        [ManifestWalRange(wal.timeline, LSN(wal.start_lsn), LSN(wal.stop_lsn))],
        version=2 if has_identifier else 1,
        system_identifier=manifest.system_identifier if has_identifier else None,
    )


def _line(file: BackupFile) -> ManifestFile:
    """Without a checksum where nobody has read the whole file: its pages are known by their contents' ids."""
    entry = file.entry
    time = datetime.fromtimestamp(entry.mtime, UTC)
    if entry.crc32c is None:
        return ManifestFile(file.path, entry.size, time)
    return ManifestFile(file.path, entry.size, time, "CRC32C", crc32c_text(entry.crc32c))
