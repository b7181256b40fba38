"""What was verified, and when: so that a repository is checked bit by bit, and a damaged disk is found in weeks.

Two kinds of objects below ``scrubs/``: a plain record for scrubs, which need no key, and a sealed one for contents,
since it gives a backup the state ``verified``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import msgspec

from pgkeep.errors import DamageError, StoreError
from pgkeep.progress import Progress, Silent
from pgkeep.repository import Repository, Store
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.sealed import ObjectType, read_sealed, write_sealed
from pgkeep.units import utc_now

__all__ = ["VerifyMemory"]

_SCRUB, _CONTENT = "scrub", "content"


class _Contents(msgspec.Struct, frozen=True):
    time: datetime
    backups: list[str]


class VerifyMemory:
    """When objects and backups were last found whole."""

    def __init__(
        self, store: Store, repository: Repository | None, progress: Progress | None = None, *, objects: bool = True
    ) -> None:
        """Read what there is; contents only with an open repository. A damaged record is as good as none.

        ``objects`` false leaves scrubs alone, whose records name every object there is.
        """
        self._store = store
        self._repository = repository
        self._progress = progress or Silent()
        self._can_write = True
        self.objects: dict[str, datetime] = {}
        self.backups: dict[str, datetime] = {}
        for info in store.list("scrubs/"):
            try:
                if info.name.endswith(_SCRUB):
                    if not objects:
                        continue
                    fields = read_record(store, info.name)
                    names = fields["objects"]
                    assert isinstance(names, list)
                    self.objects.update(dict.fromkeys(names, datetime.fromisoformat(str(fields["time"]))))
                elif repository is not None:
                    data = read_sealed(store, repository.keys, info.name, ObjectType.SCRUB)
                    contents = msgspec.msgpack.decode(data, type=_Contents)
                    self.backups.update(dict.fromkeys(contents.backups, contents.time))
            except DamageError:
                continue

    def object_is_fresh(self, name: str, max_age: timedelta) -> bool:
        """Whether an object was scrubbed within ``max_age``."""
        return name in self.objects and utc_now() - self.objects[name] < max_age

    def backup_is_fresh(self, backup_id: str, max_age: timedelta) -> bool:
        """Whether a backup's content was verified within ``max_age``."""
        return backup_id in self.backups and utc_now() - self.backups[backup_id] < max_age

    def remember_scrub(self, names: list[str]) -> None:
        """These objects are whole, now. A store that only can be read is verified all the same, and a note says so."""
        if names:
            fields: dict[str, object] = {"time": utc_now().isoformat(), "objects": names}
            with self._noting_failure():
                write_record(self._store, _name(_SCRUB), fields)

    def remember_content(self, backup_ids: list[str]) -> None:
        """These backups are whole, now; as `remember_scrub`."""
        if backup_ids and self._repository is not None:
            record = msgspec.msgpack.encode(_Contents(utc_now(), backup_ids))
            with self._noting_failure():
                write_sealed(self._store, self._repository.keys, _name(_CONTENT), ObjectType.SCRUB, record)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            if self._can_write:
                self._progress.note(f"the next run will check everything again: {error}")
            self._can_write = False


def _name(kind: str) -> str:
    return f"scrubs/{utc_now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.{kind}"
