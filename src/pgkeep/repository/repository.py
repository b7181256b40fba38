"""A repository: a store, its parameters and its keys, opened.

What backups and restores need is imported where it is used: `archive_command` opens a repository for every segment.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING

from pgkeep.errors import DamageError, KeyFailure, RepositoryError
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.repository.keys import KeyFile, Secret, create_slot, held_generations, open_key_ring, ring_of
from pgkeep.repository.parameters import Parameters
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import Capabilities, ObjectMissing, Store
from pgkeep.repository.wal_objects import WalArchive
from pgkeep.units import utc_now

if TYPE_CHECKING:
    from pgkeep.repository.contents import ContentReader, ContentWriter
    from pgkeep.repository.index import Index
    from pgkeep.repository.keys.changes import KeySlots
    from pgkeep.repository.leases import Lease
    from pgkeep.repository.manifests import Catalog, Manifest
    from pgkeep.repository.pins import Pins
    from pgkeep.repository.tree import BackupTree

__all__ = ["FORMAT", "ROOT_NAME", "Repository", "exists"]

FORMAT = 1
ROOT_NAME = "pgkeep.json"

_SEALED = "sealed"
"""The required feature of a repository in sealed mode."""


def exists(store: Store) -> bool:
    """Whether there is a repository at the store."""
    try:
        store.info(ROOT_NAME)
    except ObjectMissing:
        return False
    return True


class Repository:
    """A repository that is open: the way to its contents, backups and WAL.

    ``capabilities`` is what its store was found to do when it was created, None for a directory.
    """

    def __init__(
        self,
        store: Store,
        keys: KeyRing,
        identity: str,
        parameters: Parameters,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.store = store
        self.keys = keys
        self.id = identity
        self.parameters = parameters
        self.capabilities = capabilities
        self._index: Index | None = None

    @classmethod
    def create(
        cls,
        store: Store,
        secret: Secret | None,
        parameters: Parameters | None = None,
        capabilities: Capabilities | None = None,
        reader: Secret | None = None,
        keys_of: KeyRing | None = None,
    ) -> Repository:
        """Create a repository; ``secret`` opens it, None means that its owner chose no encryption.

        ``capabilities`` is what a probe of the store found out, for everybody who opens the repository. ``reader``: in sealed
        mode, where only this one reads data and WAL back; ``secret`` adds then. What is returned is opened by ``secret``.
        ``keys_of``: those of another repository, so that objects can be copied between the two as they are.
        Raises RepositoryError where the place is not empty, StoreError.
        """
        if capabilities is not None:
            store.adapt(capabilities)
        # key slots alone are what a creation left that was killed before its last write
        if any(not info.name.startswith("keys/") for info in store.list("")):
            what = "there is a repository already" if exists(store) else "the place is not empty"
            raise RepositoryError(f"cannot create a repository at {store.url}: {what}", hint="name an empty place")
        assert keys_of is None or (keys_of.suite is Suite.NONE) == (secret is None)
        family = secrets.token_bytes(16) if keys_of is None else keys_of.family
        keys = KeyRing.unencrypted(family)
        sealed = reader is not None
        if secret is not None:
            from pgkeep.repository.keys.generations import new_generation

            generations = [new_generation(sealed=sealed)] if keys_of is None else held_generations(keys_of)
            sealed = generations[0].public is not None
            if reader is not None:
                create_slot(store, family, generations, reader, label="reads")
            opened = create_slot(store, family, generations, secret, appends_only=reader is not None)
            keys = ring_of(store, family, opened, [])
        parameters = parameters or Parameters()
        fields: dict[str, object] = {
            "format": FORMAT,
            "id": secrets.token_hex(16),
            "family": family.hex(),
            "created": utc_now().isoformat(timespec="seconds"),
            "encryption": _encryption(keys),
            "parameters": asdict(parameters),
            "required_features": [_SEALED] if sealed else [],
        }
        if capabilities is not None:
            fields["capabilities"] = capabilities.fields()
        write_record(store, ROOT_NAME, {**fields, "seal": _seal(keys, fields)})
        return cls(store, keys, str(fields["id"]), parameters, capabilities)

    @classmethod
    def open(cls, store: Store, secret: Secret | None, *, slot: str | None = None) -> Repository:
        """Open a repository, by the first key slot that the secret opens or by the one that is named.

        Raises RepositoryError where there is none, or one of a format that this version does not know; KeyFailure where
        the key is missing or wrong; DamageError where its root record is not what was written.
        """
        fields = _read_root(store)
        seal = str(fields.pop("seal", ""))
        try:
            family = bytes.fromhex(str(fields["family"]))
        except (KeyError, ValueError):
            raise DamageError(f"{ROOT_NAME} is damaged: it names no family", object_name=ROOT_NAME) from None
        if fields.get("encryption") == "none":
            if secret is not None:
                raise KeyFailure(
                    f"the repository at {store.url} is not encrypted, and the configuration names a key for it",
                    hint='if that is what you want, say so with key = "none"; if not, this is not your repository',
                )
            keys = KeyRing.unencrypted(family)
        elif secret is None:
            raise KeyFailure(
                f"the repository at {store.url} is encrypted, and no key is configured",
                hint='name it with key = "file:/path" or key = "passphrase-file:/path"',
            )
        else:
            keys = open_key_ring(store, family, secret, slot=slot)
        if not hmac.compare_digest(seal.encode(), _seal(keys, fields).encode()):
            raise DamageError(
                f"{ROOT_NAME} was not written with this repository's key",
                object_name=ROOT_NAME,
                hint="someone changed the repository's parameters; bring the object back from a copy",
            )
        parameters, probed = fields["parameters"], fields.get("capabilities")
        assert isinstance(parameters, dict)
        capabilities = Capabilities.of(probed) if isinstance(probed, dict) else None
        if capabilities is not None:
            store.adapt(capabilities)
        return cls(store, keys, str(fields["id"]), Parameters(**parameters), capabilities)

    @property
    def encrypted(self) -> bool:
        """Whether what is stored can be read without the key."""
        return self.keys.suite is not Suite.NONE

    @property
    def format(self) -> int:
        """The number of the repository's format."""
        return FORMAT

    @property
    def index(self) -> Index:
        """The index, opened at first use."""
        from pgkeep.repository.index import Index

        if self._index is None:
            self._index = Index(self.store, self.keys)
        return self._index

    def add_recovery_key(self) -> str:
        """Add a key slot for a new recovery key and return its printed form: the only time that it can be seen."""
        key = KeyFile.new()
        self.slots.add(key, label="recovery key")
        return key.text()

    @property
    def slots(self) -> KeySlots:
        """Who can open it. Raises KeyFailure where it is not encrypted."""
        from pgkeep.repository.keys.changes import KeySlots

        return KeySlots(self.store, self.keys)

    @property
    def catalog(self) -> Catalog:
        """The backups."""
        from pgkeep.repository.manifests import Catalog

        return Catalog(self.store, self.keys)

    @property
    def pins(self) -> Pins:
        """The backups that must stay."""
        from pgkeep.repository.pins import Pins

        return Pins(self.store, self.keys)

    def wal(self, system_identifier: int) -> WalArchive:
        """The WAL of a cluster."""
        return WalArchive(self.store, self.keys, system_identifier)

    def clusters(self) -> list[int]:
        """System identifiers of the clusters that have a backup or WAL here."""
        return [int(name) for name in self.store.folders("clusters/")]

    def reader(self) -> ContentReader:
        """A reader of contents."""
        from pgkeep.repository.contents import ContentReader

        return ContentReader(self.store, self.keys, self.index)

    def tree(self, manifest: Manifest) -> BackupTree:
        """The files of a backup."""
        from pgkeep.repository.tree import BackupTree

        return BackupTree(manifest, self.reader())

    def writer(self) -> ContentWriter:
        """A writer of contents."""
        from pgkeep.repository.contents import ContentWriter

        return ContentWriter(self.store, self.keys, self.index, self.parameters)

    def lease(self, resource: str) -> Lease:
        """A claim on a resource; see `Lease`."""
        from pgkeep.repository.leases import Lease

        return Lease(self.store, resource)

    def adopt_orphans(self) -> int:
        """Bring packs of a writer that was killed into the index; returns how many there were."""
        from pgkeep.repository.contents import adopt_orphans

        return adopt_orphans(self.store, self.keys, self.index)

    def reindex(self) -> int:
        """Make the whole index again from what the packs say of themselves; returns the number of packs.

        Raises DamageError where packs are damaged, after the index of the others is written; the old index stays then.
        """
        from pgkeep.repository.contents import read_tables
        from pgkeep.repository.index import IndexSegment, write_index

        # listed before the packs: an index that comes meanwhile may cover packs that the listing below has missed
        old = [info.name for info in self.store.list("index/")]
        tables, damaged = read_tables(self.store, self.keys, (info.name for info in self.store.list("packs/")))
        new = write_index(self.store, self.keys, tables)
        try:
            IndexSegment(self.keys, new, self.store.read_mapped(new))
        except DamageError:
            # the same index was there already, and is what had to be mended
            self.store.delete(new)
            write_index(self.store, self.keys, tables)
        self._index = None
        if damaged:
            raise DamageError(
                f"{len(damaged)} of {len(tables) + len(damaged)} packs cannot be read and are not in the new index,"
                f" {damaged[0]} first",
                object_name=damaged[0],
                hint="bring them back from a copy of the repository; pgkeep verify names the backups that need them",
            )
        for name in old:
            if name != new:
                self.store.delete(name)
        return len(tables)


def _read_root(store: Store) -> dict[str, object]:
    try:
        fields = read_record(store, ROOT_NAME)
    except ObjectMissing:
        raise RepositoryError(
            f"{store.url} is not a pgkeep repository",
            hint="check the address (url = …), or create one with: pgkeep init",
        ) from None
    unknown = fields.get("required_features")
    if fields.get("format") != FORMAT or unknown not in ([], [_SEALED]):
        what = f"format {fields.get('format')}" if fields.get("format") != FORMAT else f"features {unknown}"
        raise RepositoryError(
            f"the repository at {store.url} has {what}; this pgkeep knows format {FORMAT}",
            hint="install a newer pgkeep",
        )
    return fields


def _encryption(keys: KeyRing) -> str:
    return "none" if keys.suite is Suite.NONE else "aes-256-gcm"


def _seal(keys: KeyRing, fields: dict[str, object]) -> str:
    """A MAC under the root key, so that nobody can turn encryption off or change parameters without it."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(keys.derive(keys.family, "root record"), canonical, hashlib.sha256).hex()
