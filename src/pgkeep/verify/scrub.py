"""Scrub: every stored byte against its object's name or check. Needs no key, so any machine that holds a copy can do it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from pgkeep.errors import DamageError, StoreError
from pgkeep.progress import Progress
from pgkeep.repository.packs import check_hash
from pgkeep.repository.records import read_record
from pgkeep.repository.sealed import check_sealed
from pgkeep.repository.store import ObjectInfo, ObjectMissing, Store
from pgkeep.verify.memory import VerifyMemory
from pgkeep.verify.report import Damage, VerifyReport

__all__ = ["scrub"]

_REMEMBER_EVERY = 10_000
"""Objects after which the memory is written, so that a long scrub that is stopped goes on where it was."""


def scrub(
    store: Store,
    memory: VerifyMemory,
    report: VerifyReport,
    progress: Progress,
    *,
    max_age: timedelta,
    jobs: int | None,
) -> None:
    """Check all objects that were not checked within ``max_age``; damage goes into the report, StoreError is raised."""
    infos = [info for info in store.list("") if not info.name.startswith("leases/")]
    due = [info for info in infos if not memory.object_is_fresh(info.name, max_age)]
    report.remembered += len(infos) - len(due)
    report.leftovers = store.leftovers()
    progress.phase("scrubbing", sum(info.size for info in due))
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1, thread_name_prefix="scrub") as executor:
        for start in range(0, len(due), _REMEMBER_EVERY):
            batch = due[start : start + _REMEMBER_EVERY]
            whole = []
            for info, damage in zip(batch, executor.map(lambda info: _check(store, info), batch), strict=True):
                report.objects += 1
                report.object_bytes += info.size
                progress.advance(info.size)
                if damage is None:
                    whole.append(info.name)
                else:
                    report.damage.append(damage)
            memory.remember_scrub(whole)


def _check(store: Store, info: ObjectInfo) -> Damage | None:
    try:
        _checker(info.name)(store, info.name)
    except DamageError as error:
        return Damage(info.name, None, str(error))
    except ObjectMissing:
        # deleted since the listing
        return None
    return None


def _checker(name: str) -> Callable[[Store, str], object]:
    kind = name.split("/", 1)[0]
    if kind in {"packs", "index"}:
        return check_hash
    if kind == "clusters" or name.endswith(".content"):
        return check_sealed
    if kind in {"keys", "scrubs", "pgkeep.json"}:
        return read_record
    raise StoreError(
        f"{name} is no object of a pgkeep repository", hint="move it out of the repository; nothing of pgkeep needs it"
    )
