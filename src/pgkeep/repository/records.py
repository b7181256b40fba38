"""Small plain records: one line of canonical JSON with a check sum, for what must be read before any key is known.

Canonical: keys sorted, no spaces, ASCII, the field ``check`` (SHA-256, hex, of the line without that field) included.
A reader encodes again what it parsed and compares: one changed byte anywhere is damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pgkeep.errors import DamageError
from pgkeep.repository.store import Store

__all__ = ["read_record", "write_record"]


def write_record(store: Store, name: str, fields: Mapping[str, object]) -> None:
    """Create the record. Raises ObjectExists, StoreError."""
    store.put(name, [_encode(dict(fields))])


def read_record(store: Store, name: str) -> dict[str, object]:
    """The fields of a record. Raises ObjectMissing; DamageError where a byte of it differs."""
    data = store.get(name)
    try:
        fields = json.loads(data)
        check = fields.pop("check")
        if _encode(fields) != data or check != hashlib.sha256(_canonical(fields)).hexdigest():
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamageError(f"{name} is damaged: it is not the record that was written", object_name=name) from None
    return dict(fields)


def _canonical(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _encode(fields: dict[str, object]) -> bytes:
    checked = {**fields, "check": hashlib.sha256(_canonical(fields)).hexdigest()}
    return _canonical(checked) + b"\n"
