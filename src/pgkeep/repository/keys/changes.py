"""Changing who can open a repository: slots added and removed, new generations of the root key.

Nothing is ever written over, and any number of people may do this at once: what counts is which objects are there. The last
slot cannot go. Who removes one must have opened the repository by another one, and two that would remove each other's are
both held up: each first writes down that its slot is leaving (``keys/leaving-<slot>-<random>.json``), and then looks whether
the slot that it relies on is.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pgkeep.errors import BusyError, DamageError, KeyFailure, NotFoundError, UsageError
from pgkeep.repository.crypto import Generation, KeyRing
from pgkeep.repository.keys import Secret, create_slot
from pgkeep.repository.keys.generations import (
    MAX_GENERATION,
    HeldGenerations,
    give_to,
    granted_slots,
    new_generation,
    write_generation,
)
from pgkeep.repository.keys.slots import Slot, open_slot, read_slot, slot_names
from pgkeep.repository.records import write_record
from pgkeep.repository.store import ObjectExists, ObjectMissing, Store

__all__ = ["KeySlots", "ListedSlot", "list_slots"]

_PATIENCE = 3.0
"""Seconds that somebody who adds a slot has to give it the root keys that came meanwhile."""

_POLL = 0.1

_LEAVING = re.compile(r"keys/leaving-([0-9a-f]{8})-[0-9a-f]{8}\.json", re.ASCII)


@dataclass(frozen=True)
class ListedSlot:
    """A slot as it is now. ``slot`` is None where its record is damaged; ``leaving``: its removal was begun."""

    name: str
    slot: Slot | None
    leaving: bool


def list_slots(store: Store) -> list[ListedSlot]:
    """All slots, oldest first; takes no key. Raises StoreError."""
    names = _names(store)
    leaving = {name for name, _ in _leaving(names)}
    found = []
    for name in slot_names(names):
        try:
            found.append(ListedSlot(name, read_slot(store, name), name in leaving))
        except DamageError:
            found.append(ListedSlot(name, None, name in leaving))
        except ObjectMissing:
            continue
    return sorted(found, key=lambda listed: (listed.slot.created if listed.slot else "", listed.name))


class KeySlots:
    """The slots of a repository that is open. Raises KeyFailure where it is not encrypted."""

    def __init__(self, store: Store, keys: KeyRing) -> None:
        if not isinstance(keys.generations, HeldGenerations):
            raise KeyFailure(
                f"the repository at {store.url} is not encrypted and has no keys",
                hint="encryption is chosen when a repository is made: pgkeep init",
            )
        self._store = store
        self._family = keys.family
        self._held = keys.generations
        self.unproven: KeyFailure | None = None
        """Why the slot that was added last could not be opened here: its secret key, or the right to use it, is elsewhere."""

    @property
    def own(self) -> Slot:
        """The slot by which the repository was opened."""
        return self._held.slot

    @property
    def root_keys(self) -> int:
        """How many generations of the root key there are. Raises KeyFailure where the own slot was not given all."""
        return len(self._held.refresh())

    def add(
        self,
        secret: Secret,
        *,
        label: str = "",
        appends_only: bool = False,
        name: str | None = None,
        replaces: str | None = None,
    ) -> Slot:
        """A slot for one more secret; it opens what is stored now and what comes.

        It is opened once, as a proof, where that can be done here: see `unproven`. ``appends_only``: in sealed mode, for a
        database host. ``replaces`` is the slot that goes once this one is in use. Raises KeyFailure, StoreError.
        """
        generations = self._held.refresh()
        if appends_only and generations[0].public is None:
            raise UsageError(
                "only a repository in sealed mode has keys that add and do not read",
                hint="sealed mode is chosen when a repository is made",
            )
        if not appends_only and self.own.appends_only:
            raise KeyFailure(
                "this key adds to the repository only, and cannot let others read it",
                hint="open it with a key that reads: --key-file FILE with the recovery key, or another key",
            )
        opened = create_slot(
            self._store,
            self._family,
            generations,
            secret,
            label=label,
            appends_only=appends_only,
            name=name,
            replaces=replaces,
        )
        self._prove(opened.slot, secret)
        self._catch_up(opened.slot)
        return opened.slot

    def find(self, beginning: str) -> str:
        """The name of the one slot whose name begins so. Raises NotFoundError."""
        found = [name for name in slot_names(_names(self._store)) if beginning and name.startswith(beginning)]
        if len(found) != 1:
            what = "no key slot has" if not found else f"{len(found)} key slots have"
            raise NotFoundError(f"{what} a name that begins with {beginning!r}", hint="pgkeep key list shows them")
        return found[0]

    def opened_by(self, secret: Secret, *, replacing: str) -> str | None:
        """The slot that a secret opens and that is to take the place of another; None where there is none yet."""
        for name in slot_names(_names(self._store)):
            with suppress(ObjectMissing, DamageError):
                slot = read_slot(self._store, name)
                if slot.replaces == replacing and open_slot(slot, self._family, secret) is not None:
                    return name
        return None

    def remove(self, name: str) -> None:
        """Remove a slot other than the own one. Raises KeyFailure, NotFoundError; BusyError where the own one is leaving."""
        if name not in slot_names(_names(self._store)):
            raise NotFoundError(f"there is no key slot {name}", hint="pgkeep key list shows them")
        if name == self.own.name:
            raise KeyFailure(
                f"the key that you gave opens the slot {name}, which is the one to be removed",
                hint="prove that the repository stays open: give another slot's key with --key-file or --passphrase-file",
            )
        # all that the repository needs must open by the slot that stays
        self._held.refresh()
        intent = f"keys/leaving-{name}-{secrets.token_hex(4)}.json"
        write_record(self._store, intent, {"slot": name, "by": self.own.name})
        # in this order: who removes a slot removes first its object, then what said that it was leaving
        leaving = any(slot == self.own.name for slot, _ in _leaving(_names(self._store)))
        if leaving or not self._is_there(self.own.name):
            self._store.delete(intent)
            raise BusyError(
                f"the key slot {self.own.name}, which your key opens, is being removed itself",
                hint="use the key of another slot; pgkeep key list shows them",
            )
        self._store.delete(f"keys/{name}.json")
        for slot, object_name in _leaving(_names(self._store)):
            if slot == name:
                self._store.delete(object_name)

    def new_root(self) -> int:
        """A new generation of the root key, for all slots; what is stored from now on takes it. Its number.

        Raises KeyFailure for a slot that cannot be trusted with it; BusyError where somebody else makes one now.
        """
        if self.own.appends_only:
            raise KeyFailure(
                "this key adds to the repository only, and cannot make a root key that others read with",
                hint="open it with a key that reads: --key-file FILE with the recovery key, or another key",
            )
        generations = self._held.refresh()
        number = len(generations)
        if number > MAX_GENERATION:
            raise KeyFailure(f"a repository has at most {MAX_GENERATION + 1} root keys", hint="copy it to a new one")
        slots = self._trusted(generations)
        new = new_generation(sealed=generations[0].public is not None)
        try:
            write_generation(self._store, self._family, generations[-1], new, number, slots)
        except ObjectExists:
            raise BusyError(
                f"somebody else has just made generation {number} of the root key",
                hint="look whether that is enough: pgkeep key list",
            ) from None
        self._give_to_latecomers(number, slots)
        return number

    def _prove(self, slot: Slot, secret: Secret) -> None:
        self.unproven = None
        try:
            opened = open_slot(read_slot(self._store, slot.name), self._family, secret)
        except KeyFailure as error:
            # a recipient whose public key alone is here is the best reason to have recipients
            self.unproven = error
            return
        if opened is None:
            self._store.delete(slot.object_name)
            raise KeyFailure(f"the new key slot {slot.name} does not open", hint="run it again; nothing was changed")

    def _catch_up(self, slot: Slot) -> None:
        """Give a slot that was just made what somebody else made of root keys meanwhile."""
        while True:
            generations = self._held.refresh()
            granted = granted_slots(self._store, _names(self._store), self._family, generations)
            missing = [n for n in range(slot.generation + 1, len(generations)) if slot.name not in granted[n - 1]]
            if not missing:
                return
            for number in missing:
                give_to(self._store, self._family, generations[number - 1], generations[number], number, slot)
            # while that was written, one more may have come, whose maker did not take the slot for good yet

    def _give_to_latecomers(self, number: int, given: Iterable[Slot]) -> None:
        """Give a root key that was just made to slots that somebody else made meanwhile."""
        generations = self._held.refresh()
        names = _names(self._store)
        granted = granted_slots(self._store, names, self._family, generations)
        for name in set(slot_names(names)) - {slot.name for slot in given}:
            with suppress(ObjectMissing, DamageError):
                slot = read_slot(self._store, name)
                if self._is_made_by_us(slot, generations[:number], granted):
                    give_to(self._store, self._family, generations[number - 1], generations[number], number, slot)

    def _trusted(self, generations: Sequence[Generation]) -> list[Slot]:
        """All slots. Raises KeyFailure for one that somebody may have put there who has no key, or only an old root key."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            names = _names(self._store)
            granted = granted_slots(self._store, names, self._family, generations)
            slots = list(self._read_all(slot_names(names)))
            doubtful = [slot.name for slot in slots if not self._is_made_by_us(slot, generations, granted)]
            if not doubtful:
                return slots
            if time.monotonic() > deadline:
                raise KeyFailure(
                    f"nobody who has this repository's keys has made the key slot {doubtful[0]} as it is now",
                    hint=f"remove it: pgkeep key remove {doubtful[0]}; if it is yours, add its key again then",
                )
            # one that is being added is given the newest root keys a moment after it is there
            time.sleep(_POLL)

    def _read_all(self, names: Iterable[str]) -> Iterator[Slot]:
        for name in names:
            with suppress(ObjectMissing):
                yield read_slot(self._store, name)

    def _is_made_by_us(self, slot: Slot, generations: Sequence[Generation], granted: Sequence[set[str]]) -> bool:
        """Whether it was made by someone who held the newest root key of then, and was given those that came since."""
        made_at = slot.generation
        return (
            slot.public is not None
            and 0 <= made_at < len(generations)
            and slot.is_sealed_by(self._family, generations[made_at])
            and all(slot.name in slots_given for slots_given in granted[made_at : len(generations) - 1])
        )

    def _is_there(self, name: str) -> bool:
        try:
            self._store.info(f"keys/{name}.json")
        except ObjectMissing:
            return False
        return True


def _names(store: Store) -> list[str]:
    return [info.name for info in store.list("keys/")]


def _leaving(names: Iterable[str]) -> list[tuple[str, str]]:
    """(slot, object) for each removal that was begun."""
    return [(found[1], name) for name in names if (found := _LEAVING.fullmatch(name))]
