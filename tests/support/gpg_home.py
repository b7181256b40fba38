"""Key rings of the gpg program, in directories of their own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

__all__ = ["KeyRingHome", "key_ring"]


@dataclass(frozen=True)
class KeyRingHome:
    """A GNUPGHOME."""

    directory: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """For a program that is to use it."""
        return {**os.environ, "GNUPGHOME": str(self.directory)}

    def gpg(self, *words: str, given: bytes = b"") -> bytes:
        """What gpg says; AssertionError with its complaint."""
        command = ["gpg", "--batch", "--no-tty", "--quiet", *words]
        done = subprocess.run(command, input=given, capture_output=True, env=self.environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def new_key(self, user: str) -> str:
        """Make a key pair; its fingerprint."""
        self.gpg("--passphrase", "", "--quick-generate-key", user, "future-default", "default", "never")
        return self.fingerprints()[-1]

    def fingerprints(self) -> list[str]:
        """Of all keys, in the order in which they came."""
        lines = self.gpg("--with-colons", "--list-keys").decode().splitlines()
        return [after.split(":")[9] for line, after in pairwise(lines) if line.startswith("pub:")]

    def give_public(self, fingerprint: str, other: KeyRingHome) -> None:
        """Have another ring know the public key, and trust it no more than any other."""
        other.gpg("--import", given=self.gpg("--export", fingerprint))


@contextmanager
def key_ring() -> Iterator[KeyRingHome]:
    """An empty one; its agent is ended with it."""
    # below /tmp: the agent's socket is there, and a socket's path is short
    with tempfile.TemporaryDirectory(prefix="pgkeep-gpg-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        home = KeyRingHome(Path(directory))
        try:
            yield home
        finally:
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=home.environment, check=True)
