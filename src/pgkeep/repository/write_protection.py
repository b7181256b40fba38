"""Whether these credentials may delete and replace objects: tried, on what is not there or is worth nothing."""

from __future__ import annotations

import contextlib
import secrets

from pgkeep.errors import StoreError
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.object_store_client import Refused, Request
from pgkeep.repository.object_store_errors import Kind
from pgkeep.repository.packs import PackKind, pack_name
from pgkeep.repository.store import ObjectExists, Store

__all__ = ["may_delete", "may_replace"]

_NAME = "tmp/replace"
_FINAL = frozenset({Kind.FINAL, Kind.EXISTS})


def may_delete(store: Store) -> bool | None:
    """Whether a pack could be deleted, tried on one that does not exist; None for a directory.

    Raises StoreError only where the store does not answer.
    """
    if not isinstance(store, ObjectStore):
        return None
    name = pack_name(PackKind.DATA, secrets.token_hex(32))

    def remove(_request: Request) -> None:
        import obstore

        obstore.delete(store.clients.small, name)

    try:
        store.clients.call("delete", name, remove, final=_FINAL | {Kind.MISSING})
    except Refused as refusal:
        return refusal.failure.kind is Kind.MISSING
    return True


def may_replace(store: Store) -> bool | None:
    """Whether an object could be replaced, tried on one of some bytes below ``tmp/`` that stays; None for a directory.

    Raises StoreError where not even that can be written.
    """
    if not isinstance(store, ObjectStore):
        return None
    with contextlib.suppress(ObjectExists):
        store.put(_NAME, [b"replace"])

    def write(_request: Request) -> None:
        import obstore

        obstore.put(store.clients.small, _NAME, b"replace", use_multipart=False, mode="overwrite")

    try:
        store.clients.call("write", _NAME, write, final=_FINAL)
    except Refused:
        return False
    except StoreError:
        raise
    return True
