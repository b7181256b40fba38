"""OpenPGP recipients: a slot's secret is 32 random bytes, encrypted to a public key by the ``gpg`` program.

Making a slot takes the recipient's public key, opening it the secret one, in the key ring of the user who runs this (or on
a smart card that gpg knows).
"""

from __future__ import annotations

import base64
import os
import secrets
from dataclasses import dataclass
from typing import ClassVar

from pgkeep import gpg
from pgkeep.errors import KeyFailure
from pgkeep.repository.crypto import SALT_SIZE, derive_key
from pgkeep.repository.keys.secret import Fields, hex_field

__all__ = ["OpenPgpRecipient"]


@dataclass(frozen=True)
class OpenPgpRecipient:
    """Whoever has the secret key of a recipient: a fingerprint, an e-mail address or a name, as gpg takes it."""

    recipient: str
    kind: ClassVar[str] = "openpgp"

    def new_wrapping(self, _family: bytes) -> tuple[bytes, Fields]:
        """See `Secret.new_wrapping`. Raises KeyFailure where gpg knows no such key, or several."""
        secret, salt = secrets.token_bytes(32), os.urandom(SALT_SIZE)
        fingerprint = gpg.find_recipient(self.recipient)
        message = gpg.encrypt(secret, self.recipient)
        fields = {"salt": salt.hex(), "recipient": fingerprint, "message": base64.b64encode(message).decode()}
        return derive_key(secret, salt, "key slot"), fields

    def wrapping_of(self, _family: bytes, fields: Fields) -> bytes | None:
        """See `Secret.wrapping_of`. Raises KeyFailure where gpg does not decrypt."""
        message, stored = fields.get("message"), fields.get("recipient")
        if not isinstance(message, str) or not isinstance(stored, str):
            return None
        try:
            fingerprint = gpg.find_recipient(self.recipient)
        except KeyFailure:
            # a key ring may have the secret key under another name: gpg knows what it can open
            fingerprint = stored
        if fingerprint != stored:
            return None
        return derive_key(gpg.decrypt(base64.b64decode(message, validate=True)), hex_field(fields, "salt"), "key slot")

    def identity(self) -> bytes:
        """See `Secret.identity`."""
        return f"gpg:{self.recipient}".encode()
