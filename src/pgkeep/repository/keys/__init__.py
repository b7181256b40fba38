"""Ways to open a repository: secrets, the slots that they open, and the generations of the root key.

Secrets that ask another program or service are imported where they are used: `archive_command` opens a repository for every segment.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgkeep.errors import DamageError, KeyFailure, PgkeepError
from pgkeep.repository.crypto import Generation, KeyRing, Suite
from pgkeep.repository.keys.generations import HeldGenerations
from pgkeep.repository.keys.local_secrets import KeyFile, Passphrase
from pgkeep.repository.keys.secret import Secret
from pgkeep.repository.keys.slots import OpenSlot, create_slot, open_slot, read_slot, slot_names
from pgkeep.repository.store import Store

__all__ = [
    "HeldGenerations",
    "KeyFile",
    "Passphrase",
    "Secret",
    "create_slot",
    "find_slot",
    "held_generations",
    "open_key_ring",
    "ring_of",
    "same_keys",
    "secret_of",
]


def secret_of(kind: str, value: str) -> Secret | None:
    """The secret that a setting ``kind:value`` names; None for the kind "none". Raises KeyFailure."""
    match kind:
        case "none":
            return None
        case "file":
            return KeyFile.read(value)
        case "passphrase-file":
            return Passphrase.read(value)
        case "gpg":
            from pgkeep.repository.keys.openpgp import OpenPgpRecipient

            return OpenPgpRecipient(value)
        case "aws-kms":
            from pgkeep.repository.keys.aws_kms import AwsKmsKey

            return AwsKmsKey(value)
    raise KeyFailure(f"pgkeep knows no kind of key called {kind!r}")


def open_key_ring(store: Store, family: bytes, secret: Secret, *, slot: str | None = None) -> KeyRing:
    """A repository's keys, by the first slot that the secret opens, or by one that is named.

    Raises KeyFailure, DamageError, StoreError.
    """
    names = [info.name for info in store.list("keys/")]
    opened = find_slot(store, family, secret, slot_names(names) if slot is None else [slot])
    if opened is None:
        raise KeyFailure(
            f"this {_WORDS.get(secret.kind, secret.kind)} does not open the repository at {store.url}",
            hint="name the right key in the configuration (key = …); the recovery key in a file serves as a key file",
        )
    return ring_of(store, family, opened, names)


def find_slot(store: Store, family: bytes, secret: Secret, slots: Sequence[str]) -> OpenSlot | None:
    """The first of these slots that a secret opens.

    Where none does and one could not be tried, raises what was wrong with that: KeyFailure, DamageError.
    """
    trouble: PgkeepError | None = None
    for name in slots:
        try:
            opened = open_slot(read_slot(store, name), family, secret)
        except (DamageError, KeyFailure) as error:
            # a key slot may have been damaged, or be for a recipient whose key is not here, and the next one opens
            trouble = trouble if isinstance(trouble, DamageError) else error
            continue
        if opened is not None:
            return opened
    if trouble is not None:
        raise trouble
    return None


def ring_of(store: Store, family: bytes, opened: OpenSlot, names: Sequence[str]) -> KeyRing:
    """The keys that an opened slot gives."""
    held = HeldGenerations(store, family, opened)
    held.look(names)
    return KeyRing(Suite.AES_256_GCM, opened.generations[0].root, family, held)


def same_keys(source: KeyRing, destination: KeyRing) -> bool:
    """Whether everything that is sealed in one repository opens in another as it is. Raises KeyFailure, StoreError."""
    if (source.suite, source.family, source.root_key) != (destination.suite, destination.family, destination.root_key):
        return False
    mine, theirs = (
        [(generation.root, generation.public) for generation in held_generations(keys)]
        for keys in (source, destination)
    )
    return mine == theirs[: len(mine)]


def held_generations(keys: KeyRing) -> list[Generation]:
    """All root keys. Raises KeyFailure where not all are held, StoreError."""
    if not isinstance(keys.generations, HeldGenerations):
        return [Generation(keys.root_key)]
    return keys.generations.refresh()


_WORDS = {"openpgp": "OpenPGP recipient", "aws-kms": "key of AWS KMS"}
