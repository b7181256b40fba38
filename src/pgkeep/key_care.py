"""Care of keys beyond one slot: a key is proved on what is stored, and replaced in every repository that it opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.errors import KeyFailure, NotFoundError, PgkeepError, UsageError
from pgkeep.opening import read_secret
from pgkeep.repository import KeyFile, Repository, Secret, Store
from pgkeep.repository.tree import BackupTree

if TYPE_CHECKING:
    from pgkeep.config import KeyReference
    from pgkeep.repository.manifests import BackupName

__all__ = ["Proof", "Rotated", "new_secret", "prove_key", "rotate_key"]


@dataclass(frozen=True)
class Proof:
    """What a key has shown: the slot that it opens, the root keys that it gives, and the objects that it has decrypted."""

    slot: str
    root_keys: int
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Rotated:
    """A slot that took another's place in a repository."""

    url: str
    old: str
    new: str


def prove_key(store: Store, secret: Secret) -> Proof:
    """Open a repository with a secret alone, and decrypt what is stored first and last: manifest, data and WAL of a backup.

    Raises KeyFailure where it does not open all of it, DamageError, StoreError.
    """
    repository = Repository.open(store, secret)
    own = repository.slots.own
    root_keys = repository.slots.root_keys
    if not repository.keys.opens_boxes:
        raise KeyFailure(
            f"this key opens slot {own.name}, which adds to the repository and does not read data or WAL back",
            hint="verify one that reads: that of the recovery sheet, or of another host",
        )
    backups = repository.catalog.names()
    objects = [name for backup in dict.fromkeys([*backups[:1], *backups[-1:]]) for name in _decrypt(repository, backup)]
    return Proof(own.name, root_keys, tuple(objects))


def _decrypt(repository: Repository, backup: BackupName) -> list[str]:
    """Names of objects that a backup needs, each opened."""
    manifest = repository.catalog.read(backup)
    objects = [backup.object_name]
    reader = repository.reader()
    tree = BackupTree(manifest, reader)
    extents = (extent for file in tree.files() for extent in tree.extents(file))
    extent = next(extents, None)
    if extent is not None:
        reader.get(extent.id)
        objects.append(reader.locate(extent.id).pack)
    wal = repository.wal(manifest.system_identifier)
    for name in manifest.wal.segments[-1:]:
        wal.get(name)
        objects.append(wal.object_name(name))
    return objects


def new_secret(key: KeyReference) -> tuple[Secret, bool]:
    """The secret that a new slot is for; a key file that is not there is made. Whether it was made.

    Raises KeyFailure; UsageError for "none".
    """
    if key.kind == "file" and key.path is not None and not key.path.exists():
        return KeyFile.generate(key.path), True
    secret = read_secret(key)
    if secret is None:
        raise UsageError(
            "a repository's encryption is chosen when it is made", hint="name a key: file:/path, gpg:RECIPIENT, …"
        )
    return secret, False


def rotate_key(repositories: Sequence[Repository], old: KeyReference, new: KeyReference | None = None) -> list[Rotated]:
    """Put a new slot in the place of the one that opened each repository; nothing that is stored is touched.

    ``old`` opened them. ``new`` None: a key file is written anew, a recipient or a key of a service is asked anew. First every
    repository gets its new slot, then the key file is replaced, then the old slots go: after a crash both keys are good, or
    the new one, and the next rotation goes on where this one ended. Raises UsageError where a passphrase has no successor,
    KeyFailure, StoreError.
    """
    _finish_earlier(repositories)
    place = None
    if new is not None and new != old:
        secret, _ = new_secret(new)
    elif old.kind == "file" and old.path is not None:
        place = old.path.with_name(old.path.name + ".new")
        secret = _next_key_file(old.path, place)
    elif old.kind == "passphrase-file":
        raise UsageError(
            "the new passphrase is wanted in a file of its own",
            hint="pgkeep key rotate --to passphrase-file:/path/to/new",
        )
    else:
        secret = _secret(old)
    added = _add_to_all(repositories, secret, place)
    if place is not None and old.path is not None:
        _replace(place, old.path)
    rotated = []
    for repository, name in zip(repositories, added, strict=True):
        before = repository.slots.own.name
        # a recipient opens both: the proof is wanted of the new one
        Repository.open(repository.store, secret, slot=name).slots.remove(before)
        rotated.append(Rotated(repository.store.url, before, name))
    return rotated


def _finish_earlier(repositories: Sequence[Repository]) -> None:
    """Remove slots whose place was taken by the one that opened the repository, in a rotation that was broken off."""
    for repository in repositories:
        slots = repository.slots
        with suppress(NotFoundError):
            if slots.own.replaces is not None:
                slots.remove(slots.own.replaces)


def _add_to_all(repositories: Sequence[Repository], secret: Secret, place: Path | None) -> list[str]:
    """The slots' names. ``place`` holds the secret as long as it is not in use."""
    added: list[str] = []
    try:
        for repository in repositories:
            slots, own = repository.slots, repository.slots.own
            # one that a rotation has made which was broken off serves, too
            name = slots.opened_by(secret, replacing=own.name) if place is not None else None
            if name is None:
                name = slots.add(secret, label=own.label, appends_only=own.appends_only, replaces=own.name).name
            added.append(name)
            if slots.unproven is not None:
                raise slots.unproven
    except BaseException:
        # what has not been put in place yet must not stay behind as a key that opens
        left = False
        for repository, name in zip(repositories, added, strict=False):
            try:
                repository.slots.remove(name)
            except PgkeepError:
                left = True
        if place is not None and not left:
            place.unlink(missing_ok=True)
        raise
    return added


def _secret(key: KeyReference) -> Secret:
    secret = read_secret(key)
    if secret is None:
        raise UsageError("the repository is not encrypted and has no keys", hint="encryption is chosen by pgkeep init")
    return secret


def _next_key_file(path: Path, place: Path) -> KeyFile:
    """A new key in a file beside the old one, for those who may read that; the one that a broken rotation left."""
    if place.exists() and place.stat().st_size == 0:
        # killed before it had a key
        place.unlink()
    key = _left_key(place) if place.exists() else KeyFile.generate(place)
    status = path.stat()
    try:
        os.chown(place, status.st_uid, status.st_gid)
        place.chmod(status.st_mode & 0o777)
    except OSError as error:
        raise KeyFailure(
            f"cannot give {place} the owner and mode of {path}: {error.strerror}",
            hint="run it as root, or as the owner",
        ) from None
    return key


def _left_key(place: Path) -> KeyFile:
    try:
        return KeyFile.read(place)
    except KeyFailure as error:
        raise KeyFailure(
            f"{place} is where the new key would be written, and {error}",
            hint=f"look at it, then remove it: rm {place}",
        ) from None


def _replace(place: Path, path: Path) -> None:
    place.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
