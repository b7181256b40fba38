"""Manifests for tests that take no backup."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from pgkeep.repository.manifests import Manifest, WalRange

__all__ = ["plain_manifest"]

_TIME = datetime(2026, 11, 23, tzinfo=UTC)


def plain_manifest(**fields: object) -> Manifest:
    """A manifest of no files, with ``fields`` in place of what it would say."""
    manifest = Manifest(
        id="20261123T000000.000Z-00000000",
        cluster="test",
        label="",
        mode="stream",
        system_identifier=1,
        server_version=180006,
        from_standby=False,
        started=_TIME,
        finished=_TIME,
        timeline=1,
        start_lsn=0x5000028,
        stop_lsn=0x5000158,
        page_size=8192,
        block_size=8192,
        segment_blocks=131072,
        data_checksums=True,
        backup_label=b"",
        tablespace_map=b"",
        tablespaces=[],
        directories=[],
        wal=WalRange(1, 0x5000028, 0x5000158, 16 << 20, [], 0),
        logical_size=0,
        stored_size=0,
        new_size=0,
        files=0,
    )
    return msgspec.structs.replace(manifest, **fields)
