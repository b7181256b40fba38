"""A stand-in for AWS KMS on loopback, since no real one can run here: as much of its API as wrapping keys takes.

GenerateDataKey and Decrypt, in JSON 1.1 over HTTP, signed (AWS KMS API Reference; IAM User Guide, "Signature Version 4").
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["SimulatedKms", "simulated_kms"]

REGION = "eu-central-1"
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=simulated/(\d{8})/([\w-]+)/kms/aws4_request, SignedHeaders=([\w;-]+), Signature=(\w{64})"
)


class _Refused(Exception):
    """Its text is the name of the service's error."""


@dataclass
class SimulatedKms:
    """The service: its keys by ARN, its aliases, and what it was asked."""

    endpoint: str = ""
    secret: str = "simulated"
    keys: dict[str, bytes] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    disabled: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    """Operations that the policy does not let these credentials use."""
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Operation and encryption context of each request, as CloudTrail shows them."""

    @property
    def environment(self) -> Mapping[str, str]:
        """For programs that are to ask it."""
        return {
            "AWS_ENDPOINT_URL_KMS": self.endpoint,
            "AWS_ACCESS_KEY_ID": "simulated",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        }

    def new_key(self, alias: str) -> str:
        """Make a key; its ARN."""
        arn = f"arn:aws:kms:{REGION}:111122223333:key/{secrets.token_hex(16)}"
        self.keys[arn], self.aliases[alias] = os.urandom(32), arn
        return arn

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the service says to a request that is signed well."""
        context = request.get("EncryptionContext", {})
        self.calls.append((operation, context))
        if operation in self.denied:
            raise _Refused("AccessDeniedException")
        bound = json.dumps(context, sort_keys=True).encode()
        if operation == "GenerateDataKey":
            arn = self._find(request["KeyId"])
            plain, nonce = os.urandom(request["NumberOfBytes"]), os.urandom(12)
            blob = arn.encode() + b"\0" + nonce + AESGCM(self.keys[arn]).encrypt(nonce, plain, bound)
        elif operation == "Decrypt":
            blob = base64.b64decode(request["CiphertextBlob"])
            name, _, sealed = blob.partition(b"\0")
            if (arn := name.decode(errors="replace")) not in self.keys:
                raise _Refused("InvalidCiphertextException")
            if "KeyId" in request and self._find(request["KeyId"]) != arn:
                raise _Refused("IncorrectKeyException")
            arn = self._find(arn)
            try:
                plain = AESGCM(self.keys[arn]).decrypt(sealed[:12], sealed[12:], bound)
            except InvalidTag:
                raise _Refused("InvalidCiphertextException") from None
        else:
            raise _Refused("UnknownOperationException")
        found = {"KeyId": arn, "Plaintext": base64.b64encode(plain).decode()}
        return found if operation == "Decrypt" else {**found, "CiphertextBlob": base64.b64encode(blob).decode()}

    def check_signature(self, headers: Mapping[str, str], body: bytes) -> None:
        """Raises what the service says to one whose secret is another."""
        found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        if found is None:
            raise _Refused("MissingAuthenticationTokenException")
        day, region, signed, signature = found.groups()
        lines = "".join(f"{name}:{headers[name].strip()}\n" for name in signed.split(";"))
        request = f"POST\n/\n\n{lines}\n{signed}\n{hashlib.sha256(body).hexdigest()}"
        scope = f"{day}/{region}/kms/aws4_request"
        hashed = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashed}"
        key = f"AWS4{self.secret}".encode()
        for part in (day, region, "kms", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature):
            raise _Refused("InvalidSignatureException")

    def _find(self, name: str) -> str:
        arn = self.aliases.get(name, name)
        arn = next((known for known in self.keys if arn in {known, known.rpartition("/")[2]}), "")
        if not arn:
            raise _Refused("NotFoundException")
        if arn in self.disabled:
            raise _Refused("DisabledException")
        return arn


@contextmanager
def simulated_kms() -> Iterator[SimulatedKms]:
    """Start it in a thread, and stop it at the end."""
    kms = SimulatedKms()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                kms.check_signature({name.lower(): value for name, value in self.headers.items()}, body)
                operation = self.headers["X-Amz-Target"].removeprefix("TrentService.")
                code, document = 200, kms.answer(operation, json.loads(body))
            except _Refused as error:
                code, document = 400, {"__type": str(error), "message": f"simulated: {error}"}
            answer = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """It says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kms.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="simulated-kms", daemon=True)
    thread.start()
    try:
        yield kms
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
