"""A backup as JSON and as lines: shared by ``backup``, ``list`` and ``show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.units import format_duration, format_rate, format_size, format_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgkeep.drill.memory import Proven
    from pgkeep.repository.manifests import DamagedPage, Manifest
    from pgkeep.repository.pins import Pin

__all__ = ["backup_document", "backup_fields", "format_lsn", "pin_text", "state_of"]


def format_lsn(lsn: int) -> str:
    """An LSN as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def state_of(verified: datetime | None, proven: Proven | None) -> str:
    """``taken`` < ``verified`` < ``proven``."""
    if proven is not None:
        return "proven"
    return "taken" if verified is None else "verified"


def backup_document(
    manifest: Manifest, verified: datetime | None = None, proven: Proven | None = None, pins: Sequence[Pin] = ()
) -> dict[str, object]:
    """The keys that docs/reference/json.md promises."""
    return {
        "id": manifest.id,
        "cluster": manifest.cluster,
        "system_identifier": str(manifest.system_identifier),
        "label": manifest.label,
        "mode": manifest.mode,
        "kind": manifest.kind,
        "parent": manifest.parent or None,
        "state": state_of(verified, proven),
        "verified": verified,
        "pins": [{"reason": pin.reason, "until": pin.until, "pinned": pin.pinned, "by": pin.by} for pin in pins],
        "proven": None if proven is None else {"drill": proven.drill, "time": proven.time, "target": proven.target},
        "server_version": manifest.server_version,
        "from_standby": manifest.from_standby,
        "started": manifest.started,
        "finished": manifest.finished,
        "timeline": manifest.timeline,
        "start_lsn": format_lsn(manifest.start_lsn),
        "stop_lsn": format_lsn(manifest.stop_lsn),
        "wal_objects": manifest.wal.segments,
        "wal_stored_bytes": manifest.wal.stored_size,
        "files": manifest.files,
        "logical_bytes": manifest.logical_size,
        "stored_bytes": manifest.stored_size,
        "new_bytes": manifest.new_size,
        "read_bytes": manifest.read_size,
        "data_checksums": manifest.data_checksums,
        "damaged_pages": _pages(manifest.damaged_pages),
        "unexplained_pages": _pages(manifest.unexplained_pages),
        "notes": manifest.notes,
        "tablespaces": [
            {
                "oid": tablespace.oid,
                "location": _text(tablespace.location),
                "bytes": tablespace.size,
            }
            for tablespace in manifest.tablespaces
        ],
    }


def pin_text(pins: Sequence[Pin]) -> str:
    """Until when, and why."""
    return "; ".join(
        f"{'for ever' if pin.until is None else f'until {pin.until:%Y-%m-%d}'}: {pin.reason}" for pin in pins
    )


def backup_fields(
    manifest: Manifest, verified: datetime | None = None, proven: Proven | None = None, pins: Sequence[Pin] = ()
) -> list[tuple[str, str]]:
    """Names and values for people."""
    seconds = (manifest.finished - manifest.started).total_seconds()
    fields = [
        ("backup", manifest.id),
        ("cluster", f"{manifest.cluster} (system identifier {manifest.system_identifier})"),
        ("state", _state(verified, proven)),
        ("label", manifest.label),
        ("server", _server(manifest)),
        ("kind", _kind(manifest)),
        ("begun", format_time(manifest.started)),
        ("took", f"{format_duration(seconds)} ({format_rate(manifest.logical_size / max(seconds, 0.001))})"),
        ("files", f"{manifest.files:,}"),
        ("logical size", format_size(manifest.logical_size)),
        ("stored size", f"{format_size(manifest.stored_size)} (what a restore reads)"),
        ("read", f"{format_size(manifest.read_size)} (what came from the server)"),
        ("new", f"{format_size(manifest.new_size)} (what this backup added)"),
        ("timeline", str(manifest.timeline)),
        ("LSN", f"{format_lsn(manifest.start_lsn)} to {format_lsn(manifest.stop_lsn)}"),
        ("WAL", f"{len(manifest.wal.segments)} objects, {format_size(manifest.wal.stored_size)} stored"),
        ("page checksums", "on" if manifest.data_checksums else "off"),
    ]
    fields += [(f"tablespace {tablespace.oid}", _text(tablespace.location)) for tablespace in manifest.tablespaces]
    for name, pages in (("damaged pages", manifest.damaged_pages), ("unexplained pages", manifest.unexplained_pages)):
        if pages:
            fields.append((name, f"{len(pages)}, the first: {_text(pages[0].path)} block {pages[0].block}"))
    fields += [("pinned", f"{pin_text([pin])} (by {pin.by})") for pin in pins]
    fields += [("note", note) for note in manifest.notes]
    return fields


def _state(verified: datetime | None, proven: Proven | None) -> str:
    words = [f"proven {format_time(proven.time)} by drill {proven.drill}, to {proven.target}"] if proven else []
    words += [f"verified {format_time(verified)}"] if verified else []
    return ", ".join(words) or "taken, not verified yet"


def _kind(manifest: Manifest) -> str:
    way = {"stream": "over the replication protocol", "local": "from the data directory"}.get(
        manifest.mode, manifest.mode
    )
    what = f"what changed since {manifest.parent}" if manifest.kind == "incremental" else "everything read"
    return f"{manifest.kind}: {what}, {way}"


def _pages(pages: list[DamagedPage]) -> list[dict[str, object]]:
    return [{"path": _text(page.path), "block": page.block} for page in pages]


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _server(manifest: Manifest) -> str:
    version = f"PostgreSQL {manifest.server_version // 10000}.{manifest.server_version % 10000}"
    return f"{version}, standby" if manifest.from_standby else version
