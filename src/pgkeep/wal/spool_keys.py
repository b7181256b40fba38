"""Whose WAL a spool holds, and the key that seals it: ``spool.json``.

The key is random. It is wrapped once for each configured repository's root key, and once for each one's secret (key file
or passphrase), so that any one of them opens the spool, even while no repository can be reached. Where no repository is
encrypted, neither is the spool: frames carry checks instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pgkeep.errors import BusyError, ConfigError, DamageError, KeyFailure, StoreError
from pgkeep.repository import Repository, Secret
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.wal.small_files import read_json, write_json

__all__ = ["SpoolIdentity", "create_spool_keys", "lock_spool", "open_spool_keys", "spool_errors"]

_FORMAT = 1
_NAME = "spool.json"
_PURPOSE = "spool key"


@dataclass(frozen=True, slots=True)
class SpoolIdentity:
    """The cluster whose WAL a spool holds, and the size of its segments in bytes."""

    system_identifier: int
    segment_size: int


@contextlib.contextmanager
def lock_spool(directory: Path) -> Iterator[None]:
    """Make the directory, for its owner only, and hold it. Raises BusyError where another process does, StoreError."""
    with spool_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _take(descriptor):
            raise BusyError(
                f"another receiver works with the spool {directory}",
                hint="one receiver for each cluster is enough; its state is in pgkeep wal status",
            )
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Lock a file; those who only ask whether it is locked hold it for a moment, too."""
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def spool_errors(directory: Path) -> Iterator[None]:
    """Within it, an OSError is a StoreError that names the spool."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the spool {directory} cannot be used: {error.strerror or error}",
            hint=f"make room and look after its permissions: df -h {directory}; ls -ld {directory}",
        ) from error


def create_spool_keys(
    directory: Path,
    identity: SpoolIdentity,
    configured: Mapping[str, Secret | None],
    repositories: Mapping[str, Repository],
) -> KeyRing:
    """A new spool's record and keys. ``configured`` are the repositories' secrets, ``repositories`` those that are open.

    Raises StoreError.
    """
    family = secrets.token_bytes(16)
    if not any(secret is not None for secret in configured.values()):
        keys = KeyRing.unencrypted(family)
        slots: list[dict[str, str]] = []
    else:
        keys = KeyRing(Suite.AES_256_GCM, secrets.token_bytes(32), family)
        slots = _wrap_all(keys, configured, repositories)
    _write(directory, identity, keys, slots)
    return keys


def open_spool_keys(
    directory: Path, configured: Mapping[str, Secret | None], repositories: Mapping[str, Repository]
) -> tuple[SpoolIdentity, KeyRing] | None:
    """What an existing spool is, and its keys; None where there is none. Repositories that are new get their slot.

    Raises KeyFailure where no configured secret opens it, ConfigError where it is plain and a repository is not, DamageError,
    StoreError.
    """
    path = directory / _NAME
    with spool_errors(directory):
        try:
            record = read_json(path)
            if record is None:
                return None
            identity = SpoolIdentity(int(str(record["system_identifier"])), int(str(record["wal_segment_size"])))
            family = bytes.fromhex(str(record["family"]))
            slots = record["keys"]
            if record["format"] != _FORMAT or not isinstance(slots, list):
                raise ValueError
        except (ValueError, KeyError):
            raise DamageError(
                f"{path} is damaged", path=str(path), hint="bring it back, or move the spool away: what it held is lost"
            ) from None
    if record["encryption"] == "none":
        if any(secret is not None for secret in configured.values()):
            raise ConfigError(
                f"the spool {directory} is not encrypted, and one of the cluster's repositories is",
                hint="let pgkeep wal receive ship it with the settings of before, then remove the directory",
            )
        return identity, KeyRing.unencrypted(family)
    keys = _unwrap_any(slots, family, configured, repositories)
    if keys is None:
        raise KeyFailure(
            f"no configured key opens the spool {directory}",
            hint="configure the key that was in use when it was written, or the repository whose key that is",
        )
    wanted = _wrap_all(keys, configured, repositories)
    fresh = _owners(wanted)
    # a repository that cannot be reached now keeps its slot; a secret that is configured no longer does not
    kept = [slot for slot in slots if slot["kind"] == "root" and (slot["kind"], slot["owner"]) not in fresh]
    if _owners([*kept, *wanted]) != _owners(slots):
        _write(directory, identity, keys, [*kept, *wanted])
    return identity, keys


def _owners(slots: Iterable[Mapping[str, str]]) -> set[tuple[str, str]]:
    return {(slot["kind"], slot["owner"]) for slot in slots}


def _write(directory: Path, identity: SpoolIdentity, keys: KeyRing, slots: list[dict[str, str]]) -> None:
    with spool_errors(directory):
        write_json(
            directory / _NAME,
            {
                "format": _FORMAT,
                "system_identifier": str(identity.system_identifier),
                "wal_segment_size": identity.segment_size,
                "family": keys.family.hex(),
                "encryption": "none" if keys.suite is Suite.NONE else "aes-256-gcm",
                "keys": slots,
            },
        )


def _wrap_all(
    keys: KeyRing, configured: Mapping[str, Secret | None], repositories: Mapping[str, Repository]
) -> list[dict[str, str]]:
    slots = []
    for secret in configured.values():
        if secret is not None:
            wrapping_key, found_by = secret.new_wrapping(keys.family)
            slots.append(_wrap(keys, "secret", _owner(keys, secret), found_by, wrapping_key))
    for repository in repositories.values():
        if repository.encrypted:
            salt = os.urandom(32)
            owner = repository.keys.family.hex()
            found_by = {"salt": salt.hex()}
            slots.append(_wrap(keys, "root", owner, found_by, repository.keys.derive(salt, _PURPOSE)))
    return slots


def _owner(keys: KeyRing, secret: Secret) -> str:
    """Tells secrets apart to those who have the spool's key, and nothing to others."""
    return keys.content_id(secret.identity()).hex()[:16]


def _wrap(keys: KeyRing, kind: str, owner: str, found_by: Mapping[str, object], wrapping_key: bytes) -> dict[str, str]:
    nonce = os.urandom(12)
    wrapped = AESGCM(wrapping_key).encrypt(nonce, keys.root_key, _associated(keys.family, kind))
    texts = {name: value for name, value in found_by.items() if isinstance(value, str)}
    return {**texts, "kind": kind, "owner": owner, "nonce": nonce.hex(), "wrapped": wrapped.hex()}


def _unwrap_any(
    slots: list[dict[str, str]],
    family: bytes,
    configured: Mapping[str, Secret | None],
    repositories: Mapping[str, Repository],
) -> KeyRing | None:
    for slot in slots:
        salt = bytes.fromhex(slot["salt"])
        if slot["kind"] == "root":
            openers = [
                repository.keys.derive(salt, _PURPOSE)
                for repository in repositories.values()
                if repository.keys.family.hex() == slot["owner"]
            ]
        else:
            openers = [key for secret in configured.values() if (key := _wrapping_of(secret, family, slot)) is not None]
        for opener in openers:
            with contextlib.suppress(InvalidTag):
                root = AESGCM(opener).decrypt(
                    bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"]), _associated(family, slot["kind"])
                )
                return KeyRing(Suite.AES_256_GCM, root, family)
    return None


def _wrapping_of(secret: Secret | None, family: bytes, slot: Mapping[str, str]) -> bytes | None:
    """A secret's key for a slot of the spool; None where there is none now, as of a service that does not answer."""
    try:
        return None if secret is None else secret.wrapping_of(family, slot)
    except (KeyFailure, ValueError):
        return None


def _associated(family: bytes, kind: str) -> bytes:
    return b"pgkeep/1 spool key" + family + kind.encode()
