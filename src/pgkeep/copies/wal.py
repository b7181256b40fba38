"""WAL between repositories: sealed objects as they are where the keys are shared, else opened and sealed anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from pgkeep.copies.transfer import Transfer
from pgkeep.errors import DamageError
from pgkeep.postgres.timeline import history_name
from pgkeep.postgres.wal import WalFileKind, classify
from pgkeep.repository.sealed import ObjectType, check_sealed_bytes, open_parts, read_sealed, write_sealed
from pgkeep.repository.store import ObjectExists, ObjectMissing
from pgkeep.repository.wal_objects import DifferentWalError, split_piece

__all__ = ["WalCopy", "Wanted", "copy_wal", "copy_wal_file", "lacking_wal"]

Wanted = Callable[[int, str], bool]
"""Whether a destination wants a WAL object of a cluster: what has expired there is not to come back."""


@dataclass
class WalCopy:
    """What was copied; ``size`` in stored bytes. ``damage`` is what the source could not give."""

    files: int = 0
    size: int = 0
    damage: list[DamageError] = field(default_factory=list)


def lacking_wal(transfer: Transfer, system_identifier: int, wanted: Wanted | None = None) -> Iterator[tuple[str, int]]:
    """Names and stored sizes of the WAL that the destination lacks and wants: each timeline's history first, then in order.

    Pieces of segments that the source has whole are left out. Memory holds one name of each repository. Raises StoreError.
    """
    here, there = (each.wal(system_identifier) for each in (transfer.source, transfer.destination))
    for timeline in here.timelines():
        history = history_name(timeline)
        if here.exists(history) and not there.exists(history):
            yield history, transfer.source.store.info(here.object_name(history)).size
        theirs = iter(there.names(timeline))
        candidate = next(theirs, None)
        whole = ""
        for name, size in here.names(timeline):
            # both listings are sorted by the objects' names
            while candidate is not None and there.object_name(candidate[0]) < here.object_name(name):
                candidate = next(theirs, None)
            segment, _, end = split_piece(name)
            if end is None and classify(name) is WalFileKind.SEGMENT:
                whole = name
            is_there = candidate is not None and candidate[0] == name
            if is_there or name == history or (end is not None and segment == whole):
                continue
            if wanted is None or wanted(system_identifier, name):
                yield name, size


def copy_wal(transfer: Transfer, system_identifier: int, wanted: Wanted | None = None) -> WalCopy:
    """Copy all WAL that the destination lacks and wants, and what the source knows of its times.

    What is damaged in the source is passed over, and told of. Raises DifferentWalError, StoreError.
    """
    result = WalCopy()
    lock = threading.Lock()

    def bring(name: str) -> None:
        try:
            size = copy_wal_file(transfer, system_identifier, name)
        except DamageError as error:
            with lock:
                result.damage.append(error)
            return
        with lock:
            result.files += 1
            result.size += size

    with transfer.workers("copy wal") as workers:
        for name, _ in lacking_wal(transfer, system_identifier, wanted):
            workers.submit(bring, name)
        workers.drain()
    # a group's times say that its segments are all there
    if not result.damage:
        _copy_times(transfer, system_identifier)
    return result


def copy_wal_file(transfer: Transfer, system_identifier: int, name: str) -> int:
    """Make a segment, a piece or a history file durable in the destination; returns its stored size.

    The same bytes there already are no error. Raises DifferentWalError, DamageError, StoreError.
    """
    here, there = (each.wal(system_identifier) for each in (transfer.source, transfer.destination))
    object_name = here.object_name(name)
    try:
        if transfer.same_keys:
            size = _copy_sealed(transfer, object_name)
        else:
            sealer = there.sealer(name)
            for chunk in here.stream(name):
                sealer.write(chunk)
            size = there.keep(sealer)
    except ObjectMissing:
        raise DamageError(f"{object_name} is gone from {transfer.source.store.url}", object_name=object_name) from None
    transfer.moved(size)
    return size


def _copy_sealed(transfer: Transfer, object_name: str) -> int:
    source, destination = transfer.source, transfer.destination
    data = source.store.get(object_name)
    check_sealed_bytes(object_name, data)
    try:
        destination.store.put(object_name, [data])
    except ObjectExists:
        there = destination.store.get(object_name)
        if there != data:
            mine = open_parts([data], source.keys, object_name, ObjectType.WAL)
            if mine != open_parts([there], destination.keys, object_name, ObjectType.WAL):
                raise DifferentWalError(
                    f"{object_name} in {destination.store.url} has other content than in {source.store.url}",
                    hint="two servers wrote this timeline: find out which one is right before anything is deleted",
                ) from None
    return len(data)


def _copy_times(transfer: Transfer, system_identifier: int) -> None:
    """The index of times: a memory, so that what cannot be copied is left to who reads the WAL next."""
    source, destination = transfer.source, transfer.destination
    prefix = f"clusters/{system_identifier}/times/"
    theirs = iter(destination.store.list(prefix))
    candidate = next(theirs, None)
    for info in source.store.list(prefix):
        while candidate is not None and candidate.name < info.name:
            candidate = next(theirs, None)
        if candidate is None or candidate.name != info.name:
            with suppress(DamageError, ObjectMissing, ObjectExists):
                plain = read_sealed(source.store, source.keys, info.name, ObjectType.WAL_TIMES)
                write_sealed(destination.store, destination.keys, info.name, ObjectType.WAL_TIMES, plain)
