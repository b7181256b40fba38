"""Requests to S3 that obstore cannot make: other storage classes, thawing, object lock, versions.

Amazon refuses ``x-amz-…`` headers that are not signed, and obstore signs no headers but its own. So these few requests are signed
here (Amazon S3 API Reference, "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)"), with the keys
that obstore would take, and are tried again by the same rules.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from pgkeep.errors import ConfigError, StoreError
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_client import Clients, Request
from pgkeep.repository.object_store_credentials import profile_provider, profile_region
from pgkeep.repository.object_store_errors import Kind
from pgkeep.repository.store import Buffer
from pgkeep.units import utc_now

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["Answer", "S3Requests", "sign_headers"]

_TIMEOUT = 60.0
"""Seconds that a connection may be silent."""

_EARLY = timedelta(minutes=1)
"""Keys that end sooner than this are asked for again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said; names of headers are found in any case."""

    status: int
    headers: Message
    body: bytes


class _AnswerError(Exception):
    """An answer that is no success; its text is read like obstore's."""


class S3Requests:
    """Signed requests about the objects of one place; safe for threads. Keys are read at the first one."""

    def __init__(self, address: ObjectAddress, clients: Clients) -> None:
        if address.scheme != "s3":
            raise StoreError(f"{address.place} does not speak S3")
        self._address = address
        self._clients = clients
        self._lock = threading.Lock()
        self._credential: S3Credential | None = None
        self._context = ssl.create_default_context()
        if (certificates := address.options.get("ca_file")) is not None:
            self._context.load_verify_locations(certificates)

    @property
    def source(self) -> str:
        """The bucket and the prefix, as a copy's source names them."""
        prefix = f"{self._address.prefix}/" if self._address.prefix else ""
        return f"/{self._address.bucket}/{quote(prefix)}"

    def send(
        self,
        verb: str,
        method: str,
        name: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Buffer] = (),
        final: frozenset[Kind] = frozenset(),
        checked: bool = False,
    ) -> Answer:
        """Ask about an object, or about the bucket where ``name`` is empty; ``verb`` is for messages.

        ``checked``: with the check sum of the body that some requests must have.

        Raises `Refused` for the kinds of failures in ``final``, StoreError for the others.
        """
        digest = hashlib.sha256()
        for part in body:
            digest.update(part)
        more = {"x-amz-checksum-sha256": base64.b64encode(digest.digest()).decode()} if checked else {}

        def ask(_request: Request) -> Answer:
            return self._ask(method, name, query or {}, {**(headers or {}), **more}, body, digest.hexdigest())

        return self._clients.call(verb, name or "the bucket", ask, final=final)

    def put(self, name: str, body: Sequence[Buffer], headers: Mapping[str, str]) -> None:
        """One try of a put, with the check sum that buckets with object lock demand.

        Raises FileExistsError where a condition in ``headers`` does not hold, and others that `read_failure` understands.
        """
        digest = hashlib.sha256()
        for part in body:
            digest.update(part)
        check = base64.b64encode(digest.digest()).decode()
        self._ask("PUT", name, {}, {**headers, "x-amz-checksum-sha256": check}, body, digest.hexdigest())

    def _ask(
        self,
        method: str,
        name: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Sequence[Buffer],
        digest: str,
    ) -> Answer:
        base, path = self._place(name)
        encoded = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(query.items()))
        signed = sign_headers(
            method,
            path,
            encoded,
            {**headers, "host": urlsplit(base).netloc},
            digest,
            self._keys(),
            self._region(),
            utc_now(),
        )
        url = f"{base}{path}" + (f"?{encoded}" if encoded else "")
        request = urllib.request.Request(url, method=method)  # noqa: S310 - http and https alone are taken
        for key, value in signed.items():
            request.add_header(key, value)
        if body:
            request.data = [bytes(part) for part in body]
            request.add_header("Content-Length", str(sum(len(part) for part in body)))
            request.add_header("Content-Type", "application/octet-stream")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT, context=self._context) as answer:  # noqa: S310
                data = answer.read()
                # a copy may fail after its answer began with 200
                if data.lstrip().startswith((b"<Error", b"<?xml")) and b"<Error>" in data[:200]:
                    raise _failed(200, data)
                return Answer(answer.status, answer.headers, data)
        except urllib.error.HTTPError as error:
            raise _failed(error.code, error.read()) from None
        except urllib.error.URLError as error:
            raise ConnectionError(str(error.reason)) from error
        except OSError as error:
            raise ConnectionError(str(error)) from error

    def _place(self, name: str) -> tuple[str, str]:
        """The service's address, and the path of an object there."""
        address, endpoint = self._address, self._address.endpoint
        if endpoint is None:
            suffix = ".cn" if self._region().startswith("cn-") else ""
            endpoint = f"https://s3.{self._region()}.amazonaws.com{suffix}"
        key = quote("/".join(part for part in (address.prefix, name) if part)) if name else ""
        if address.path_style:
            return endpoint, f"/{address.bucket}/{key}"
        scheme, _, host = endpoint.partition("://")
        return f"{scheme}://{address.bucket}.{host}", f"/{key}"

    def _region(self) -> str:
        found = (
            self._address.options.get("region")
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or profile_region(self._address)
        )
        return found or "us-east-1"

    def _keys(self) -> S3Credential:
        with self._lock:
            ends = self._credential["expires_at"] if self._credential is not None else None
            if self._credential is None or (ends is not None and ends < utc_now() + _EARLY):
                self._credential = _read_keys(self._address)
            return self._credential


def sign_headers(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    digest: str,
    keys: S3Credential,
    region: str,
    moment: datetime,
) -> dict[str, str]:
    """The headers with those of AWS Signature Version 4; all of them are signed.

    ``path`` and ``query`` as they go over the wire, the query's pairs sorted; ``digest`` is the body's SHA-256, in hex.
    """
    stamp = f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    signed |= {"x-amz-date": stamp, "x-amz-content-sha256": digest}
    if keys.get("token"):
        signed["x-amz-security-token"] = str(keys["token"])
    names = ";".join(sorted(signed))
    lines = [method, path, query, *(f"{name}:{signed[name]}" for name in sorted(signed)), "", names, digest]
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    canonical = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{keys['secret_access_key']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{canonical}".encode(), "sha256").hex()
    credential = f"Credential={keys['access_key_id']}/{scope}"
    signed["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return signed


def _failed(status: int, body: bytes) -> Exception:
    text = f"status code: {status} {body.decode('utf-8', 'replace')}"
    if status == 404:
        return FileNotFoundError(text)
    if status in {409, 412} and b"PreconditionFailed" in body:
        return FileExistsError(text)
    return _AnswerError(text)


def _read_keys(address: ObjectAddress) -> S3Credential:
    """The keys of the standard chain; those that obstore would ask a machine for are asked for by boto3."""
    provider = profile_provider(address)
    if provider is not None:
        return provider()
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return {
            "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "expires_at": None,
        }
    try:
        import boto3  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError(
            f"storage classes, thawing and object lock of {address.place} take signed requests, and there are no keys in the"
            " environment nor in a profile",
            hint="pip install 'pgkeep[aws]' takes those of the machine's role; or name a profile",
        ) from None
    found = boto3.session.Session().get_credentials()
    if found is None:
        raise ConfigError(
            f"there are no credentials for {address.place}",
            hint='AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (profile = "…"), or a role of the machine',
        )
    frozen = found.get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        # boto3 renews them itself; asked again this often, an old one is never used
        "expires_at": utc_now() + timedelta(minutes=5),
    }
