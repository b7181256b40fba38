"""AWS KMS: a slot's secret is a data key that the service made and returns only to those whom its policies let.

Making a slot takes ``kms:GenerateDataKey``, opening it ``kms:Decrypt``. The encryption context is ``pgkeep`` = the family in hex, so
that a policy can say which repository a principal may open, and CloudTrail shows which one was. (AWS KMS API Reference.)

Amazon's own library does the talking. Credentials come in too many ways (roles, single sign-on, containers, machines) for a
client of our own to keep up with, and a key that cannot be reached is a repository that cannot be restored.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from pgkeep.errors import KeyFailure
from pgkeep.repository.crypto import SALT_SIZE, derive_key
from pgkeep.repository.keys.secret import Fields, hex_field

__all__ = ["AwsKmsKey"]

_NOT_THIS_KEY = {"InvalidCiphertextException", "IncorrectKeyException"}


@dataclass(frozen=True)
class AwsKmsKey:
    """Whoever may use a key of AWS KMS: its id, its ARN, or an alias (``alias/NAME``).

    The region is that of the ARN, else of the standard chain (``AWS_REGION``, profile); so are the endpoint and the credentials.
    """

    key_id: str
    kind: ClassVar[str] = "aws-kms"

    def new_wrapping(self, family: bytes) -> tuple[bytes, Fields]:
        """See `Secret.new_wrapping`. Raises KeyFailure with the service's reason."""
        answer = self._call("generate_data_key", NumberOfBytes=32, EncryptionContext=_context(family))
        salt = os.urandom(SALT_SIZE)
        blob = base64.b64encode(answer["CiphertextBlob"]).decode()
        return derive_key(answer["Plaintext"], salt, "key slot"), {
            "salt": salt.hex(),
            "key_id": answer["KeyId"],
            "blob": blob,
        }

    def wrapping_of(self, family: bytes, fields: Fields) -> bytes | None:
        """See `Secret.wrapping_of`. Raises KeyFailure with the service's reason."""
        blob = fields.get("blob")
        if not isinstance(blob, str):
            return None
        ciphertext = base64.b64decode(blob, validate=True)
        answer = self._call("decrypt", CiphertextBlob=ciphertext, EncryptionContext=_context(family))
        return None if answer is None else derive_key(answer["Plaintext"], hex_field(fields, "salt"), "key slot")

    def identity(self) -> bytes:
        """See `Secret.identity`."""
        return f"aws-kms:{self.key_id}".encode()

    def _call(self, operation: str, **parameters: object) -> Any:
        """An operation's answer; None where the bytes are another key's."""
        try:
            import boto3  # type: ignore[import-not-found,import-untyped,unused-ignore]
            from botocore.config import Config  # type: ignore[import-not-found,import-untyped,unused-ignore]
            from botocore.exceptions import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
                BotoCoreError,
                ClientError,
            )
        except ImportError:
            raise KeyFailure(
                "a key of AWS KMS needs Amazon's own library, which is not installed",
                hint="pip install 'pgkeep[aws]', or give another key with --key-file",
            ) from None
        parts = self.key_id.split(":")
        region = parts[3] if parts[0] == "arn" and len(parts) > 4 else None
        try:
            settings = Config(
                connect_timeout=10, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 5}
            )
            client = boto3.session.Session().client("kms", region_name=region, config=settings)
            return getattr(client, operation)(KeyId=self.key_id, **parameters)
        except ClientError as error:
            answer = error.response.get("Error", {})
            if operation == "decrypt" and answer.get("Code") in _NOT_THIS_KEY:
                return None
            raise KeyFailure(
                f"AWS KMS refuses the key {self.key_id}: {answer.get('Code')}: {answer.get('Message')}",
                hint="the key must be enabled, and its policy must let these credentials use it: aws sts get-caller-identity",
            ) from None
        except BotoCoreError as error:
            raise KeyFailure(
                f"AWS KMS cannot be asked for the key {self.key_id}: {error}",
                hint="check region, network and credentials (aws sts get-caller-identity), or give another key with --key-file",
            ) from None


def _context(family: bytes) -> dict[str, str]:
    return {"pgkeep": family.hex()}
