"""Storage classes, simulated over any store: only the object that stands for them knows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.repository.storage_classes import HOT, ObjectState, StorageClasses
from pgkeep.repository.store import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.repository.store import Store

__all__ = ["SimulatedClasses"]


class SimulatedClasses(StorageClasses):
    """The classes of a store's objects, which this object alone knows of; ``scheme`` is that of the service it stands for."""

    def __init__(self, store: Store, scheme: str = "s3") -> None:
        self.store = store  # type: ignore[assignment]
        self.scheme = scheme
        self.states: dict[str, ObjectState] = {}
        self.asked = 0

    def state(self, name: str) -> ObjectState:
        """See `StorageClasses.state`."""
        self.asked += 1
        info = self.store.info(name)
        return self.states.get(name, ObjectState(name, info.size, HOT[self.scheme]))

    def list(self, prefix: str, after: str | None = None) -> Iterator[ObjectInfo]:
        """See `StorageClasses.list`."""
        for info in self.store.list(prefix):
            if after is None or info.name.rpartition("/")[2] > after:
                known = self.states.get(info.name)
                yield ObjectInfo(
                    info.name, info.size, info.modified, known.storage_class if known else HOT[self.scheme]
                )

    def change(self, name: str, storage_class: str) -> None:
        """See `StorageClasses.change`."""
        self.states[name] = ObjectState(name, self.store.info(name).size, storage_class)
